"""The options of the detectors: a config's model section, a detector's argument, and what its get_config returns."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.options import BackboneOptions
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    NotNegative,
    Positive,
    Probability,
    Several,
    Share,
    Threshold,
    Whole,
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

    extra_levels: ClassVar[int]  # of the feature pyramid, above the backbone's
    size_in_strides: ClassVar[int]  # of the anchors, unless anchor_sizes says otherwise
    norm: Literal["batch", "frozen", "group"] = Field(
        "frozen",
        description="The backbone's normalisation; frozen: batch norm with fixed statistics, scale and offset, since "
        "batches of a few images are too small to learn them.",
    )
    fpn_channels: Count = Field(256, description="Channels of the feature pyramid's levels (FPN, section 3).")
    finest_stride: FinestStride
    head_norm: Literal["batch", "group"] | None = Field(
        None, description="Normalisation in the feature pyramid and the heads; null: none, as in the papers."
    )
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
    box_loss: BoxLoss
    smooth_l1_beta: Positive = Field(
        1 / 9, description="Error from which smooth L1 is linear; Detectron's (Fast R-CNN, eq. 3, has 1)."
    )
    box_loss_weight: Positive = Field(1.0, description="Factor of the loss of the boxes in the sum.")
    score_threshold: Fraction = Field(
        0.05, description="Detections of smaller scores are dropped (RetinaNet, section 4.1)."
    )
    nms_iou: Threshold = Field(
        0.5, description="IoU with a better detection of its class above which one is dropped (RetinaNet's)."
    )
    max_detections: Count = Field(100, description="The most detections of an image; as COCO scores.")
    max_objects: Count | None = Field(
        None, description="Room for an image's objects in a batch; null: the most of a training image."
    )

    @property
    def level_keys(self) -> tuple[int, ...]:
        """The native stride of each level that has anchors, from fine to coarse."""
        coarsest = 32 * 2**self.extra_levels
        return tuple(key for key in (4, 8, 16, 32, 64, 128) if self.finest_stride <= key <= coarsest)

    def resolved(self) -> Self:
        """The same options with the values that null stands for. Dilated levels have the anchor sizes of their keys."""
        sizes = tuple(self.size_in_strides * key for key in self.level_keys)
        return self.model_copy(update={"anchor_sizes": self.anchor_sizes or sizes})

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


class FasterRCNNOptions(DetectorOptions):
    """Faster R-CNN (Ren et al. 2015), with or without a feature pyramid (Lin et al. 2017), on any backbone.

    The proposal network's box loss is smooth L1 of weight 1 whatever the head's.
    """

    elsewhere: ClassVar = dict.fromkeys(
        ("top_levels", "head_convolutions", "focal_alpha", "focal_gamma", "prior"), "it is for name: retinanet"
    )
    extra_levels: ClassVar = 1
    size_in_strides: ClassVar = 8  # FPN, section 4.1: 32 to 512 on P2 to P6
    name: Literal["faster_rcnn"] = Field("faster_rcnn", description="The model: proposals, a head on each.")
    neck: Literal["fpn", "none"] = Field(
        "fpn",
        description="fpn: a feature pyramid, with a level more by pooling (FPN, section 4.1); none: the one map of "
        "stride 16, as in the paper.",
    )
    finest_stride: FinestStride = 4
    box_loss: BoxLoss = "smooth_l1"

    rpn_channels: Count | None = Field(
        None, description="Channels of its convolution (section 3.1); null: the pyramid's, or 512 without one."
    )
    rpn_foreground_iou: Threshold = Field(
        0.7, description="IoU with an object from which an anchor is positive (section 3.1.2)."
    )
    rpn_background_iou: Share = Field(
        0.3, description="IoU with every object below which an anchor is negative (section 3.1.2)."
    )
    rpn_samples: Count = Field(
        256, description="Anchors of an image that are trained on, up to half positive (section 3.1.3)."
    )
    rpn_nms_iou: Threshold = Field(
        0.7, description="IoU with a better proposal above which a proposal is suppressed (section 3.3)."
    )
    train_candidates: Count = Field(
        2000, description="Proposals of a level before suppression in training; Detectron's (originally 12000)."
    )
    test_candidates: Count = Field(
        1000, description="Proposals of a level before suppression in testing; Detectron's (originally 6000)."
    )
    train_proposals: Count = Field(
        2000, description="Proposals of an image left after suppression, in training (section 3.3)."
    )
    test_proposals: Count = Field(
        1000, description="Proposals of an image after suppression in prediction; Detectron's (originally 300)."
    )

    roi_pooling: Literal["align", "pool"] = Field(
        "align",
        description="How a region's features are read: align, by bilinear samples (Mask R-CNN, section 3); pool, by "
        "maxima over whole pixels (Fast R-CNN, section 2.1).",
    )
    roi_size: Count | None = Field(
        None, description="Rows and columns of a region's features; null: 7, or 14 with head: stage."
    )
    roi_aligned: bool = Field(
        True, description="Read half a pixel further left and up, where pixels lie; false: as torchvision."
    )
    sampling_ratio: Count = Field(2, description="Samples along each side of a bin (Mask R-CNN, section 3).")
    roi_samples: Count = Field(
        512, description="Regions of an image to train the head on; Detectron's (Fast R-CNN, section 2.3: 64)."
    )
    roi_foreground_share: Threshold = Field(
        0.25, description="The most of them that may be objects (Fast R-CNN, section 2.3)."
    )
    roi_foreground_iou: Threshold = Field(
        0.5, description="IoU with an object from which a region is that object (Fast R-CNN, section 2.3)."
    )
    roi_background_iou: IoURange = Field(
        (0.0, 0.5),
        description="[low, high]: largest IoU with any object, from low to below high, of regions that are background; "
        "Detectron's (Fast R-CNN, section 2.3, has [0.1, 0.5]).",
    )

    head: Literal["dense", "stage"] | None = Field(
        None,
        description="What a region's features go through. dense: two fully connected layers (FPN, section 4.2); stage: "
        "the backbone's last stage, then the mean, with neck: none only; null: stage where there can be one.",
    )
    head_channels: Count | None = Field(
        None, description="Units of the dense layers; null: 1024, or 4096, a VGG's own, with neck: none."
    )
    dropout: Fraction = Field(0.0, description="Share of the dense layers' outputs dropped in training.")
    class_agnostic: bool = Field(False, description="Move a region's box alike for every class.")
    box_deviations: Deviations = (0.1, 0.1, 0.2, 0.2)  # py-faster-rcnn's

    @property
    def level_keys(self) -> tuple[int, ...]:
        return super().level_keys if self.neck == "fpn" else (16,)

    def resolved(self) -> Self:
        on_pyramid = self.neck == "fpn"
        head = self.head or ("dense" if on_pyramid or self.has_dense_layers else "stage")
        dense_channels = 4096 if self.has_dense_layers and not on_pyramid else 1024
        values = {
            "rpn_channels": self.rpn_channels or (self.fpn_channels if on_pyramid else 512),
            "roi_size": self.roi_size or (14 if head == "stage" else 7),
            "head": head,
            "head_channels": self.head_channels or (dense_channels if head == "dense" else None),
        }
        if not on_pyramid:
            values["anchor_sizes"] = self.anchor_sizes or ((128, 256, 512),)  # section 3.3
        return super().resolved().model_copy(update=values)

    @model_validator(mode="after")
    def _keys_fit_the_neck_and_the_head(self):
        is_stage = self.resolved().head == "stage"
        if is_stage and (self.neck == "fpn" or self.has_dense_layers):
            reason = "neck is fpn" if self.neck == "fpn" else f"{self.backbone} has no such stage"
            raise ValueError(f"head is stage, but {reason}; expected dense or null, or neck: none and no VGG")
        if self.neck == "none":
            self.refuse_unused(("finest_stride", "fpn_channels"), "neck: fpn")
            if not is_stage:
                self.refuse_unused(("output_stride",), "neck: fpn or head: stage")
        if is_stage:
            self.refuse_unused(("head_channels", "dropout"), "head: dense")
        if self.roi_pooling == "pool":
            self.refuse_unused(("roi_aligned", "sampling_ratio"), "roi_pooling: align")
            if self.neck == "fpn":
                raise ValueError("roi_pooling is pool, which needs neck: none, a single map; expected align")
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
        self.refuse_unordered("rpn_background_iou", "rpn_foreground_iou")
        low, high = self.roi_background_iou
        if not low < high <= self.roi_foreground_iou:
            raise ValueError(
                f"roi_background_iou is [{low}, {high}], roi_foreground_iou is {self.roi_foreground_iou}: expected "
                "[low, high] with low < high <= roi_foreground_iou"
            )
        return self


class RetinaNetOptions(DetectorOptions):
    """RetinaNet (Lin et al. 2017): dense detection with the focal loss, on any backbone.

    As in torchvision, and not in the paper, each object also has the anchors that overlap it most, however little.
    """

    elsewhere: ClassVar = dict.fromkeys(
        [name for name in FasterRCNNOptions.model_fields if name.startswith(("rpn_", "roi_", "train_", "test_"))]
        + ["neck", "sampling_ratio", "head", "head_channels", "dropout", "class_agnostic"],
        "it is for name: faster_rcnn",
    )
    extra_levels: ClassVar = 2
    size_in_strides: ClassVar = 4  # section 4: 32 to 512 on P3 to P7
    name: Literal["retinanet"] = Field("retinanet", description="The model: two heads on a pyramid's levels.")
    finest_stride: FinestStride = 8
    top_levels: Literal["conv_c5", "conv_p5"] = Field(
        "conv_c5",
        description="What the pyramid's two levels above the backbone's are convolved from: the backbone's last level "
        "(footnote 2), or the pyramid's, as in torchvision.",
    )
    anchor_scales: Numbers = Field(
        (1.0, 1.259921, 1.587401),
        description="Factors by which each of the sizes is multiplied; 2^0, 2^(1/3), 2^(2/3) in section 4.",
    )
    box_loss: BoxLoss = "l1"

    head_convolutions: Whole = Field(4, description="3x3 convolutions in each head before the last (section 4).")
    focal_alpha: Probability = Field(
        0.25, description="Weight of objects in the focal loss, that of background being 1 - alpha (eq. 5)."
    )
    focal_gamma: NotNegative = Field(
        2.0, description="Focusing: anchors count by (1 - probability)^gamma (section 3.2)."
    )
    prior: Probability = Field(
        0.01, description="Probability of every class that the first step starts from (section 3.3)."
    )
    foreground_iou: Threshold = Field(
        0.5, description="IoU with an object from which an anchor is that object's (section 4)."
    )
    background_iou: Share = Field(
        0.4, description="IoU with every object below which an anchor is background (section 4)."
    )
    max_candidates: Count = Field(
        1000, description="Detections of a level that are left before suppression (section 4.1)."
    )
    box_deviations: Deviations = (1.0, 1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _beta_is_used_and_thresholds_are_ordered(self):
        if self.box_loss != "smooth_l1":
            self.refuse_unused(("smooth_l1_beta",), "box_loss: smooth_l1")
        self.refuse_unordered("background_iou", "foreground_iou")
        return self


DetectionModel = FasterRCNNOptions | RetinaNetOptions
