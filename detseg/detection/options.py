"""What a config's model section may say for each detector."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from detseg.backbones.options import BackboneModel
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Several,
    Share,
    Whole,
    of_length,
    shown,
    written_as,
)

Threshold = Annotated[float, Field(gt=0, le=1)]  # of an IoU that has to be reached
AnchorSize = Annotated[
    Annotated[Positive, Tag("<number>")] | Annotated[Several[Positive], NotEmpty, Tag("<list>")],
    written_as("a number of pixels or a list of such numbers"),
]
Numbers = Annotated[Several[Positive], NotEmpty]
Deviations = Annotated[
    tuple[Positive, Positive, Positive, Positive],
    Field(strict=False),
    of_length("x", "y", "width", "height"),
]
IoURange = Annotated[tuple[Share, Share], Field(strict=False), of_length("low", "high")]

_ANCHOR_SIZES = "Sizes of the anchors, square roots of their areas in pixels: for each level a number or a list; null: "
_FINEST_STRIDE = "Native stride of the backbone's finest level that the feature pyramid takes; the coarsest is 32."
_BOX_LOSS = "Loss of the boxes: smooth_l1 and l1 compare regression targets, giou and ciou the boxes themselves."
_BOX_DEVIATIONS = "What the regression targets tx, ty, tw, th are divided by, so that they have a similar spread."


class _Detector(BackboneModel):
    """What all detectors share."""

    extra_levels: ClassVar[int]  # of the feature pyramid, above the backbone's
    norm: Literal["batch", "frozen", "group"] = Field(
        default="frozen",
        description="The backbone's normalisation; frozen: batch norm with fixed statistics, scale and offset, since "
        "batches of a few images are too small to learn them.",
    )
    fpn_channels: Count = Field(default=256, description="Channels of the feature pyramid's levels (FPN, section 3).")
    finest_stride: Literal[4, 8, 16]
    head_norm: Literal["batch", "group"] | None = Field(
        default=None, description="Normalisation in the feature pyramid and the heads; null: none, as in the papers."
    )
    anchor_sizes: Annotated[Several[AnchorSize], NotEmpty] | None
    anchor_ratios: Numbers = Field(default=(0.5, 1.0, 2.0), description="Height / width of the anchors of each size.")
    anchor_scales: Numbers = Field(default=(1.0,), description="Factors by which each of the sizes is multiplied.")
    anchor_form: Literal["cell", "torchvision"] = Field(
        default="cell",
        description="Where the anchors are. cell: in the middle of their cells of the nominal stride; torchvision: at "
        "the cells' top left, rounded to pixels, the stride being image size // map size, for weights trained there.",
    )
    box_loss: Literal["smooth_l1", "l1", "giou", "ciou"]
    smooth_l1_beta: Positive = Field(
        default=1 / 9,
        description="Size of an error from which smooth L1 is linear (Fast R-CNN, eq. 3, has 1); as Detectron's.",
    )
    box_loss_weight: Positive = Field(default=1.0, description="Factor of the loss of the boxes in the sum.")
    score_threshold: Fraction = Field(default=0.05, description="Detections of smaller scores are dropped.")
    nms_iou: Threshold = Field(
        default=0.5, description="IoU with a better detection of its class above which a detection is suppressed."
    )
    max_detections: Count = Field(default=100, description="The most detections of an image.")
    max_objects: Count | None = Field(
        default=None,
        description="Room for an image's objects in a batch; null: the most that an image of the training split has.",
    )

    @model_validator(mode="after")
    def _norms_have_statistics(self):
        has_norms = not self.backbone.startswith("vgg")
        if has_norms and self.norm == "frozen" and self.weights is None:
            raise ValueError(
                "norm is frozen, but with weights: null its statistics would never be learned; expected norm: batch, "
                "norm: group or weights"
            )
        return self

    @model_validator(mode="after")
    def _anchors_fit_the_levels(self):
        strides = self._level_strides()
        if self.anchor_sizes is not None and len(self.anchor_sizes) != len(strides):
            levels = f"{len(strides)} levels, of strides" if len(strides) > 1 else "one level, of stride"
            raise ValueError(
                f"anchor_sizes is {shown(self.anchor_sizes)}, but there {'are' if len(strides) > 1 else 'is'} {levels} "
                f"{', '.join(map(str, strides))}; expected one entry for each, a number or a list of numbers"
            )
        return self

    def _level_strides(self) -> list[int]:
        """The native stride of each level that has anchors."""
        coarsest = 32 * 2**self.extra_levels
        return [stride for stride in (4, 8, 16, 32, 64, 128) if self.finest_stride <= stride <= coarsest]


def _ordered(background: str, background_iou: float, foreground: str, foreground_iou: float) -> None:
    if background_iou > foreground_iou:
        raise ValueError(
            f"{background} is {background_iou}, {foreground} is {foreground_iou}: expected {background} <= {foreground}"
        )


class FasterRCNNModel(_Detector):
    """Faster R-CNN (Ren et al. 2015), with or without a feature pyramid (Lin et al. 2017), on any backbone."""

    elsewhere: ClassVar = dict.fromkeys(
        ("top_levels", "head_convolutions", "focal_alpha", "focal_gamma", "prior"), "it is for name: retinanet"
    )
    extra_levels: ClassVar = 1
    name: Literal["faster_rcnn"] = Field(description="The model: a region proposal network, and a head on each region.")
    neck: Literal["fpn", "none"] = Field(
        default="fpn",
        description="fpn: a feature pyramid, with a level more by pooling (FPN, section 4.1); none: the one map of "
        "stride 16, as in the paper.",
    )
    finest_stride: Literal[4, 8, 16] = Field(default=4, description=_FINEST_STRIDE)
    anchor_sizes: Annotated[Several[AnchorSize], NotEmpty] | None = Field(
        default=None, description=_ANCHOR_SIZES + "8 x the level's stride; with neck: none [[128, 256, 512]]."
    )
    box_loss: Literal["smooth_l1", "l1", "giou", "ciou"] = Field(default="smooth_l1", description=_BOX_LOSS)

    rpn_channels: Count | None = Field(
        default=None,
        description="Channels of the proposal network's 3x3 convolution (section 3.1); null: those of the pyramid, or "
        "512 with neck: none.",
    )
    rpn_foreground_iou: Threshold = Field(
        default=0.7, description="IoU with an object from which an anchor is positive (section 3.1.2)."
    )
    rpn_background_iou: Share = Field(
        default=0.3, description="IoU with every object below which an anchor is negative (section 3.1.2)."
    )
    rpn_samples: Count = Field(
        default=256, description="Anchors of an image that are trained on, up to half positive (section 3.1.3)."
    )
    rpn_nms_iou: Threshold = Field(
        default=0.7, description="IoU with a better proposal above which a proposal is suppressed (section 3.3)."
    )
    train_candidates: Count = Field(
        default=2000, description="Proposals of a level that are left before suppression, in training."
    )
    test_candidates: Count = Field(
        default=1000, description="Proposals of a level that are left before suppression, in prediction."
    )
    train_proposals: Count = Field(
        default=2000, description="Proposals of an image that are left after suppression, in training (section 3.3)."
    )
    test_proposals: Count = Field(
        default=1000, description="Proposals of an image that are left after suppression, in prediction."
    )

    roi_pooling: Literal["align", "pool"] = Field(
        default="align",
        description="How a region's features are read: align, by bilinear samples (Mask R-CNN, section 3); pool, by "
        "maxima over whole pixels (Fast R-CNN, section 2.1).",
    )
    roi_size: Count | None = Field(
        default=None, description="Rows and columns of a region's features; null: 7, or 14 with head: stage."
    )
    roi_aligned: bool = Field(
        default=True, description="Read half a pixel further left and up, where pixels lie; false: as torchvision."
    )
    sampling_ratio: Count = Field(default=2, description="Samples in a bin of a region's features, along each side.")
    roi_samples: Count = Field(
        default=512, description="Regions of an image that the head is trained on (Fast R-CNN, section 2.3, has 64)."
    )
    roi_foreground_share: Threshold = Field(
        default=0.25, description="The most of them that may be objects (Fast R-CNN, section 2.3)."
    )
    roi_foreground_iou: Threshold = Field(
        default=0.5, description="IoU with an object from which a region is that object (Fast R-CNN, section 2.3)."
    )
    roi_background_iou: IoURange = Field(
        default=(0.0, 0.5),
        description="[low, high]: largest IoU with any object, from low to below high, of regions that are background; "
        "Fast R-CNN, section 2.3, has [0.1, 0.5].",
    )

    head: Literal["dense", "stage"] | None = Field(
        default=None,
        description="What a region's features go through. dense: two fully connected layers (FPN, section 4.2); stage: "
        "the backbone's last stage, then the mean, with neck: none only; null: stage where there can be one.",
    )
    head_channels: Count | None = Field(
        default=None,
        description="Units of the dense layers; null: 1024, or 4096 for a VGG with neck: none, whose fc6 and fc7 they "
        "are.",
    )
    dropout: Fraction = Field(default=0.0, description="Share of the dense layers' outputs dropped in training.")
    class_agnostic: bool = Field(default=False, description="Move a region's box alike for every class.")
    box_deviations: Deviations = Field(
        default=(0.1, 0.1, 0.2, 0.2), description=_BOX_DEVIATIONS + " torchvision's weights are 1 / deviation."
    )

    @model_validator(mode="after")
    def _keys_fit_the_neck_and_the_head(self):
        can_be_stage = self.neck == "none" and not self.backbone.startswith("vgg")
        if self.head == "stage" and not can_be_stage:
            reason = f"{self.backbone} has no such stage" if self.neck == "none" else "neck is fpn"
            raise ValueError(f"head is stage, but {reason}; expected dense or null, or neck: none and no VGG")
        is_stage = can_be_stage and self.head != "dense"
        if self.neck == "none":
            self.refuse_unused(("finest_stride", "fpn_channels"), "neck: fpn")
            if not is_stage:
                self.refuse_unused(("output_stride",), "neck: fpn or head: stage")
        if is_stage:
            self.refuse_unused(("head_channels", "dropout"), "head: dense")
        if self.roi_pooling == "pool":
            self.refuse_unused(("roi_aligned", "sampling_ratio"), "roi_pooling: align")
        return self

    @model_validator(mode="after")
    def _some_samples_are_objects(self):
        if self.rpn_samples < 2:
            raise ValueError("rpn_samples is 1, but at most half of them are objects; expected 2 or more")
        if int(self.roi_samples * self.roi_foreground_share) < 1:
            raise ValueError(
                f"roi_samples is {self.roi_samples}, of which a share of {self.roi_foreground_share} "
                "(roi_foreground_share) may be objects: less than one; expected more"
            )
        return self

    @model_validator(mode="after")
    def _thresholds_are_ordered(self):
        _ordered("rpn_background_iou", self.rpn_background_iou, "rpn_foreground_iou", self.rpn_foreground_iou)
        low, high = self.roi_background_iou
        if not low < high <= self.roi_foreground_iou:
            raise ValueError(
                f"roi_background_iou is [{low}, {high}], roi_foreground_iou is {self.roi_foreground_iou}: expected "
                "[low, high] with low < high <= roi_foreground_iou"
            )
        return self

    def _level_strides(self) -> list[int]:
        return [16] if self.neck == "none" else super()._level_strides()


class RetinaNetModel(_Detector):
    """RetinaNet (Lin et al. 2017): dense detection with the focal loss, on any backbone."""

    elsewhere: ClassVar = dict.fromkeys(
        [name for name in FasterRCNNModel.model_fields if name.startswith(("rpn_", "roi_", "train_", "test_"))]
        + ["neck", "sampling_ratio", "head", "head_channels", "dropout", "class_agnostic"],
        "it is for name: faster_rcnn",
    )
    extra_levels: ClassVar = 2
    name: Literal["retinanet"] = Field(description="The model: two convolutional heads on every level of a pyramid.")
    finest_stride: Literal[4, 8, 16] = Field(default=8, description=_FINEST_STRIDE)
    top_levels: Literal["conv_c5", "conv_p5"] = Field(
        default="conv_c5",
        description="What the pyramid's two levels above the backbone's are convolved from: the backbone's last level "
        "(footnote 2), or the pyramid's, as in torchvision.",
    )
    anchor_sizes: Annotated[Several[AnchorSize], NotEmpty] | None = Field(
        default=None, description=_ANCHOR_SIZES + "4 x the level's stride (section 4)."
    )
    anchor_scales: Numbers = Field(
        default=(1.0, 1.259921, 1.587401),
        description="Factors by which each of the sizes is multiplied; 2^0, 2^(1/3), 2^(2/3) in section 4.",
    )
    box_loss: Literal["smooth_l1", "l1", "giou", "ciou"] = Field(default="l1", description=_BOX_LOSS)

    head_convolutions: Whole = Field(
        default=4, description="3x3 convolutions in each head before the last (section 4)."
    )
    focal_alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="Weight of objects in the focal loss, that of background being 1 - alpha (eq. 5)."
    )
    focal_gamma: NotNegative = Field(
        default=2.0, description="Focusing: anchors count by (1 - probability)^gamma (section 3.2)."
    )
    prior: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01, description="Probability of every class that the first step starts from (section 3.3)."
    )
    foreground_iou: Threshold = Field(
        default=0.5, description="IoU with an object from which an anchor is that object's (section 4)."
    )
    background_iou: Share = Field(
        default=0.4, description="IoU with every object below which an anchor is background (section 4)."
    )
    max_candidates: Count = Field(
        default=1000, description="Detections of a level that are left before suppression (section 4.1)."
    )
    box_deviations: Deviations = Field(default=(1.0, 1.0, 1.0, 1.0), description=_BOX_DEVIATIONS)

    @model_validator(mode="after")
    def _beta_is_used(self):
        if self.box_loss != "smooth_l1":
            self.refuse_unused(("smooth_l1_beta",), "box_loss: smooth_l1")
        return self

    @model_validator(mode="after")
    def _thresholds_are_ordered(self):
        _ordered("background_iou", self.background_iou, "foreground_iou", self.foreground_iou)
        return self


DetectionModel = FasterRCNNModel | RetinaNetModel
