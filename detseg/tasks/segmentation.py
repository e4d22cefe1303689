"""Semantic segmentation as a task: from a config to model, targets, loss, inference, scores and drawings."""

import logging
import math
from dataclasses import replace

import numpy as np

from detseg.data.classes import BACKGROUND
from detseg.data.loader import Batches
from detseg.data.scan import median_frequency_weights
from detseg.errors import UserError
from detseg.inference.prediction import SegmentationPredictionOptions
from detseg.inference.segmentation import SegmentationInference, TestTimeAugmentation
from detseg.pretrained.load import load_whole_model, read_whole_model
from detseg.report.drawing import draw_label_map
from detseg.segmentation.deeplabv3 import ModelWithAuxiliary, effective_rates
from detseg.segmentation.losses import SegmentationLoss
from detseg.segmentation.models import create_segmentation_model
from detseg.segmentation.options import ASPPOptions
from detseg.segmentation.weight_maps import border_weights, instances_of_components, separate_touching
from detseg.tasks.base import Task, class_lines
from detseg.tasks.segmentation_scores import SegmentationScores, format_extra_scores
from detseg.tasks.training_size import training_size
from detseg.tasks.writers import SegmentationWriter

logger = logging.getLogger("detseg")

_TIMES = ("images_per_second", "seconds")  # in a result of `evaluate`: no scores


