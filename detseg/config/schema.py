"""What a config may say, for each task: every key with its type, its default and its meaning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from detseg.config.augmentation import ObjectTransform, Transform
from detseg.config.data import DetectionData, SegmentationData
from detseg.config.train import Train
from detseg.detection.options import DetectionModel
from detseg.fields import Count, NotEmpty, NotNegative, Positive, Probability, Section, Several, Text
from detseg.segmentation.options import CrossEntropy, Loss, SegmentationModel


class TTA(Section):
    """What evaluate and predict do with --tta: probabilities averaged over views of each image."""

    scales: Annotated[Several[Positive], NotEmpty] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), description="Factors on the image's size; by default DeepLabv3's."
    )
    flip: Literal["none", "horizontal", "dihedral"] = Field(
        "horizontal",
        description="horizontal: each scale is also seen mirrored left to right; dihedral: turned and mirrored in all "
        "8 ways, for images without an upright position.",
    )


class BoundaryScores(Section):
    """F-score of the classes' boundaries."""

    tolerance: NotNegative = Field(description="Pixels by which a boundary may be off.")


class EMScores(Section):
    """Scores of the ISBI 2012 challenge on neuronal membranes."""

    membrane: Text = Field(description="Name of the membranes' class.")


class InstanceScores(Section):
    """Average precision of objects that are cut out of the label map."""

    method: Literal["components", "watershed"] = Field(
        "components",
        description="components: connected pixels are one object; watershed: these are cut at their narrow places.",
    )
    threshold: Probability = Field(0.5, description="Probability from which a pixel belongs to an object.")
    min_pixels: Count = Field(1, description="Objects of fewer pixels are left out.")


class Evaluation(Section):
    """Scores beside mIoU, computed by tools/evaluate.py."""

    boundary: BoundaryScores | None = Field(None, description="Boundary F-score; null: not computed.")
    em: EMScores | None = Field(None, description="V_rand, V_info, Rand and pixel error; null: not computed.")
    instances: InstanceScores | None = Field(None, description="AP of instances; null: not computed.")


_TASK = "What is learnt."
_SEED = "Seed of weights, order and augmentation."
_DATA = "The data set."
_AUGMENTATION = "Random changes to the training images, in this order."
_MODEL = "The model."
_TRAIN = "How the model is trained."

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class SegmentationConfig(Section):
    """Everything that a run of semantic segmentation depends on."""

    task: Literal["segmentation"] = Field(description=_TASK)
    seed: Seed = Field(0, description=_SEED)
    data: SegmentationData = Field(discriminator="format", description=_DATA)
    augmentation: Several[Transform] = Field((), description=_AUGMENTATION)
    model: SegmentationModel = Field(discriminator="name", description=_MODEL)
    loss: Annotated[Several[Loss], NotEmpty] = Field(
        (CrossEntropy(name="cross_entropy"),), description="The losses; their sum is trained on."
    )
    train: Train = Field(description=_TRAIN)
    tta: TTA = Field(TTA(), description="Test-time augmentation, where --tta asks for it.")
    evaluation: Evaluation = Field(Evaluation(), description="Scores beside mIoU.")


class DetectionConfig(Section):
    """Everything that a run of object detection depends on."""

    elsewhere: ClassVar = {
        "loss": "it is for task: segmentation; a detector's losses are model.box_loss, model.box_loss_weight and, for "
        "retinanet, model.focal_alpha and model.focal_gamma",
    }
    task: Literal["detection"] = Field(description=_TASK)
    seed: Seed = Field(0, description=_SEED)
    data: DetectionData = Field(discriminator="format", description=_DATA)
    augmentation: Several[ObjectTransform] = Field((), description=_AUGMENTATION)
    model: DetectionModel = Field(discriminator="name", description=_MODEL)
    train: Train = Field(description=_TRAIN)

    @model_validator(mode="after")
    def _data_have_the_masks_that_the_model_reads(self):
        data = self.data
        if not self.model.reads_masks or getattr(data, "masks", True):
            return self
        if "masks" in data.model_fields_set:
            raise ValueError(f"data.masks is false, but model.name: {self.model.name} learns from masks; expected true")
        object.__setattr__(self, "data", data.model_copy(update={"masks": True}))
        return self


Config = SegmentationConfig | DetectionConfig


class SegmentationTruth(Section):
    """What of a config says where the ground truth of semantic segmentation is."""

    task: Literal["segmentation"] = Field(description=_TASK)
    data: SegmentationData = Field(discriminator="format", description=_DATA)
    model: None = None


class DetectionTruth(Section):
    """What of a config says where the ground truth of detection is."""

    task: Literal["detection"] = Field(description=_TASK)
    data: DetectionData = Field(discriminator="format", description=_DATA)
    model: None = None


Truth = SegmentationTruth | DetectionTruth
