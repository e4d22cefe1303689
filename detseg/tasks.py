"""What a config's task means: its model, training targets, loss, inference, scores and drawings.

The only place that knows both tasks. Training, evaluation and prediction talk to a task through the methods below.
"""

import logging
import math

import numpy as np

from detseg import config as schema
from detseg.backbones import create_backbone
from detseg.backbones.weights import dense_weights
from detseg.data.augment import create_augmentation, resize_sample, resized_size
from detseg.data.palette import voc_palette, write_index_png
from detseg.data.validate import median_frequency_weights
from detseg.drawing import draw_label_map, write_png
from detseg.errors import UserError
from detseg.files import written_whole
from detseg.inference import SegmentationInference
from detseg.segmentation.fcn import create_fcn, load_dense_weights
from detseg.segmentation.losses import CrossEntropy, WeightedSum
from detseg.segmentation.metrics import confusion_matrix, segmentation_scores

logger = logging.getLogger("detseg")


def create_task(config, classes):
    """The task of a config over data with these class names (index = label)."""
    return {"segmentation": SegmentationTask}[config.task](config, tuple(classes))


class SegmentationTask:
    """Semantic segmentation.

    config:   the whole Config.
    classes:  tuple of K class names, index = label.
    """

    score_name = "miou"  # what the best checkpoint is chosen by, higher is better

    def __init__(self, config, classes):
        self.config = config
        self.classes = classes

    def create_model(self, pretrained=True):
        """(model, backbone): raw pixels (B, H, W, C) -> logits (B, H, W, K), and the Backbone inside it.

        pretrained:  bool. False leaves model.weights unread, for a model whose weights are loaded afterwards.
        """
        settings = self.config.model
        weights = settings.weights if pretrained else None
        backbone = create_backbone(
            settings.backbone,
            output_stride=settings.output_stride,
            in_channels=self.config.data.channels,
            weights=weights,
            norm=settings.norm,
            alpha=settings.alpha,
        )
        backbone.freeze(settings.freeze_stages)
        head_channels = settings.head_channels
        if head_channels is None and settings.backbone.startswith("vgg"):
            head_channels = 4096
        model = create_fcn(
            settings.name,
            backbone,
            len(self.classes),
            upsampling=settings.upsampling,
            dropout=settings.dropout,
            head_channels=head_channels,
        )
        if weights is not None and head_channels == 4096 and settings.backbone.startswith("vgg"):
            dense = dense_weights(weights, settings.backbone)
            if dense is None:
                logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", weights)
            else:
                load_dense_weights(model, dense)
        return model, backbone

    def count_class_weights(self, scan):
        """{class name: weight} of median frequency balancing where a loss asks for it, else None.

        scan:  the SplitScan of the training split.
        """
        if all(item.class_weights != "median_frequency" for item in self.config.loss):
            return None
        return dict(zip(self.classes, median_frequency_weights(scan).tolist(), strict=True))

    def create_loss(self, counted_class_weights=None):
        """The config's weighted sum of losses. counted_class_weights: of `count_class_weights`."""
        losses = [
            CrossEntropy(
                ignore_label=self.config.data.ignore_label,
                class_weights=self._class_weights(item.class_weights, counted_class_weights),
                label_smoothing=item.label_smoothing,
            )
            for item in self.config.loss
        ]
        return WeightedSum(losses, [item.weight for item in self.config.loss])

    def _class_weights(self, class_weights, counted):
        if class_weights == "median_frequency":
            return [counted[name] for name in self.classes]
        if class_weights is not None and len(class_weights) != len(self.classes):
            raise UserError(
                f"loss.class_weights: {len(class_weights)} weights, but the data has {len(self.classes)} classes: "
                f"{', '.join(self.classes)}"
            )
        return class_weights

    def create_preparation(self):
        """Function (Sample, numpy Generator) -> (image (H, W, C) uint8, label map (H, W) uint8), augmented."""
        data = self.config.data
        augment = create_augmentation(self.config.augmentation, data.ignore_label)

        def prepare(sample, rng):
            sample = resize_sample(sample, *resized_size(data.resize, *sample.image.shape[:2]))
            sample = augment(sample, rng)
            return sample.image, sample.label_map

        return prepare

    def check_training_data(self, scan):
        """Raises UserError unless augmentation makes all images of the training split one size, as batches need."""
        remedy = "add random_crop: [height, width] or resize: [height, width] to augmentation, or set data.resize"
        for item in reversed(self.config.augmentation):
            if isinstance(item, (schema.RandomCrop, schema.Resize, schema.Albumentations)):
                return  # albumentations' sizes are known only when it runs
            if isinstance(item, schema.ScaleJitter):
                raise UserError(f"augmentation: after scale_jitter images differ in size and form no batch; {remedy}")
        sizes = sorted({resized_size(self.config.data.resize, *size) for size in scan.image_sizes})
        if len(sizes) > 1:
            raise UserError(
                f"data.train: images have {len(sizes)} sizes, {sizes[0]} to {sizes[-1]} (height, width), and form no "
                f"batch; {remedy}"
            )

    def create_inference(self, model, probabilities=False):
        """Function image (H, W, C) -> Prediction."""
        return SegmentationInference(model, self.config.data.resize, probabilities)

    def create_scores(self):
        return SegmentationScores(self.classes, self.config.data.ignore_label)

    def output_suffixes(self, probabilities):
        """The endings, after an image's stem, of the files that `write_prediction` writes."""
        return (".png", "_overlay.png", ".npz") if probabilities else (".png", "_overlay.png")

    def write_prediction(self, prediction, image, output, stem):
        """Writes STEM.png (palette PNG of class indices), STEM_overlay.png and, where the prediction has probabilities,
        STEM.npz (probabilities (H, W, K), classes) into the folder `output`."""
        write_index_png(output / f"{stem}.png", prediction.label_map, voc_palette())
        write_png(output / f"{stem}_overlay.png", draw_label_map(image, prediction.label_map, self.classes))
        if prediction.probabilities is not None:
            with written_whole(output / f"{stem}.npz") as path:
                np.savez_compressed(path, probabilities=prediction.probabilities, classes=np.array(self.classes))

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
        return "\n".join(lines)


class SegmentationScores:
    """Collects a split's confusion matrix, image by image."""

    def __init__(self, classes, ignore_label):
        self._classes = classes
        self._ignore_label = ignore_label
        self._confusion = 0

    def update(self, sample, prediction):
        self._confusion = self._confusion + confusion_matrix(
            sample.label_map, prediction.label_map, len(self._classes), self._ignore_label
        )

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan."""
        scores = segmentation_scores(self._confusion)
        iou = scores.pop("iou")
        return scores | {"per_class": dict(zip(self._classes, iou.tolist(), strict=True))}
