"""What the options of the detectors have in common; options.py has the detectors themselves."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.options import BackboneOptions
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    Positive,
    Several,
    Share,
    Threshold,
    of_length,
    shown,
    written_as,
)

AnchorSize = Annotated[
    Annotated[Positive, Tag("<number>")] | Annotated[Several[Positive], NotEmpty, Tag("<list>")],
    written_as("a number of pixels or a list of such numbers"),
]
Numbers = Annotated[Several[Positive], NotEmpty]
Deviations = Annotated[
    tuple[Positive, Positive, Positive, Positive],
    Field(
        strict=False,
        description="What the targets tx, ty, tw, th are divided by; torchvision's weights are 1 / deviation.",
    ),
    of_length("x", "y", "width", "height"),
]
FinestStride = Annotated[
    Literal[4, 8, 16], Field(description="Native stride of the feature pyramid's finest level; the coarsest is 32.")
]
BoxLoss = Annotated[
    Literal["smooth_l1", "l1", "giou", "ciou"],
    Field(
        description="Loss of the boxes: smooth_l1 (both papers') and l1 (torchvision's for RetinaNet) compare deltas "
        "with targets, giou and ciou the boxes themselves."
    ),
]
IoURange = Annotated[tuple[Share, Share], Field(strict=False), of_length("low", "high")]


class DetectorOptions(BackboneOptions):
    """What all detectors share. `resolved` says what null stands for."""

    reads_proposals: ClassVar[bool] = False  # whether the model is given the proposals of data.proposals
    reads_masks: ClassVar[bool] = False  # whether it learns from objects' masks, and says some
    norm: Literal["batch", "frozen", "group"] = Field(
        "frozen",
        description="The backbone's normalisation; frozen: batch norm with fixed statistics, scale and offset, since "
        "batches of a few images are too small to learn them.",
    )
    score_threshold: Fraction = Field(
        0.05, description="Detections of smaller scores are dropped (RetinaNet, section 4.1)."
    )
    nms_iou: Threshold = Field(
        0.5, description="IoU with a better detection of its class above which one is dropped (RetinaNet's)."
    )
    max_detections: Count = Field(100, description="The most detections of an image; as COCO scores.")

    def resolved(self) -> Self:
        """The same options with the values that null stands for."""
        return self

    @property
    def has_dense_layers(self) -> bool:
        """Whether the backbone's classifier has fc6 and fc7, as a VGG's."""
        return bool(CATALOGUE[self.backbone].dense_layers)

    @model_validator(mode="after")
    def _norms_have_statistics(self):
        if CATALOGUE[self.backbone].has_norms and self.norm == "frozen" and self.weights is None:
            raise ValueError(
                "norm is frozen, but with weights: null its statistics would never be learned; expected norm: batch, "
                "norm: group or weights"
            )
        return self


class MapOptions(DetectorOptions):
    """What detectors on the feature maps of an image share."""

    extra_levels: ClassVar[int]  # of the feature pyramid, above the backbone's
    fpn_channels: Count = Field(256, description="Channels of the feature pyramid's levels (FPN, section 3).")
    finest_stride: FinestStride
    head_norm: Literal["batch", "group"] | None = Field(
        None, description="Normalisation in the feature pyramid and the heads; null: none, as in the papers."
    )
    box_loss: BoxLoss
    smooth_l1_beta: Positive = Field(
        1 / 9, description="Error from which smooth L1 is linear; Detectron's (Fast R-CNN, eq. 3, has 1)."
    )
    box_loss_weight: Positive = Field(1.0, description="Factor of the loss of the boxes in the sum.")
    padding: Literal["shapes", "zeros"] = Field(
        "shapes",
        description="How predict pads an image. shapes: in ImageNet's mean colour, to one of training's few shapes; "
        "zeros: to multiples of 32 only, with zeros after the pixels are normalised, as torchvision.",
    )
    max_objects: Count | None = Field(
        None, description="Room for an image's objects in a batch; null: the most of a training image."
    )

    @property
    def level_keys(self) -> tuple[int, ...]:
        """The native stride of each level, from fine to coarse."""
        coarsest = 32 * 2**self.extra_levels
        return tuple(key for key in (4, 8, 16, 32, 64, 128) if self.finest_stride <= key <= coarsest)


class AnchorOptions(MapOptions):
    """What detectors with anchors share."""

    size_in_strides: ClassVar[int]  # of the anchors, unless anchor_sizes says otherwise
    anchor_sizes: Annotated[Several[AnchorSize], NotEmpty] | None = Field(
        None,
        description="Sizes of the anchors, square roots of their areas in pixels: for each level a number or a list; "
        "null: 8 x the level's stride for faster_rcnn, 4 x for retinanet, [[128, 256, 512]] with neck: none.",
    )
    anchor_ratios: Numbers = Field((0.5, 1.0, 2.0), description="Height / width of the anchors of each size.")
    anchor_scales: Numbers = Field((1.0,), description="Factors by which each of the sizes is multiplied.")
    anchor_form: Literal["cell", "torchvision"] = Field(
        "cell",
        description="Where the anchors are. cell: in the middle of their cells of the nominal stride; torchvision: at "
        "the cells' top left, rounded to pixels, the stride being image size // map size, for weights trained there.",
    )

    def resolved(self) -> Self:
        """The same options with the values that null stands for. Dilated levels have the anchor sizes of their keys."""
        sizes = self.anchor_sizes
        if sizes is None:
            names = [key for key in self.level_keys if isinstance(key, str)]
            if names:
                raise ValueError(f"anchor_sizes is null, but the level {names[0]} has no stride for a name; give sizes")
            sizes = tuple(self.size_in_strides * key for key in self.level_keys)
        return super().resolved().model_copy(update={"anchor_sizes": sizes})

    @model_validator(mode="after")
    def _anchors_fit_the_levels(self):
        sizes, keys = self.resolved().anchor_sizes, self.level_keys
        if len(sizes) != len(keys):
            levels = f"are {len(keys)} levels, of strides" if len(keys) > 1 else "is one level, of stride"
            raise ValueError(
                f"anchor_sizes is {shown(sizes)}, but there {levels} {', '.join(map(str, keys))}; expected one entry "
                "for each, a number or a list of numbers"
            )
        if len({len(size) if isinstance(size, tuple) else 1 for size in sizes}) > 1:
            raise ValueError(
                f"anchor_sizes is {shown(sizes)}, but the levels share one head; expected a number for each or lists "
                "of equally many"
            )
        return self
