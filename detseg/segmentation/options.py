"""The options of segmentation models and losses: the sections `model` and `loss` of a config."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Tag, model_validator

from detseg.backbones.options import BackboneModel, BackboneName, WeightSource
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Section,
    Several,
    Whole,
    of_length,
    written_as,
)

FCNName = Literal["fcn32s", "fcn16s", "fcn8s"]
LevelChannels = Annotated[
    tuple[Count, Count, Count, Count, Count],
    Field(strict=False),
    of_length("stride 16", "stride 8", "stride 4", "stride 2", "stride 1"),
]


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


# ----- losses -----


def _any_positive(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not any(weights):
        raise ValueError(f"got {list(weights)}, expected at least one weight > 0")
    return weights


ClassWeights = Annotated[
    Annotated[Literal["median_frequency"], Tag("<text>")]
    | Annotated[Annotated[Several[NotNegative], NotEmpty, AfterValidator(_any_positive)], Tag("<list>")],
    written_as("null, median_frequency or a list with one weight per class"),
]
_LOSS = "The loss."


class _Loss(Section):
    name: str = Field(description=_LOSS)
    weight: Positive = Field(default=1.0, description="Factor of this loss in the sum.")
    class_weights: ClassWeights | None = Field(
        default=None,
        description="null: classes count alike; median_frequency: median class frequency / class frequency (Eigen and "
        "Fergus 2015), counted on the training split; a list: one weight per class.",
    )


class BorderWeights(Section):
    """More weight for the background between objects that are close to each other (U-Net, eq. 2)."""

    w0: Positive = Field(default=10.0, description="Weight added where two objects touch.")
    sigma: Positive = Field(default=5.0, description="Pixels over which it falls off.")
    gap: Whole = Field(
        default=0,
        description="Pixels beside another object that training takes as background, for data whose objects touch.",
    )


class CrossEntropy(_Loss):
    """Cross-entropy, a mean over the pixels of the batch that aren't ignored."""

    name: Literal["cross_entropy"] = Field(description=_LOSS)
    label_smoothing: Fraction = Field(default=0.0, description="Share of the target spread evenly over all classes.")
    border_weights: BorderWeights | None = Field(
        default=None, description="Weights of pixels that grow between close objects; null: pixels count alike."
    )


class Focal(_Loss):
    """Focal loss (Lin et al. 2017): cross-entropy in which pixels that are right already count less."""

    name: Literal["focal"] = Field(description=_LOSS)
    gamma: NotNegative = Field(default=2.0, description="Focusing: pixels count by (1 - probability)^gamma.")


class OHEM(_Loss):
    """Cross-entropy of the batch's hard pixels: online hard example mining (Shrivastava et al. 2016)."""

    name: Literal["ohem"] = Field(description=_LOSS)
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7, description="Pixels whose true class is less probable than this are hard."
    )
    min_kept_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0625, description="Share of the valid pixels, those of largest loss, that are kept in any case."
    )


class _RegionLoss(_Loss):
    classes: Literal["present", "all"] = Field(
        default="present", description="Classes that the mean is over: those with pixels, or all."
    )
    per_image: bool = Field(default=False, description="Score each image by itself instead of the batch as a whole.")


_SMOOTH = "Added above and below the fraction bar; above 0, classes: all also teaches that a class is absent."


class Dice(_RegionLoss):
    """Soft Dice loss, a mean over classes."""

    name: Literal["dice"] = Field(description=_LOSS)
    smooth: NotNegative = Field(default=0.0, description=_SMOOTH)
    exponent: Literal[1, 2] = Field(
        default=1, description="Exponent of the probabilities below the fraction bar; 2: V-Net (Milletari et al. 2016)."
    )


class Tversky(_RegionLoss):
    """Tversky loss (Salehi et al. 2017), a mean over classes."""

    name: Literal["tversky"] = Field(description=_LOSS)
    alpha: NotNegative = Field(default=0.3, description="Weight of false positives.")
    beta: NotNegative = Field(default=0.7, description="Weight of false negatives.")
    gamma: Positive = Field(
        default=1.0,
        description="Focal Tversky loss (Abraham and Khan 2019): each class's loss to the power 1 / gamma; 1: none.",
    )
    smooth: NotNegative = Field(default=0.0, description=_SMOOTH)

    @model_validator(mode="after")
    def _counts_errors(self):
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are 0: no error would count; expected at least one > 0")
        return self


class LovaszSoftmax(_RegionLoss):
    """Lovasz-softmax loss (Berman et al. 2018), a mean over classes."""

    name: Literal["lovasz_softmax"] = Field(description=_LOSS)


Loss = Annotated[CrossEntropy | Focal | OHEM | Dice | Tversky | LovaszSoftmax, Field(discriminator="name")]
