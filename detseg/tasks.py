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
from detseg.inference import SegmentationInference, TestTimeAugmentation
from detseg.segmentation.auxiliary import ModelWithAuxiliary
from detseg.segmentation.deeplabv3 import create_deeplabv3, effective_rates
from detseg.segmentation.fcn import create_fcn, load_dense_weights
from detseg.segmentation.losses import LOSSES, WeightedSum
from detseg.segmentation.metrics import confusion_matrix, segmentation_scores

logger = logging.getLogger("detseg")


VGG_HEAD_CHANNELS = 4096  # of fc6 and fc7, as in the paper


def _create_fcn(settings, backbone, class_count):
    head_channels = settings.head_channels
    if head_channels is None and settings.backbone.startswith("vgg"):
        head_channels = VGG_HEAD_CHANNELS
    return create_fcn(settings.name, backbone, class_count, settings.upsampling, settings.dropout, head_channels)


def _create_deeplabv3(settings, backbone, class_count):
    decoder = None
    if isinstance(settings, schema.DeepLabV3PlusModel):
        decoder = (settings.decoder_channels, settings.low_level_channels)
    return create_deeplabv3(
        backbone,
        class_count,
        aspp_rates=settings.aspp_rates,
        aspp_channels=settings.aspp_channels,
        image_pooling=settings.image_pooling,
        separable=settings.separable,
        dropout=settings.dropout,
        norm="group" if settings.norm == "group" else "batch",  # frozen is for layers that have learned something
        decoder=decoder,
        auxiliary_weight=settings.auxiliary_weight,
    )


# model.name -> factory(the config's model section, backbone, number of classes) -> model
MODELS = {
    "fcn32s": _create_fcn,
    "fcn16s": _create_fcn,
    "fcn8s": _create_fcn,
    "deeplabv3": _create_deeplabv3,
    "deeplabv3plus": _create_deeplabv3,
}


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
            activation=settings.activation,
            variant=settings.variant,
            multi_grid=settings.multi_grid,
        )
        if backbone.unused_layers:
            logger.info("model.weights: no use here for its layers %s", ", ".join(backbone.unused_layers))
        backbone.freeze(settings.freeze_stages)
        model = MODELS[settings.name](settings, backbone, len(self.classes))
        if weights is not None and isinstance(settings, schema.FCNModel):
            self._load_dense_weights(model, weights)
        return model, backbone

    def _load_dense_weights(self, model, weights):
        """The dense layers of a VGG's weights as fc6 and fc7, where the model has these as in the paper."""
        backbone = self.config.model.backbone
        if not backbone.startswith("vgg") or model.get_layer("fc6").filters != VGG_HEAD_CHANNELS:
            return
        dense = dense_weights(weights, backbone)
        if dense is None:
            logger.warning("model.weights: %s has no dense layers: fc6 and fc7 start at random", weights)
        else:
            load_dense_weights(model, dense)

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
                    **item.model_dump(exclude={"name", "weight", "class_weights"}),  # the function's own options
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
        """Function (Sample, numpy Generator) -> (image (H, W, C) uint8, label map (H, W) uint8), augmented.

        scan:  the SplitScan of the training split.
        """
        data = self.config.data
        augment = create_augmentation(self.config.augmentation, data.ignore_label, scan.class_pixels)

        def prepare(sample, rng):
            sample = resize_sample(sample, *resized_size(data.resize, *sample.image.shape[:2]))
            sample = augment(sample, rng)
            return sample.image, sample.label_map

        return prepare

    def check_training_data(self, scan):
        """Raises UserError unless augmentation makes all images of the training split one size, as batches need.

        Warns where that size is too small for the model's atrous rates.
        """
        size = self._training_size(scan)
        if isinstance(self.config.model, schema.FCNModel):
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

    def _training_size(self, scan):
        """(height, width) of all training images, None where only albumentations knows."""
        remedy = "add random_crop: [height, width] or resize: [height, width] to augmentation, or set data.resize"
        for item in reversed(self.config.augmentation):
            if isinstance(item, schema.Albumentations):
                return None  # known only when it runs
            if isinstance(item, schema.RandomCrop):
                return item.size
            if isinstance(item, schema.Resize):
                return item.height, item.width
            if isinstance(item, schema.ScaleJitter):
                raise UserError(f"augmentation: after scale_jitter images differ in size and form no batch; {remedy}")
        sizes = sorted({resized_size(self.config.data.resize, *size) for size in scan.image_sizes})
        if len(sizes) > 1:
            raise UserError(
                f"data.train: images have {len(sizes)} sizes, {sizes[0]} to {sizes[-1]} (height, width), and form no "
                f"batch; {remedy}"
            )
        return sizes[0]

    def create_inference(self, model, probabilities=False, tta=False):
        """Function image (H, W, C) -> Prediction.

        probabilities:  bool, whether predictions carry them.
        tta:            bool, whether they are averaged over the views of the config's `tta`.
        """
        if isinstance(model, ModelWithAuxiliary):
            model = model.without_auxiliary()
        views = None
        if tta:
            settings = self.config.tta
            stride = self.config.model.output_stride
            views = TestTimeAugmentation(settings.scales, settings.flip == "horizontal", minimum_size=stride)
        return SegmentationInference(model, self.config.data.resize, probabilities, views)

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
