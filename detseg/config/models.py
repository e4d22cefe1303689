"""What a config's model section may say for each segmentation model, and for any model on a backbone."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from detseg.config.fields import (
    Count,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Section,
    Several,
    Text,
    of_length,
    shown,
)

WEIGHT_FILES = (".h5", ".keras")  # .weights.h5 ends in .h5

BackboneName = Literal[
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50v2",
    "resnet101v2",
    "resnet152v2",
    "mobilenet",
    "mobilenetv2",
    "mobilenetv3_small",
    "mobilenetv3_large",
    "xception",
    "xception65",
]
FCNName = Literal["fcn32s", "fcn16s", "fcn8s"]
Activation = Literal["relu", "relu6", "leaky_relu", "elu", "prelu", "hard_swish"]


def _weight_source(weights: str) -> str:
    if weights != "imagenet" and not weights.endswith(WEIGHT_FILES):
        raise ValueError(
            f"got {weights!r}, expected null, imagenet or the path of a file ending in .h5, .weights.h5 or .keras"
        )
    return weights


LevelChannels = Annotated[
    tuple[Count, Count, Count, Count, Count],
    Field(strict=False),
    of_length("stride 16", "stride 8", "stride 4", "stride 2", "stride 1"),
]
WeightSource = Annotated[Text, AfterValidator(_weight_source)]


class BackboneModel(Section):
    """What all models on a backbone share, whatever their task."""

    name: str = Field(description="The model.")
    backbone: BackboneName = Field(description="The feature extractor.")
    variant: Text | None = Field(
        default=None,
        description="Another form of the backbone: b for resnet50, 101 and 152 (stride in the 3x3 convolution, as "
        "torchvision's weights need), minimalistic for mobilenetv3; null: the family's own.",
    )
    alpha: Positive = Field(default=1.0, description="Width multiplier of the backbone.")
    output_stride: Literal[8, 16, 32] = Field(
        default=32, description="Stride of the deepest features; below 32, later stages are dilated instead of strided."
    )
    weights: WeightSource | None = Field(
        default="imagenet",
        description="The backbone's first weights: null (random), imagenet, or a file: .h5 (by layer names), "
        ".weights.h5 or .keras.",
    )
    norm: Literal["batch", "frozen", "group"] = Field(
        default="batch",
        description="Normalisation; frozen: the backbone's batch norm with fixed statistics, scale and offset.",
    )
    activation: Activation | None = Field(
        default=None, description="Activation in place of the backbone's own; null: its own."
    )
    freeze_stages: int = Field(
        default=0, ge=0, le=5, description="How many of the strides 2, 4, 8, 16, 32 aren't trained, norms included."
    )

    def refuse_unused(self, keys: Iterable[str], needed: str) -> None:
        """ValueError where one of `keys`, of no use without what is `needed`, has another value than its default."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is {shown(getattr(self, key))}, which needs {needed}")


class _Model(BackboneModel):
    """What all segmentation models share."""

    multi_grid: Annotated[Several[Count], NotEmpty] | None = Field(
        default=None,
        description="Unit rates that multiply the dilation of the last stage's convolutions, such as [1, 2, 4]; "
        "null: all 1 (DeepLabv3, section 3.2.1).",
    )


class FCNModel(_Model):
    """Fully convolutional network (Long, Shelhamer, Darrell 2015) on any backbone."""

    name: FCNName = Field(description="The model: FCN with predictions fused down to stride 32, 16 or 8.")
    upsampling: Literal["fixed", "learned"] = Field(
        default="fixed", description="Whether the transposed convolutions stay bilinear or are trained from there."
    )
    dropout: Fraction = Field(default=0.5, description="Share of the features behind fc6 and fc7 dropped in training.")
    head_channels: Count | None = Field(
        default=None, description="Channels of fc6 and fc7; null: 4096 for VGG, no such layers for other backbones."
    )


class AtrousModel(_Model):
    """What both DeepLabs share."""

    output_stride: Literal[8, 16, 32] = Field(
        default=16, description="Stride of the deepest features; below 32, later stages are dilated instead of strided."
    )
    aspp_rates: Several[Count] = Field(
        default=(6, 12, 18),
        description="Dilation of ASPP's 3x3 convolutions at output stride 16; doubled at 8, halved at 32.",
    )
    aspp_channels: Count = Field(default=256, description="Channels of each branch of ASPP and of what joins them.")
    image_pooling: bool = Field(default=True, description="Whether ASPP has a branch with the mean over the image.")
    separable: bool = Field(
        default=False, description="Depthwise separable 3x3 convolutions in the head, faster at nearly the same score."
    )
    dropout: Fraction = Field(default=0.1, description="Share of the features before the classifier dropped.")
    auxiliary_weight: NotNegative = Field(
        default=0.0, description="Weight of the loss of a second classifier on the stride-16 stage; 0: there is none."
    )


class DeepLabV3Model(AtrousModel):
    """DeepLabv3 (Chen et al. 2017) on any backbone."""

    name: Literal["deeplabv3"] = Field(description="The model: atrous spatial pyramid pooling.")


class DeepLabV3PlusModel(AtrousModel):
    """DeepLabv3+ (Chen et al. 2018) on any backbone: DeepLabv3 with a decoder."""

    name: Literal["deeplabv3plus"] = Field(description="The model: DeepLabv3 refined by features of stride 4.")
    decoder_channels: Count = Field(default=256, description="Channels of the decoder's two 3x3 convolutions.")
    low_level_channels: Count = Field(default=48, description="Channels that the stride-4 features are reduced to.")


class UNetModel(_Model):
    """U-Net (Ronneberger et al. 2015), in the paper's form, padded, or with a backbone as its encoder."""

    name: Literal["unet"] = Field(description="The model: an encoder and a decoder joined at every stride.")
    backbone: BackboneName | None = Field(
        default=None, description="The encoder; null: the paper's, of the width and depth below."
    )
    weights: WeightSource | None = Field(
        default=None,
        description="The backbone's first weights: null (random), imagenet, or a file: .h5 (by layer names), "
        ".weights.h5 or .keras.",
    )
    norm: Literal["none", "batch", "frozen", "group"] = Field(
        default="batch", description="Normalisation; none: the paper's, without backbone only; frozen: with one only."
    )
    width: Count = Field(default=64, description="Filters of the first level, doubled at each one below.")
    depth: Count = Field(default=4, description="Number of 2x2 max poolings.")
    padding: Literal["same", "valid"] = Field(
        default="same",
        description="valid: unpadded convolutions over an image mirrored at its border (the paper); same: zero-padded.",
    )
    decoder_channels: LevelChannels = Field(
        default=(256, 128, 64, 32, 16), description="With a backbone: the decoder's filters at stride 16, 8, 4, 2, 1."
    )
    dropout: Fraction = Field(default=0.5, description="Share of the deepest features dropped in training.")

    @model_validator(mode="after")
    def _keys_fit_the_encoder(self):
        plain = ("width", "depth", "padding")
        of_backbone = ("variant", "alpha", "output_stride", "multi_grid", "weights", "activation", "freeze_stages")
        if self.backbone is None:
            self.refuse_unused((*of_backbone, "decoder_channels"), "a backbone, but model.backbone is null")
        else:
            self.refuse_unused(plain, "model.backbone: null")
        if self.norm == ("frozen" if self.backbone is None else "none"):
            needed = "a backbone with weights" if self.backbone is None else "model.backbone: null"
            raise ValueError(f"norm is {self.norm}, which needs {needed}")
        return self


SegmentationModel = FCNModel | UNetModel | DeepLabV3Model | DeepLabV3PlusModel
