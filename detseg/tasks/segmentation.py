"""Semantic segmentation as a task: from a config to model, targets, loss, inference, scores and drawings."""

import logging
import math
from dataclasses import replace

import numpy as np

from detseg import config as schema
from detseg.data.augment import create_augmentation, resize_sample, resized_size
from detseg.data.classes import BACKGROUND
from detseg.data.scan import median_frequency_weights
from detseg.errors import UserError
from detseg.inference.prediction import PLAIN
from detseg.inference.segmentation import SegmentationInference
from detseg.inference.tiling import Tiler, tiled_forward
from detseg.inference.tta import TestTimeAugmentation
from detseg.report.drawing import draw_label_map
from detseg.segmentation.auxiliary import ModelWithAuxiliary
from detseg.segmentation.deeplabv3 import effective_rates
from detseg.segmentation.losses import LOSSES, WeightedSum
from detseg.segmentation.weight_maps import border_weights, instances_of_components, separate_touching
from detseg.tasks.segmentation_models import create_segmentation_model, minimum_size
from detseg.tasks.segmentation_results import SegmentationWriter
from detseg.tasks.segmentation_scores import SegmentationScores, create_extra_scores, format_extra_scores
from detseg.tasks.training_size import training_size

logger = logging.getLogger("detseg")


