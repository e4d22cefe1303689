"""The options of R-CNN; see options.py."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from detseg.detection.detector_options import DetectorOptions
from detseg.fields import Count, Fraction, Positive, Share, Threshold, Whole, shown


class RCNNOptions(DetectorOptions):
    """R-CNN (Girshick et al. 2014): a network on each proposal, warped to a square; linear SVMs and bounding-box
    regressors, fitted in closed form, on its features. Sections and appendices are those of arXiv 1311.2524v5.
    """

    reads_proposals: ClassVar = True
    name: Literal["rcnn"] = Field("rcnn", description="The model: a network on each warped proposal.")
    crop_size: Annotated[int, Field(ge=64, multiple_of=32)] = Field(
        224,
        description="Side in pixels of the square that a proposal is warped to (section 2.2: 227, of AlexNet); a "
        "multiple of 32, from 64 on, so that a map is left for the regressors.",
    )
    context: Whole = Field(
        16, description="Pixels of that square, on each side, that lie around the proposal (appendix A)."
    )
    train_proposals: Count = Field(2000, description="Proposals of an image to train on, the first ones.")
    test_proposals: Count = Field(2000, description="Proposals of an image to score (section 2.2), the first ones.")
    batch_crops: Count = Field(
        128, description="Proposals of a batch in fine-tuning, from train.batch_size images together (section 2.3)."
    )
    foreground_share: Threshold = Field(0.25, description="Share of them that are objects: 32 of 128 (section 2.3).")
    foreground_iou: Threshold = Field(
        0.5, description="IoU with an object from which a proposal is that object in fine-tuning (section 2.3)."
    )
    head_channels: Count | None = Field(
        None, description="Units of fc6 and fc7, on a VGG: null: 4096, its own. Others have a mean in their place."
    )
    dropout: Fraction = Field(0.0, description="Share of the outputs of fc6 and fc7 dropped in training.")
    classifier: Literal["svm", "softmax"] = Field(
        "svm",
        description="What scores: svm, a linear SVM for each class on the network's last features (section 2.3), score "
        "1 / (1 + exp(-margin)); softmax, the fine-tuned network itself (appendix B).",
    )
    svm_negative_iou: Threshold = Field(
        0.3,
        description="IoU with every object of a class below which a proposal is a negative of its SVM (section 2.3).",
    )
    svm_cost: Positive = Field(0.001, description="The SVMs' C, for features of mean norm 20; the authors' code's.")
    box_regression: Literal["none", "ridge", "iterated"] = Field(
        "ridge",
        description="Where boxes are put. none: on the proposals; ridge: where each class's regressor moves them "
        "(appendix C); iterated: moved, scored again there and moved once more.",
    )
    regression_iou: Share = Field(
        0.6, description="IoU with an object above which a proposal teaches its class's regressor (appendix C)."
    )
    regression_lambda: Positive = Field(
        1000.0, description="Weight of the regressors' squared norm, for features of mean norm 20 (appendix C)."
    )
    nms_iou: Threshold = Field(
        0.3, description="IoU with a better detection of its class above which one is dropped; the authors' code's."
    )

    def resolved(self) -> Self:
        """The same options with the values that null stands for."""
        channels = self.head_channels or (4096 if self.has_dense_layers else None)
        return self.model_copy(update={"head_channels": channels})

    @property
    def has_heads(self) -> bool:
        """Whether anything is fitted on the network's features after it is trained."""
        return self.classifier == "svm" or self.box_regression != "none"

    @model_validator(mode="after")
    def _keys_fit_the_backbone_and_the_square(self):
        if 2 * self.context >= self.crop_size:
            raise ValueError(
                f"context is {self.context} on each side of crop_size {self.crop_size}, which leaves no pixel for the "
                f"proposal; expected less than {self.crop_size // 2}"
            )
        if not self.has_dense_layers:
            self.refuse_unused(("head_channels", "dropout"), "a VGG, whose fc6 and fc7 they are of")
        if not 1 <= round(self.batch_crops * self.foreground_share) < self.batch_crops:
            raise ValueError(
                f"foreground_share is {shown(self.foreground_share)} of batch_crops {self.batch_crops}: expected both "
                "objects and background in a batch"
            )
        return self
