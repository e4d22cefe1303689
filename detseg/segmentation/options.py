"""The options of segmentation models and losses. Imports without Keras.

They are the sections `model` and `loss` of a config, what the factories of models and `SegmentationLoss` take, and what
a saved loss is read back from.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.options import OUTPUT_STRIDE, WEIGHTS, BackboneName, BackboneOptions, WeightSource
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Section,
    Several,
    Share,
    Threshold,
    Whole,
    checked,
    of_length,
    written_as,
)

FCNName = Literal["fcn32s", "fcn16s", "fcn8s"]
LevelChannels = Annotated[
    tuple[Count, Count, Count, Count, Count],
    Field(strict=False),
    of_length("stride 16", "stride 8", "stride 4", "stride 2", "stride 1"),
]


class _OnBackbone(BackboneOptions):
    """What all segmentation models on a backbone share."""

    multi_grid: Annotated[Several[Count], NotEmpty] | None = Field(
        None,
        description="Unit rates that multiply the dilation of the last stage's convolutions, such as [1, 2, 4]; "
        "null: all 1 (DeepLabv3, section 3.2.1).",
    )

    @property
    def minimum_size(self) -> int:
        """Pixels that no side of an image should fall below: the model's stride."""
        return self.output_stride

    @property
    def head_norm(self) -> str:
        """Normalisation of the layers behind the backbone: frozen is for layers that have learned something."""
        return "batch" if self.norm == "frozen" else self.norm


class FCNOptions(_OnBackbone):
    """Fully convolutional network (Long, Shelhamer, Darrell 2015) on any backbone."""

    name: FCNName = Field(description="The model: FCN with predictions fused down to stride 32, 16 or 8.")
    upsampling: Literal["fixed", "learned"] = Field(
        "fixed", description="Whether the transposed convolutions stay bilinear or are trained from there."
    )
    dropout: Fraction = Field(0.5, description="Share of the features behind fc6 and fc7 dropped in training.")
    head_channels: Count | None = Field(
        None, description="Filters of fc6, fc7; null: 4096 for VGG, else no such layers."
    )


class AtrousOptions(_OnBackbone):
    """What models on the maps of an atrous backbone share."""

    output_stride: Literal[8, 16, 32] = Field(16, description=OUTPUT_STRIDE)
    resize: Literal["phase", "half_pixel", "align_corners"] = Field(
        "phase",
        description="Where resized maps lie. phase: at every output stride where those of stride 16 do; half_pixel: "
        "the areas of pixels are aligned, as in torchvision; align_corners: the centres of the corners' pixels are, as "
        "in TensorFlow's DeepLab, and images are padded to n * output_stride + 1 pixels.",
    )
    padding: Literal["multiple", "none"] = Field(
        "multiple",
        description="multiple: images are padded to a multiple of the output stride; none: not at all, and maps are "
        "resized to the image's own size, as in torchvision.",
    )
    dropout: Fraction = Field(0.1, description="Share of the features before the classifier dropped.")
    auxiliary_weight: NotNegative = Field(0.0, description="Weight of the loss of a classifier on stride 16; 0: none.")

    @property
    def aligns_corners(self) -> bool:
        return self.resize == "align_corners"

    @model_validator(mode="after")
    def _corners_line_up(self):
        if self.aligns_corners:
            self.refuse_unused(("padding",), "resize: phase or half_pixel")
            form = CATALOGUE[self.backbone].variants.get(self.variant, CATALOGUE[self.backbone])
            if not form.aligns_corners:
                raise ValueError(
                    f"resize is align_corners, but the maps of {self.backbone} do not line up at the corners; expected "
                    "phase, half_pixel, or a backbone that pads maps of odd size evenly: a resnet, xception65, or "
                    "mobilenetv2 with variant: deeplab"
                )
        return self