class SegmentationTask(Task):
    """Semantic segmentation. See `Task`."""

    name = "segmentation"
    score_name = "miou"
    score_label = "mIoU"
    options_kind = SegmentationPredictionOptions

    def create_model(self, pretrained=True):
        options, channels = self.config.model, self.config.data.channels
        whole = read_whole_model(options) if pretrained else None
        loads_backbone = pretrained and whole is None
        model, backbone = create_segmentation_model(options, len(self.classes), channels, loads_backbone)
        if whole is not None:
            load_whole_model(model, backbone, options, self.classes, whole)
        return model, backbone

    def check_given_model(self, model):
        """UserError unless it is raw pixels (B, H, W, C) -> logits (B, H, W, K)."""
        if self.config.model.name != "custom":
            raise UserError(
                f"model=: a model from Python, but model.name is {self.config.model.name}; expected model.name: custom"
            )
        expected = [(4, self.config.data.channels), (4, len(self.classes))]
        shapes = [getattr(model, "input_shape", None), getattr(model, "output_shape", None)]
        if [(len(shape), shape[-1]) if isinstance(shape, tuple) else None for shape in shapes] != expected:
            raise UserError(
                f"model=: it takes {shapes[0]} and gives {shapes[1]}; expected a keras.Model from raw pixels (batch, "
                f"height, width, {expected[0][1]}) to logits (batch, height, width, {expected[1][1]}) of the classes "
                f"{', '.join(self.classes)}"
            )

    def count_class_weights(self, scan):
        """{class name: weight} of median frequency balancing where a loss asks for it, else None."""
        if all(item.class_weights != "median_frequency" for item in self.config.loss):
            return None
        return dict(zip(self.classes, median_frequency_weights(scan).tolist(), strict=True))

    def create_loss(self, counted_class_weights=None):
        """The config's weighted sum of losses."""
        losses = []
        for index, item in enumerate(self.config.loss):
            class_weights = item.class_weights
            if class_weights == "median_frequency":
                class_weights = tuple(counted_class_weights[name] for name in self.classes)
            elif class_weights is not None and len(class_weights) != len(self.classes):
                raise UserError(
                    f"loss.{index}.class_weights: {len(class_weights)} weights, but the data has {len(self.classes)} "
                    f"classes: {', '.join(self.classes)}"
                )
            losses.append(item.model_copy(update={"class_weights": class_weights}))
        return SegmentationLoss(losses, self.config.data.ignore_label)

    def create_batches(self, scan, augment=None):
        """Batches of images (B, H, W, C) uint8 with label maps (B, H, W) uint8 or, with border weights, label maps and
        weights (B, H, W, 2) float32.
        """
        augmented = self.create_augmentation(augment, self.config.data.ignore_label, scan.class_pixels)
        border = self._border_weights()

        def prepare(sample, rng):
            sample = augmented(sample, rng)
            return sample.image, sample.label_map if border is None else self._weighted_target(sample, border)

        return Batches(prepare)

    def _weighted_target(self, sample, border):
        label_map, ids = sample.label_map, sample.instance_ids
        if ids is None:
            ids = instances_of_components(label_map, self._background, self.config.data.ignore_label)
        if border.gap:
            apart = separate_touching(ids, border.gap)
            label_map, ids = np.where(apart, self._background, label_map), np.where(apart, 0, ids)
        return np.stack([label_map, border_weights(ids, border.w0, border.sigma)], axis=-1).astype("float32")

    @property
    def _background(self):
        """The label of what lies between objects: the membrane of evaluation.em, `background`, or the first."""
        em = self.config.evaluation.em
        if em is not None and em.membrane in self.classes:
            return self.classes.index(em.membrane)
        return next((i for i, name in enumerate(self.classes) if name.lower() == BACKGROUND), 0)

    def _border_weights(self):
        """The config's border weights: those of the one cross-entropy that has any, or None."""
        found = [item.border_weights for item in self.config.loss if getattr(item, "border_weights", None) is not None]
        if len(found) > 1:
            raise UserError("loss: border_weights are in two losses; expected in one cross_entropy at most")
        return next(iter(found), None)

    def check_training_data(self, scan, dataset):
        """UserError unless augmentation makes all images one size, as batches need.

        Warns where that size is too small for the model's atrous rates.
        """
        occurring = np.count_nonzero(scan.class_pixels)
        if occurring < 2:
            found = "all labelled pixels are of one class" if occurring else "no pixel is labelled"
            raise UserError(
                f"data.train: {found}; expected at least two of "
                f"{', '.join(self.classes)}. Are the masks' values class indices?"
            )
        self.create_scores(extra=True)  # its mistakes are told now, not after training
        if self.config.model.backbone is None and self.config.train.backbone_learning_rate_factor != 1:
            raise UserError("train.backbone_learning_rate_factor: the model has no backbone; expected 1")
        if self._border_weights() is not None:
            name = self.classes[self._background]
            logger.info("border_weights: objects are what isn't %s, and the weights lie between them", name)
        size = training_size(self.config, scan)
        if isinstance(self.config.model, ASPPOptions):
            self._check_atrous_model(size)

    def _check_atrous_model(self, size):
        settings = self.config.model
        # Batch norm of one value, the mean over one image, has no variance to learn.
        if self.config.train.batch_size == 1 and settings.image_pooling and settings.norm != "group":
            raise UserError(
                "train.batch_size: 1 image gives the batch norm behind image pooling a single value a channel; take "
                "2 or more, or model.norm: group, or model.image_pooling: false"
            )
        if size is None:
            return
        rates = effective_rates(settings.aspp_rates, settings.output_stride)
        map_size = min(-(-side // settings.output_stride) for side in size)
        useless = [str(rate) for rate in rates if rate >= map_size]
        if useless:
            logger.warning(
                "model.aspp_rates: training images of %dx%d give maps of %d pixels at output stride %d, so that 3x3 "
                "convolutions of rate %s see only their centre; take larger crops or smaller rates",
                *(*size, map_size, settings.output_stride, " and ".join(useless)),
            )

    def evaluation_options(self, options):
        evaluation = self.config.evaluation
        needs_probabilities = evaluation.em is not None or evaluation.instances is not None
        return replace(options, probabilities=options.probabilities or needs_probabilities)

    def create_inference(self, model):
        if isinstance(model, ModelWithAuxiliary):
            model = model.without_auxiliary()
        settings = self.config.tta
        views = TestTimeAugmentation(settings.scales, settings.flip, self.config.model.minimum_size)
        return SegmentationInference(model, self.config.data.resize, views)

    def create_scores(self, extra=False):
        """extra: bool, the scores of the config's evaluation section too."""
        settings = self.config.evaluation if extra else None
        if extra and settings.instances is not None and self._background:  # objects are what isn't class 0
            raise UserError(
                f"evaluation.instances: the background has to be the first class, but of {', '.join(self.classes)} it "
                "is not; order them by data.classes"
            )
        return SegmentationScores(self.classes, self.config.data.ignore_label, settings)

    def figures(self, result):
        """All scores over the split."""
        return {name: value for name, value in result.items() if isinstance(value, float) and name not in _TIMES}

    def draw_truth_and_found(self, sample, found):
        return tuple(draw_label_map(sample.image, each.label_map, self.classes) for each in (sample, found))

    def create_writer(self, output, options, category_ids=None, voc_xml=False, voc_boxes=None, instance_ids=False):
        if voc_xml or voc_boxes is not None or instance_ids:
            names = "--voc-xml, --voc-boxes, --instance-ids"
            raise UserError(f"{names}: for task: detection; this run's task is segmentation")
        return SegmentationWriter(output, self.classes, options.probabilities)

    def format_scores(self, result):
        per_class = result["per_class"]
        lines = class_lines(per_class, {name: f"{iou:.3f}" for name, iou in per_class.items()})
        count = sum(not math.isnan(iou) for iou in per_class.values())
        lines.append(
            f"{result['split']}: mIoU {result['miou']:.4f} (mean of {count} of {len(per_class)} classes), "
            f"pixel accuracy {result['pixel_accuracy']:.4f}, mean accuracy {result['mean_accuracy']:.4f}, "
            f"frequency-weighted IoU {result['frequency_weighted_iou']:.4f}; "
            f"{result['images']} images, {result['images_per_second']:.1f} images/s"
        )
        return "\n".join(lines + format_extra_scores(result))
