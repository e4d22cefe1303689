"""The backbones by name: a row for each net, with what others need to know of it. Imports without Keras.

To add a net:
1. Write its factory, in the file of its family:
   create(name, images, layers, alpha, variant) -> (last Keras tensor, {key: layer name}); layers is a `LayerBuilder`.
   A last argument multi_grid has the unit rates if the last stage takes them. The keys are those of `Backbone`; a level
   beside the native strides 2 to 32 has text for a key and (layer name, native stride) for a value. Name the layers as
   the net of keras.applications or of the paper's release does: weights are copied by these names.
2. Add a row here. The config, its schema and messages, and every model take the net from it.
3. Add its oracle test in tests/backbones: equal to its twin, and dilated levels equal to the strided ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Net:
    """What others need to know of a backbone before it is made.

    factory:            "module:function" in detseg.backbones, which is imported on use.
    narrowest:          filters of the narrowest layer, of which the width multiplier `alpha` has to leave one.
    preprocessing:      "caffe", "tf" or "torch": see `Preprocess`.
    activation:         its own; None: several.
    epsilon:            of its batch norms.
    twin:               the function of keras.applications whose layer names and ImageNet weights it shares, or None.
    twin_options:       arguments by which the twin becomes this net.
    variants:           {name: row}: other forms of the net.
    unit_rates:         how many of DeepLabv3's unit rates (multi-grid) the last stage takes: one for each block, or 0.
    aligns_corners:     whether pixel i of every level lies at pixel i * stride of an image of 32 n + 1 pixels, from the
                        first to the last. It takes padding that is even in front and behind on maps of odd size.
    has_norms:          whether there are normalisation layers.
    dense_layers:       {name: shape of the kernel} of the classifier's layers that models take over as fc6 and fc7.
    torch_names:        "module:function" in detseg.backbones of a net that torchvision has: layer name -> its module's
                        name in torchvision's state_dict, or None for what it lacks. variant: the form that is its.
    torch_file:         its ImageNet weights at torchvision: a file's name.
    unnamed_shortcuts:  the twin's convolutions, in order, to which it gives no names: what ours are called.
    """

    factory: str
    narrowest: int
    preprocessing: str
    twin: str | None = None
    twin_options: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, "Net"] = field(default_factory=dict)
    activation: str | None = "relu"
    epsilon: float = 1e-3
    unit_rates: int = 0
    aligns_corners: bool = False
    has_norms: bool = True
    dense_layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    torch_names: str | None = None
    torch_file: str | None = None
    unnamed_shortcuts: tuple[str, ...] = ()

    @property
    def dense_channels(self) -> int | None:
        """Units of the last of the dense layers: channels of fc6 and fc7 in the papers' models; None without any."""
        return list(self.dense_layers.values())[-1][-1] if self.dense_layers else None


_VGG_LAYERS = {"fc1": (7 * 7 * 512, 4096), "fc2": (4096, 4096)}


def _of_torchvision(net: Net, names: str, file: str, **changes: Any) -> Net:
    """The row of a net as torchvision has it."""
    return replace(
        net,
        preprocessing="torch",
        twin=None,
        variants={},
        torch_names=f"torch_names:{names}",
        torch_file=file,
        **changes,
    )


_VGG = Net("vgg:create_vgg", 64, "caffe", has_norms=False, dense_layers=_VGG_LAYERS)
_RESNETS = Net("resnet:create_resnet", 64, "caffe", epsilon=1.001e-5, unit_rates=3, aligns_corners=True)
_TORCH_RESNET = _of_torchvision(_RESNETS, "of_resnet", "resnet34-b627a593.pth", epsilon=1e-5)
_RESNETV2 = replace(_RESNETS, factory="resnet:create_resnetv2", preprocessing="tf")
_SHORTCUTS = ("block2_shortcut", "block3_shortcut", "block4_shortcut", "block13_shortcut")


def _vgg(twin: str, torch_names: str, torch_file: str) -> Net:
    return replace(_VGG, twin=twin, variants={"torchvision": _of_torchvision(_VGG, torch_names, torch_file)})


def _resnet(twin: str, torch_file: str) -> Net:
    return replace(_RESNETS, twin=twin, variants={"b": replace(_TORCH_RESNET, torch_file=torch_file)})


def _mobilenetv3(twin: str, torch_names: str, torch_file: str) -> Net:
    net = Net("mobilenet:create_mobilenetv3", 16, "tf", twin, activation=None)
    minimalistic = replace(net, twin_options={"minimalistic": True})
    of_torchvision = _of_torchvision(net, torch_names, torch_file)
    return replace(net, variants={"minimalistic": minimalistic, "torchvision": of_torchvision})


_MOBILENETV2 = Net("mobilenet:create_mobilenetv2", 32, "tf", "MobileNetV2", activation="relu6", unit_rates=3)


CATALOGUE: Mapping[str, Net] = {
    "vgg16": _vgg("VGG16", "of_vgg16", "vgg16-397923af.pth"),
    "vgg19": _vgg("VGG19", "of_vgg19", "vgg19-dcbb9e9d.pth"),
    "resnet18": replace(_TORCH_RESNET, unit_rates=2, torch_file="resnet18-f37072fd.pth"),
    "resnet34": _TORCH_RESNET,
    "resnet50": _resnet("ResNet50", "resnet50-0676ba61.pth"),
    "resnet101": _resnet("ResNet101", "resnet101-63fe2227.pth"),
    "resnet152": _resnet("ResNet152", "resnet152-394f9c45.pth"),
    "resnet50v2": replace(_RESNETV2, twin="ResNet50V2"),
    "resnet101v2": replace(_RESNETV2, twin="ResNet101V2"),
    "resnet152v2": replace(_RESNETV2, twin="ResNet152V2"),
    "mobilenet": Net("mobilenet:create_mobilenet", 32, "tf", "MobileNet", activation="relu6"),
    "mobilenetv2": replace(
        _MOBILENETV2,
        variants={
            "deeplab": replace(_MOBILENETV2, aligns_corners=True),
            "torchvision": _of_torchvision(_MOBILENETV2, "of_mobilenetv2", "mobilenet_v2-b0353104.pth", epsilon=1e-5),
        },
    ),
    "mobilenetv3_small": _mobilenetv3("MobileNetV3Small", "of_mobilenetv3_small", "mobilenet_v3_small-047dcff4.pth"),
    "mobilenetv3_large": _mobilenetv3("MobileNetV3Large", "of_mobilenetv3_large", "mobilenet_v3_large-8738ca79.pth"),
    "xception": Net("xception:create_xception", 32, "tf", "Xception", unnamed_shortcuts=_SHORTCUTS),
    "xception65": Net("xception:create_xception65", 32, "tf", unit_rates=3, aligns_corners=True),
}
