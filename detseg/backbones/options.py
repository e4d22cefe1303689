"""The options of a backbone: what the model sections of all models on one share. Imports without Keras."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from detseg.backbones.catalogue import CATALOGUE
from detseg.fields import NotNegative, Positive, Section, Text, shown

BackboneName = Literal[tuple(CATALOGUE)]
Activation = Literal["relu", "relu6", "leaky_relu", "elu", "prelu", "hard_swish"]


def _weight_source(weights: str) -> str:
    is_file = weights.endswith((".h5", ".keras", ".pth", ".pt")) or re.search(r"\.ckpt(-\d+)?$", weights)
    if weights not in ("imagenet", "coco") and not is_file:
        raise ValueError(
            f"got {weights!r}, expected null, imagenet, coco or the path of a file ending in .h5, .weights.h5, .keras, "
            ".pth or .pt, or in .ckpt, a checkpoint's prefix"
        )
    return weights


WeightSource = Annotated[Text, AfterValidator(_weight_source)]


OUTPUT_STRIDE = "Stride of the deepest features; below 32, later stages are dilated instead of strided."
WEIGHTS = (
    "The first weights: null (random); imagenet, the backbone's; coco, the preset's; or a file: .h5 (by layer names), "
    ".weights.h5 or .keras of the backbone; .pth, torchvision's state_dict of the backbone or the whole model; .ckpt, "
    "a checkpoint's prefix of TensorFlow's DeepLab."
)


class BackboneOptions(Section):
    """What all models on a backbone share, whatever their task."""

    name: str = Field(description="The model.")
    preset: Text | None = Field(
        None,
        description="A model with published weights, such as fasterrcnn_resnet50_fpn_coco (docs/finetuning.md lists "
        "them): stands for the keys that these need, and weights: coco; null: none.",
    )
    backbone: BackboneName = Field(description="The feature extractor.")
    variant: Text | None = Field(
        None,
        description="Another form of the backbone: b for resnet50, 101 and 152 (stride in the 3x3 convolution, as "
        "torchvision's weights need), torchvision for vgg16, vgg19, mobilenetv2 and mobilenetv3, minimalistic for "
        "mobilenetv3, deeplab for mobilenetv2 (TensorFlow DeepLab's: no last 1x1 convolution, maps of odd size padded "
        "evenly); null: the family's own.",
    )
    alpha: Positive = Field(1.0, description="Width multiplier of the backbone.")
    output_stride: Literal[8, 16, 32] = Field(32, description=OUTPUT_STRIDE)
    weights: WeightSource | None = Field("imagenet", description=WEIGHTS)
    norm: Literal["batch", "frozen", "group"] = Field(
        "batch", description="Normalisation; frozen: the backbone's batch norm with fixed statistics, scale and offset."
    )
    norm_epsilon: NotNegative | None = Field(
        None, description="Added to the variances in the backbone's batch norms; null: the family's own."
    )
    activation: Activation | None = Field(None, description="Activation in place of the backbone's own; null: its own.")
    freeze_stages: int = Field(0, ge=0, le=5, description="How many stages of strides 2 to 32 are frozen, norms too.")

    @model_validator(mode="after")
    def _published_weights_are_of_a_preset(self):
        if self.weights == "coco" and self.preset is None:
            raise ValueError("weights is coco, the published weights of a preset; expected preset: NAME too")
        return self

    def refuse_unused(self, keys: Iterable[str], needed: str) -> None:
        """ValueError where one of `keys`, of no use without what is `needed`, has another value than its default."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is {shown(getattr(self, key))}, which needs {needed}")
