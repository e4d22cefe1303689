"""The options of the detectors that classify regions of an image's feature maps; see options.py."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from detseg.detection.detector_options import AnchorOptions, BoxLoss, Deviations, FinestStride, IoURange, MapOptions
from detseg.fields import (
    Count,
    Fraction,
    NotEmpty,
    Positive,
    Probability,
    Several,
    Share,
    Text,
    Threshold,
    Whole,
    shown,
)


class RegionOptions(MapOptions):
    """What Fast and Faster R-CNN share: features of regions, and a head on each."""

    extra_levels: ClassVar = 1
    neck: Literal["fpn", "none"] = Field(
        "fpn",
        description="fpn: a feature pyramid, with a level more by pooling (FPN, section 4.1); none: the one map of "
        "stride 16, as in the paper.",
    )
    finest_stride: FinestStride = 4
    pyramid_levels: Annotated[Several[int | Text], NotEmpty] | None = Field(
        None,
        description="The backbone's levels under the pyramid, from fine to coarse, by native stride or name, such as "
        "[bneck13, 32] of mobilenetv3_large's variant torchvision; null: the strides from finest_stride to 32.",
    )
    box_loss: BoxLoss = "smooth_l1"
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
    truncated_svd: dict[Text, Count] | None = Field(
        None,
        description="{layer: singular values}, such as {fc6: 1024, fc7: 256}: dense layers that are compressed when a "
        "trained run is loaded (Fast R-CNN, section 3.1); null: none.",
    )
    class_agnostic: bool = Field(False, description="Move a region's box alike for every class.")
    box_deviations: Deviations = (0.1, 0.1, 0.2, 0.2)  # py-faster-rcnn's

    @property
    def level_keys(self) -> tuple[int, ...]:
        if self.neck == "none":
            return (16,)
        return super().level_keys if self.pyramid_levels is None else (*self.pyramid_levels, 64)

    def resolved(self) -> Self:
        on_pyramid = self.neck == "fpn"
        head = self.head or ("dense" if on_pyramid or self.has_dense_layers else "stage")
        dense_channels = 4096 if self.has_dense_layers and not on_pyramid else 1024
        values = {
            "roi_size": self.roi_size or (14 if head == "stage" else 7),
            "head": head,
            "head_channels": self.head_channels or (dense_channels if head == "dense" else None),
        }
        return super().resolved().model_copy(update=values)

    @model_validator(mode="after")
    def _keys_fit_the_neck_and_the_head(self):
        is_stage = self.resolved().head == "stage"
        if is_stage and (self.neck == "fpn" or self.has_dense_layers):
            reason = "neck is fpn" if self.neck == "fpn" else f"{self.backbone} has no such stage"
            raise ValueError(f"head is stage, but {reason}; expected dense or null, or neck: none and no VGG")
        if self.neck == "none":
            self.refuse_unused(("finest_stride", "fpn_channels", "pyramid_levels"), "neck: fpn")
            if not is_stage:
                self.refuse_unused(("output_stride",), "neck: fpn or head: stage")
        if is_stage:
            self.refuse_unused(("head_channels", "dropout", "truncated_svd"), "head: dense")
        if self.roi_pooling == "pool":
            self.refuse_unused(("roi_aligned", "sampling_ratio"), "roi_pooling: align")
            if self.neck == "fpn":
                raise ValueError("roi_pooling is pool, which needs neck: none, a single map; expected align")
        return self

    @model_validator(mode="after")
    def _levels_are_from_fine_to_coarse(self):
        levels = self.pyramid_levels
        if levels is not None:
            self.refuse_unused(("finest_stride",), "pyramid_levels: null")
            strides = [level for level in levels if isinstance(level, int)]
            if levels[-1] != 32 or sorted(set(strides)) != strides or not set(strides) <= {4, 8, 16, 32}:
                raise ValueError(f"pyramid_levels is {shown(levels)}; expected rising strides of 4 to 32, 32 the last")
        return self

    @model_validator(mode="after")
    def _some_samples_are_objects(self):
        if int(self.roi_samples * self.roi_foreground_share) < 1:
            raise ValueError(
                f"roi_samples is {self.roi_samples}, of which a share of {self.roi_foreground_share} "
                "(roi_foreground_share) may be objects: less than one; expected more"
            )
        low, high = self.roi_background_iou
        if not low < high <= self.roi_foreground_iou:
            raise ValueError(
                f"roi_background_iou is [{low}, {high}], roi_foreground_iou is {self.roi_foreground_iou}: expected "
                "[low, high] with low < high <= roi_foreground_iou"
            )
        return self


class FastRCNNOptions(RegionOptions):
    """Fast R-CNN (Girshick 2015): given proposals, read from one map as in the paper, or from a feature pyramid."""

    reads_proposals: ClassVar = True
    name: Literal["fast_rcnn"] = Field("fast_rcnn", description="The model: a head on each of the given proposals.")
    neck: Literal["fpn", "none"] = Field(
        "none",
        description="none: the one map of stride 16, as in the paper; fpn: a feature pyramid (FPN, section 5.2).",
    )
    smooth_l1_beta: Positive = Field(1.0, description="Error from which smooth L1 is linear (eq. 3).")
    nms_iou: Threshold = Field(
        0.3, description="IoU with a better detection of its class above which one is dropped; the authors' code's."
    )
    roi_samples: Count = Field(64, description="Regions of an image to train the head on (section 2.3).")
    roi_background_iou: IoURange = Field(
        (0.1, 0.5),
        description="[low, high]: largest IoU with any object, from low to below high, of regions that are background "
        "(section 2.3).",
    )
    train_proposals: Count = Field(2000, description="Proposals of an image to train on, the first ones (section 2).")
    test_proposals: Count = Field(2000, description="Proposals of an image to score, the first ones (section 3).")


class FasterRCNNOptions(RegionOptions, AnchorOptions):
    """Faster R-CNN (Ren et al. 2015), with or without a feature pyramid (Lin et al. 2017), on any backbone.

    The proposal network's box loss is smooth L1 of weight 1 whatever the head's.
    """

    size_in_strides: ClassVar = 8  # FPN, section 4.1: 32 to 512 on P2 to P6
    name: Literal["faster_rcnn"] = Field("faster_rcnn", description="The model: proposals, a head on each.")

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
    rpn_score_threshold: Fraction = Field(
        0.0, description="Proposals of smaller probability are dropped in prediction; torchvision's MobileNets: 0.05."
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

    def resolved(self) -> Self:
        on_pyramid = self.neck == "fpn"
        values = {"rpn_channels": self.rpn_channels or (self.fpn_channels if on_pyramid else 512)}
        if not on_pyramid:
            values["anchor_sizes"] = self.anchor_sizes or ((128, 256, 512),)  # section 3.3
        return super().resolved().model_copy(update=values)

    @model_validator(mode="after")
    def _samples_and_thresholds_fit(self):
        if self.rpn_samples < 2:
            raise ValueError("rpn_samples is 1, but at most half of them are objects; expected 2 or more")
        self.refuse_unordered("rpn_background_iou", "rpn_foreground_iou")
        return self


class MaskRCNNOptions(FasterRCNNOptions):
    """Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each detection."""

    reads_masks: ClassVar = True
    name: Literal["mask_rcnn"] = Field("mask_rcnn", description="The model: proposals, a head and a mask on each.")
    head: Literal["dense"] = Field("dense", description="What a region's features go through: two dense layers.")
    mask_roi_size: Count = Field(14, description="Rows and columns of a region's features; its mask has twice as many.")
    mask_convolutions: Whole = Field(4, description="3x3 convolutions of the mask head (Mask R-CNN, figure 4).")
    mask_channels: Count = Field(256, description="Channels of the mask head.")
    mask_loss_weight: Positive = Field(1.0, description="Factor of the loss of the masks in the sum.")
    mask_threshold: Probability = Field(0.5, description="Probability from which a pixel belongs to the object.")
    mask_paste: Literal["detectron2", "torchvision"] = Field(
        "detectron2",
        description="How a mask comes to its box in the image. detectron2: bilinear, at the centres of the image's "
        "pixels; torchvision: the box is rounded to pixels first, one more a side, for figures like torchvision's.",
    )