class SegmentationTask:
    """Semantic segmentation.

    config:   the whole Config.
    classes:  tuple of K class names, index = label.
    """

    score_name = "miou"  # what the best checkpoint is chosen by, higher is better
    score_label = "mIoU"
    one_size = True  # of the images of a batch
    shown_from = None  # score; see DetectionTask

    def __init__(self, config, classes):
        self.config = config
        self.classes = classes

    def create_model(self, pretrained=True):
        """(model, backbone): raw pixels (B, H, W, C) -> logits (B, H, W, K), and the Backbone inside it or None.

        pretrained:  bool. False leaves model.weights unread, for a model whose weights are loaded afterwards.
        """
        settings = self.config.model
        weights = settings.weights if pretrained else None
        return create_segmentation_model(settings, self.config.data.channels, len(self.classes), weights)

    def count_class_weights(self, scan):
        """{class name: weight} of median frequency balancing where a loss asks for it, else None.

        scan:  the SplitScan of the training split.
        """
        if all(item.class_weights != "median_frequency" for item in self.config.loss):
            return None
        return dict(zip(self.classes, median_frequency_weights(scan).tolist(), strict=True))

    def create_loss(self, counted_class_weights=None):
        """The config's weighted sum of losses. counted_class_weights: of `count_class_weights`."""
        losses = []
        for index, item in enumerate(self.config.loss):
            losses.append(
                LOSSES[item.name](
                    ignore_label=self.config.data.ignore_label,
                    class_weights=self._class_weights(index, counted_class_weights),
                    **item.model_dump(exclude={"name", "weight", "class_weights", "border_weights"}),  # its own options
                )
            )
        return WeightedSum(losses, [item.weight for item in self.config.loss])

    def _class_weights(self, index, counted):
        class_weights = self.config.loss[index].class_weights
        if class_weights == "median_frequency":
            return [counted[name] for name in self.classes]
        if class_weights is not None and len(class_weights) != len(self.classes):
            raise UserError(
                f"loss.{index}.class_weights: {len(class_weights)} weights, but the data has {len(self.classes)} "
                f"classes: {', '.join(self.classes)}"
            )
        return class_weights

    def create_preparation(self, scan):
        """Function (Sample, numpy Generator) -> (image (H, W, C) uint8, target), augmented.

        The target is the label map (H, W) uint8 or, with border weights, label map and weights (H, W, 2) float32.

        scan:  the SplitScan of the training split.
        """
        data = self.config.data
        augment = create_augmentation(self.config.augmentation, data.ignore_label, scan.class_pixels)
        border = self._border_weights()

        def prepare(sample, rng):
            sample = resize_sample(sample, *resized_size(data.resize, *sample.image.shape[:2]))
            sample = augment(sample, rng)
            if border is None:
                return sample.image, sample.label_map
            return sample.image, self._weighted_target(sample, border)

        return prepare

    def _weighted_target(self, sample, border):
        data, ids = self.config.data, sample.instance_ids
        if ids is None:
            ids = instances_of_components(sample.label_map, self._background, data.ignore_label)
        label_map = sample.label_map
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
        return found[0] if found else None

    def create_collation(self, scan):
        """None: samples are stacked."""
        return None

    def image_groups(self, scan):
        """None: all images get one size."""
        return None

    def check_training_data(self, scan, dataset):
        """Raises UserError unless augmentation makes all images of the training split one size, as batches need.

        Warns where that size is too small for the model's atrous rates.
        """
        if np.count_nonzero(scan.class_pixels) < 2:
            raise UserError(
                "data.train: all labelled pixels are of one class; expected at least two of "
                f"{', '.join(self.classes)}. Are the masks' values class indices?"
            )
        self.create_scores(extra=True)  # its mistakes are told now, not after training
        if self.config.model.backbone is None and self.config.train.backbone_learning_rate_factor != 1:
            raise UserError("train.backbone_learning_rate_factor: the model has no backbone; expected 1")
        if self._border_weights() is not None:
            name = self.classes[self._background]
            logger.info("border_weights: objects are what isn't %s, and the weights lie between them", name)
        size = training_size(self.config, scan)
        if not isinstance(self.config.model, schema.AtrousModel):
            return
        self._check_image_pooling()
        if size is not None:
            self._check_atrous_rates(size)

    def _check_image_pooling(self):
        """Batch norm of one value, the mean over one image, has no variance to learn."""
        settings = self.config.model
        if self.config.train.batch_size == 1 and settings.image_pooling and settings.norm != "group":
            raise UserError(
                "train.batch_size: 1 image gives the batch norm behind image pooling a single value a channel; take "
                "2 or more, or model.norm: group, or model.image_pooling: false"
            )

    def _check_atrous_rates(self, size):
        settings = self.config.model
        rates = effective_rates(settings.aspp_rates, settings.output_stride)
        map_size = min(-(-side // settings.output_stride) for side in size)
        useless = [str(rate) for rate in rates if rate >= map_size]
        if useless:
            logger.warning(
                "model.aspp_rates: training images of %dx%d give maps of %d pixels at output stride %d, so that 3x3 "
                "convolutions of rate %s see only their centre; take larger crops or smaller rates",
                *(*size, map_size, settings.output_stride, " and ".join(useless)),
            )

    def check_options(self, options):
        """UserError for PredictionOptions that segmentation has not."""
        asked = {
            "--score-threshold": options.score_threshold is not None,
            "--max-detections": options.max_detections is not None,
            "--voc-xml": options.voc_xml,
            "--voc-boxes": options.voc_boxes is not None,
        }
        wrong = [name for name, is_asked in asked.items() if is_asked]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: for task: detection; this run's task is segmentation")

    def check_validation_data(self, scan):
        """Nothing: a split without labelled pixels scores nan, which `scan_split` has warned of."""

    def describe_training(self, model, scan, dataset):
        """Nothing to add."""

    def create_inference(self, model, options=PLAIN, tiler=None):
        """Function image (H, W, C) -> Prediction with a label map.

        options:  PredictionOptions.
        tiler:    None, or the model's Tiler (`create_tiler`), through which images go tile by tile.
        """
        self.check_options(options)
        if isinstance(model, ModelWithAuxiliary):
            model = model.without_auxiliary()
        views = None
        if options.tta:
            settings = self.config.tta
            views = TestTimeAugmentation(settings.scales, settings.flip, minimum_size(self.config.model))
        forward = None if tiler is None else tiled_forward(tiler, options.probabilities or options.tta)
        return SegmentationInference(model, self.config.data.resize, options.probabilities, views, forward)

    def create_tiler(self, model, tile, memory_bytes):
        """The Tiler of a model: tile "auto" or pixels, from memory_bytes for one tile."""
        if isinstance(model, ModelWithAuxiliary):
            model = model.without_auxiliary()
        return Tiler(model, tile, memory_bytes)

    def create_scores(self, extra=False):
        """What collects a split's scores. extra: bool, those of the config's evaluation section too."""
        ignore_label = self.config.data.ignore_label
        if not extra:
            return SegmentationScores(self.classes, ignore_label)
        self._check_background()
        parts = create_extra_scores(self.config.evaluation, self.classes, ignore_label)
        return SegmentationScores(self.classes, ignore_label, parts)

    def evaluation_options(self, options):
        """The options that `create_scores(extra=True)` needs beside those given."""
        evaluation = self.config.evaluation
        needs_probabilities = evaluation.em is not None or evaluation.instances is not None
        return replace(options, probabilities=options.probabilities or needs_probabilities)

    def figures(self, result):
        """{name: float} of a result of `evaluate` to follow over the epochs, the one that decides first."""
        return {name: value for name, value in result.items() if isinstance(value, float)}

    def write_scores(self, scores, dataset, folder, name):
        """Nothing beside FOLDER/NAME.json; returns the paths, none."""
        return []

    def draw_truth_and_found(self, sample, found):
        """Two drawings, uint8 (H, W', 3): a Sample's label map, and that of its Prediction."""
        return tuple(draw_label_map(sample.image, each.label_map, self.classes) for each in (sample, found))

    def _check_background(self):
        """Objects are what isn't class 0."""
        if self._background and self.config.evaluation.instances is not None:
            raise UserError(
                f"evaluation.instances: the background has to be the first class, but of {', '.join(self.classes)} it "
                "is not; order them by data.classes"
            )

    def create_writer(self, output, options, category_ids=None):
        """What writes predictions into a folder."""
        self.check_options(options)
        return SegmentationWriter(output, self.classes, options.probabilities)

    def format_scores(self, result):
        """A result of `evaluate` as lines of text: every class from best to worst, and the scores."""
        per_class = result["per_class"]
        defined = {name: iou for name, iou in per_class.items() if not math.isnan(iou)}
        width = max(map(len, per_class))
        lines = [f"{name:<{width}}  {iou:.3f}" for name, iou in sorted(defined.items(), key=lambda item: -item[1])]
        absent = [name for name in per_class if name not in defined]
        if absent:
            lines.append(f"absent from this split and left out of the mean: {', '.join(absent)}")
        lines.append(
            f"{result['split']}: mIoU {result['miou']:.4f} (mean of {len(defined)} of {len(per_class)} classes), "
            f"pixel accuracy {result['pixel_accuracy']:.4f}, mean accuracy {result['mean_accuracy']:.4f}, "
            f"frequency-weighted IoU {result['frequency_weighted_iou']:.4f}; "
            f"{result['images']} images, {result['images_per_second']:.1f} images/s"
        )
        return "\n".join(lines + format_extra_scores(result))