class FCNHeadOptions(AtrousOptions):
    """FCN as torchvision and MMSegmentation have it: a 3x3 convolution and the scores, on an atrous backbone."""

    name: Literal["fcn"] = Field(description="The model: a convolution and scores on the deepest map.")
    output_stride: Literal[8, 16, 32] = Field(8, description=OUTPUT_STRIDE)


class ASPPOptions(AtrousOptions):
    """What both DeepLabs share."""

    aspp_rates: Several[Count] = Field(
        (6, 12, 18),
        description="Dilation of ASPP's 3x3 convolutions at output stride 16; doubled at 8, halved at 32. "
        "[]: no such convolutions.",
    )
    aspp_channels: Count = Field(256, description="Channels of each branch of ASPP and of what joins them.")
    image_pooling: bool = Field(True, description="Whether ASPP has a branch with the mean over the image.")
    separable: bool = Field(False, description="Separable 3x3 convolutions in the head: faster, nearly as accurate.")
    separable_norm: bool = Field(
        False, description="Norm and relu behind the depthwise half of these, too, as in TensorFlow's DeepLab."
    )

    @model_validator(mode="after")
    def _norms_are_between_halves(self):
        if not self.separable:
            self.refuse_unused(("separable_norm",), "separable: true")
        return self


class DeepLabV3Options(ASPPOptions):
    """DeepLabv3 (Chen et al. 2017) on any backbone."""

    name: Literal["deeplabv3"] = Field(description="The model: atrous spatial pyramid pooling.")
    head_convolutions: Literal[0, 1] = Field(
        0, description="3x3 convolutions between ASPP and the scores; torchvision has one."
    )


class DeepLabV3PlusOptions(ASPPOptions):
    """DeepLabv3+ (Chen et al. 2018) on any backbone: DeepLabv3 with a decoder."""

    name: Literal["deeplabv3plus"] = Field(description="The model: DeepLabv3 refined by features of stride 4.")
    decoder_channels: Count = Field(256, description="Channels of the decoder's two 3x3 convolutions.")
    low_level_channels: Count = Field(48, description="Channels that the stride-4 features are reduced to.")


class UNetOptions(_OnBackbone):
    """U-Net (Ronneberger et al. 2015), in the paper's form, padded, or with a backbone as its encoder."""

    name: Literal["unet"] = Field(description="The model: an encoder and a decoder joined at every stride.")
    backbone: BackboneName | None = Field(None, description="The encoder; null: the paper's, of width and depth below.")
    weights: WeightSource | None = Field(None, description=WEIGHTS)
    norm: Literal["none", "batch", "frozen", "group"] = Field(
        "batch", description="Normalisation; none: the paper's, without backbone only; frozen: with one only."
    )
    width: Count = Field(64, description="Filters of the first level, doubled at each one below.")
    depth: Count = Field(4, description="Number of 2x2 max poolings.")
    padding: Literal["same", "valid"] = Field(
        "same",
        description="valid: unpadded convolutions over an image mirrored at its border (the paper); same: zero-padded.",
    )
    decoder_channels: LevelChannels = Field(
        (256, 128, 64, 32, 16), description="With a backbone: the decoder's filters at stride 16, 8, 4, 2, 1."
    )
    dropout: Fraction = Field(0.5, description="Share of the deepest features dropped in training.")

    @property
    def minimum_size(self) -> int:
        return 2**self.depth if self.backbone is None else self.output_stride

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


class CustomOptions(Section):
    """A keras.Model of one's own, given from Python: raw pixels (B, H, W, C) -> logits (B, H, W, K)."""

    name: Literal["custom"] = Field(description="The model: one that is given to detseg.train from Python.")
    backbone: None = Field(None, description="There is none that is known.")
    minimum_size: ClassVar[int] = 1


SegmentationModel = FCNOptions | FCNHeadOptions | UNetOptions | DeepLabV3Options | DeepLabV3PlusOptions | CustomOptions


# ----- losses -----


