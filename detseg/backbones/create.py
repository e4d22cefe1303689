"""The backbones by name."""

from detseg.backbones.backbone import OUTPUT_STRIDES, Backbone, Preprocess, check_choice
from detseg.backbones.mobilenet import create_mobilenet, create_mobilenetv2
from detseg.backbones.mobilenetv3 import create_mobilenetv3
from detseg.backbones.resnet import create_resnet, create_resnetv2
from detseg.backbones.vgg import create_vgg
from detseg.backbones.weights import dense_weights, load_weights
from detseg.backbones.xception import create_xception, create_xception65
from detseg.errors import UserError
from detseg.layers.activation import ACTIVATIONS
from detseg.layers.norm import NORMS

# name -> factory(name, output_stride, in_channels, norm, alpha, activation, variant) -> Backbone of random weights
BACKBONES = {
    "vgg16": create_vgg,
    "vgg19": create_vgg,
    "mobilenet": create_mobilenet,
    "mobilenetv2": create_mobilenetv2,
    "resnet18": create_resnet,
    "resnet34": create_resnet,
    "resnet50": create_resnet,
    "resnet101": create_resnet,
    "resnet152": create_resnet,
    "resnet50v2": create_resnetv2,
    "resnet101v2": create_resnetv2,
    "resnet152v2": create_resnetv2,
    "mobilenetv3_small": create_mobilenetv3,
    "mobilenetv3_large": create_mobilenetv3,
    "xception": create_xception,
    "xception65": create_xception65,
}

# name -> the forms beside the family's own, for those that have some
VARIANTS = {
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), ("b",)),
    **dict.fromkeys(("mobilenetv3_small", "mobilenetv3_large"), ("minimalistic",)),
}

# those whose last stage takes DeepLabv3's unit rates: their factories have an eighth argument, multi_grid
MULTI_GRID = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet50v2", "resnet101v2", "resnet152v2"),
    *("mobilenetv2", "xception65"),
)

__all__ = ["BACKBONES", "MULTI_GRID", "Backbone", "Preprocess", "create_backbone", "dense_weights"]


def create_backbone(
    name,
    output_stride=32,
    in_channels=3,
    weights=None,
    norm="batch",
    alpha=1.0,
    activation=None,
    variant=None,
    multi_grid=None,
):
    """A feature extractor with the layer names and results of its keras.applications twin.

    name:           one of `BACKBONES`.
    output_stride:  32, 16 or 8: the stride of the coarsest level. Strides beyond it turn into dilation; with the same
                    weights, every second (16) or fourth (8) output from the first equals the level at 32.
    in_channels:    int, channels of the images. Weights for 3 channels are fitted to others: see `load_weights`.
    weights:        None (random), "imagenet" or the path of a weight file: see `load_weights`.
    norm:           "batch", "frozen" (statistics, scale and offset fixed) or "group". A VGG has no norms: no effect.
    alpha:          width multiplier: the share of the family's filters that each layer has.
    activation:     None (the family's own) or one of `ACTIVATIONS`, in place of every relu.
    variant:        None, or one of `VARIANTS[name]`: another form of the family, said in its file.
    multi_grid:     None, or for a name in `MULTI_GRID` a list of int: the unit rate of each block of the last stage,
                    multiplied into the dilation that its 3x3 convolutions get from output_stride (DeepLabv3, 3.2.1).
    Returns a `Backbone`. Inputs are (B, H, W, in_channels), of any size; the levels line up exactly where H and W are
    multiples of 32 (families say in their files what an odd map does).
    Raises UserError for an unknown name or value and for weights that don't fit.
    """
    check_choice("model.backbone", name, BACKBONES)
    check_choice("model.output_stride", output_stride, OUTPUT_STRIDES)
    check_choice("model.norm", norm, NORMS)
    if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"data.channels: {in_channels!r} is not a number of channels; expected 1, 3, 4 or so")
    if variant is not None and variant not in VARIANTS.get(name, ()):
        forms = ", ".join(VARIANTS.get(name, ())) or "no variants"
        raise UserError(f"model.variant: {name} has {forms}; got {variant!r}, expected null (leave it out)")
    if activation is not None:
        check_choice("model.activation", activation, ACTIVATIONS)
    if multi_grid is not None and name not in MULTI_GRID:
        raise UserError(
            f"model.multi_grid: {name} has no unit rates; got {multi_grid!r}, expected null (leave it out) or one of "
            f"the backbones {', '.join(MULTI_GRID)}"
        )
    arguments = (name, output_stride, in_channels, norm, alpha, activation, variant)
    backbone = BACKBONES[name](*arguments) if multi_grid is None else BACKBONES[name](*arguments, multi_grid)
    if weights is not None:
        backbone.unused_layers = load_weights(backbone, weights, alpha, variant)
    return backbone
