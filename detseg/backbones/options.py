"""What a config's model section says of the backbone: the options that all models on one share."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from detseg.fields import Positive, Section, Text, shown

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
Activation = Literal["relu", "relu6", "leaky_relu", "elu", "prelu", "hard_swish"]


def _weight_source(weights: str) -> str:
    if weights != "imagenet" and not weights.endswith(WEIGHT_FILES):
        raise ValueError(
            f"got {weights!r}, expected null, imagenet or the path of a file ending in .h5, .weights.h5 or .keras"
        )
    return weights


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