ClassWeights = Annotated[
    Annotated[Literal["median_frequency"], Tag("<text>")]
    | Annotated[Several[NotNegative], NotEmpty, checked(any, "at least one weight > 0"), Tag("<list>")],
    written_as("null, median_frequency or a list with one weight per class"),
]
_LOSS = "The loss."


class _Loss(Section):
    name: str = Field(description=_LOSS)
    weight: Positive = Field(1.0, description="Factor of this loss in the sum.")
    class_weights: ClassWeights | None = Field(
        None,
        description="null: classes count alike; median_frequency: median class frequency / class frequency (Eigen and "
        "Fergus 2015), counted on the training split; a list: one weight per class.",
    )


class BorderWeights(Section):
    """More weight for the background between objects that are close to each other (U-Net, eq. 2)."""

    w0: Positive = Field(10.0, description="Weight added where two objects touch.")
    sigma: Positive = Field(5.0, description="Pixels over which it falls off.")
    gap: Whole = Field(0, description="Pixels beside another object taken as background, for objects that touch.")


class CrossEntropy(_Loss):
    """Cross-entropy, a mean over the pixels of the batch that aren't ignored."""

    name: Literal["cross_entropy"] = Field(description=_LOSS)
    label_smoothing: Fraction = Field(0.0, description="Share of the target spread evenly over all classes.")
    border_weights: BorderWeights | None = Field(
        None, description="Weights of pixels that grow between close objects; null: pixels count alike."
    )


class Focal(_Loss):
    """Focal loss (Lin et al. 2017): cross-entropy in which pixels that are right already count less."""

    name: Literal["focal"] = Field(description=_LOSS)
    gamma: NotNegative = Field(2.0, description="Focusing: pixels count by (1 - probability)^gamma.")


class OHEM(_Loss):
    """Cross-entropy of the batch's hard pixels: online hard example mining (Shrivastava et al. 2016)."""

    name: Literal["ohem"] = Field(description=_LOSS)
    threshold: Threshold = Field(0.7, description="Pixels whose true class is less probable than this are hard.")
    min_kept_fraction: Share = Field(
        0.0625, description="Share of the valid pixels, those of largest loss, that are kept in any case."
    )


class _RegionLoss(_Loss):
    classes: Literal["present", "all"] = Field("present", description="Classes of the mean: those with pixels, or all.")
    per_image: bool = Field(False, description="Score each image by itself instead of the batch as a whole.")


_SMOOTH = "Added above and below the fraction bar; above 0, classes: all also teaches that a class is absent."


class Dice(_RegionLoss):
    """Soft Dice loss, a mean over classes."""

    name: Literal["dice"] = Field(description=_LOSS)
    smooth: NotNegative = Field(0.0, description=_SMOOTH)
    exponent: Literal[1, 2] = Field(
        1, description="Exponent of the probabilities below the fraction bar; 2: V-Net (Milletari et al. 2016)."
    )


class Tversky(_RegionLoss):
    """Tversky loss (Salehi et al. 2017), a mean over classes."""

    name: Literal["tversky"] = Field(description=_LOSS)
    alpha: NotNegative = Field(0.3, description="Weight of false positives.")
    beta: NotNegative = Field(0.7, description="Weight of false negatives.")
    gamma: Positive = Field(
        1.0, description="Focal Tversky loss (Abraham and Khan 2019): losses to the power 1 / gamma; 1: none."
    )
    smooth: NotNegative = Field(0.0, description=_SMOOTH)

    @model_validator(mode="after")
    def _counts_errors(self):
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are 0: no error would count; expected at least one > 0")
        return self


class LovaszSoftmax(_RegionLoss):
    """Lovasz-softmax loss (Berman et al. 2018), a mean over classes."""

    name: Literal["lovasz_softmax"] = Field(description=_LOSS)


Loss = Annotated[CrossEntropy | Focal | OHEM | Dice | Tversky | LovaszSoftmax, Field(discriminator="name")]
