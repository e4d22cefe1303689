"""The options of the detectors: a config's model section, a detector's argument, and what its get_config returns."""

from typing import ClassVar, Literal, get_args

from pydantic import Field, model_validator

from detseg.detection.detector_options import AnchorOptions, BoxLoss, Deviations, FinestStride, Numbers
from detseg.detection.rcnn_options import RCNNOptions
from detseg.detection.region_options import FasterRCNNOptions, FastRCNNOptions, MaskRCNNOptions
from detseg.fields import Count, NotNegative, Probability, Share, Threshold, Whole

__all__ = [
    "DetectionModel",
    "FastRCNNOptions",
    "FasterRCNNOptions",
    "MaskRCNNOptions",
    "RCNNOptions",
    "RetinaNetOptions",
]


class RetinaNetOptions(AnchorOptions):
    """RetinaNet (Lin et al. 2017): dense detection with the focal loss, on any backbone.

    As in torchvision, and not in the paper, each object also has the anchors that overlap it most, however little.
    """

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


DetectionModel = RCNNOptions | FastRCNNOptions | FasterRCNNOptions | MaskRCNNOptions | RetinaNetOptions


def _tell_whose_keys_are_whose():
    """What messages say of a key that another of the detectors has, unless one's own is almost called so."""
    models = {options.model_fields["name"].default: options for options in get_args(DetectionModel)}
    for options in models.values():
        owners = {}
        for name in sorted(models):
            for key in models[name].model_fields.keys() - options.model_fields.keys():
                if not any(own.endswith(f"_{key}") for own in options.model_fields):
                    owners.setdefault(key, []).append(name)
        options.elsewhere = {key: f"it is for name: {', '.join(names)}" for key, names in owners.items()}


_tell_whose_keys_are_whose()
