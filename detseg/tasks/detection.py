"""Object detection as a task: from a config to model, ground truth, inference, scores and drawings."""

import functools
import logging
from pathlib import Path

import numpy as np

from detseg.data.augment import create_augmentation, resize_sample, resized_size
from detseg.data.buckets import bucket_groups, describe_buckets, object_arrays, object_batch, shape_buckets
from detseg.detection.anchor_recall import anchor_recall
from detseg.errors import UserError
from detseg.inference.detection import DetectionInference
from detseg.inference.prediction import PLAIN
from detseg.report.drawing_detections import draw_detections
from detseg.segmentation.instances import encode_masks
from detseg.tasks.detection_models import create_detector
from detseg.tasks.detection_results import DetectionWriter
from detseg.tasks.detection_scores import DetectionTaskScores, format_detection_scores
from detseg.tasks.training_size import training_shapes

logger = logging.getLogger("detseg")

IGNORE_LABEL = 255  # what augmentation gives padding in label maps, of which detection has none
LOW_RECALL = 0.9  # of anchors: below it there is a warning


class DetectionTask:
    """Object detection.

    config:   the whole DetectionConfig.
    classes:  tuple of K class names, index = label.
    """

    score_name = "AP"  # COCO's; what the best checkpoint is chosen by, higher is better
    score_label = "AP"
    one_size = False  # images of a batch are padded to one size

    def __init__(self, config, classes):
        self.config = config
        self.classes = classes
        # Score of the detections that are drawn unless asked otherwise; figures are made from lower ones too.
        self.shown_from = max(0.5, config.model.score_threshold)

    def create_model(self, pretrained=True):
        """(detector, backbone): see `detseg.tasks.detection_models`.

        pretrained:  bool. False leaves model.weights unread, for a model whose weights are loaded afterwards.
        """
        settings = self.config.model
        weights = settings.weights if pretrained else None
        return create_detector(settings, self.config.data.channels, len(self.classes), weights, self.config.seed)

    def count_class_weights(self, scan):
        """None: no loss of a detector has class weights."""
        return None

    def create_loss(self, counted_class_weights=None):
        """None: a detector computes its losses itself."""
        return None

    def create_preparation(self, scan):
        """Function (Sample, numpy Generator) -> `object_arrays` of the augmented sample. Images differ in size;
        `create_collation` makes batches of them.
        """
        resize = self.config.data.resize
        augment = create_augmentation(self.config.augmentation, IGNORE_LABEL)

        def prepare(sample, rng):
            return object_arrays(augment(resize_sample(sample, *resized_size(resize, *sample.image.shape[:2])), rng))

        return prepare

    def create_collation(self, scan):
        """Function: list of what the preparation makes -> (images, ground truth) of a batch."""
        return functools.partial(object_batch, buckets=self._buckets(scan), max_objects=self._max_objects(scan))

    def image_groups(self, scan):
        """int (N,): images of one number are of similar shape, and are batched together; None where augmentation gives
        all of them one size."""
        if training_shapes(self.config.augmentation).size is not None:
            return None
        return bucket_groups(scan.image_sizes, self.config.data.resize, self._buckets(scan))

    def _buckets(self, scan):
        shapes = training_shapes(self.config.augmentation)
        return shape_buckets(self.config.data.resize, shapes.size, scan.image_sizes, shapes.scale, shapes.is_turned)

    def _max_objects(self, scan):
        return max(self.config.model.max_objects or int(scan.object_counts.max()), 1)

    def check_training_data(self, scan, dataset):
        """Raises UserError for what no detector can be trained on."""
        if not scan.class_objects.any():
            raise UserError(f"data.train: no object in {len(dataset)} images; expected boxes to learn from")
        room = self.config.model.max_objects
        over = np.flatnonzero(scan.object_counts > (room or np.inf))
        if len(over):
            worst = over[scan.object_counts[over].argmax()]
            raise UserError(
                f"model.max_objects: {room}, but {len(over)} of {len(dataset)} training images have more objects, "
                f"{dataset.names[worst]} {scan.object_counts[worst]}; expected null or at least that"
            )

    def check_validation_data(self, scan):
        """Raises UserError where no score could choose the best weights."""
        if not scan.class_objects.any():
            raise UserError("data.val: no object in its images, so no AP could choose the best weights; expected some")

    def describe_training(self, model, scan, dataset):
        """Logs which shapes batches have, and warns where the model's anchors fit few of the training objects."""
        shapes, buckets = training_shapes(self.config.augmentation), self._buckets(scan)
        groups = self.image_groups(scan) if shapes.size is None else np.zeros(len(dataset), int)
        groups = None if shapes.varies else groups
        logger.info(describe_buckets(buckets, groups, self.config.train.batch_size))
        boxes = [np.zeros((0, 4), np.float32)]
        for i, size in enumerate(scan.image_sizes):
            objects = dataset.objects(i).resized(size, resized_size(self.config.data.resize, *size))
            boxes.append(objects.boxes[~objects.is_crowd])
        recall = anchor_recall(model.anchors, np.concatenate(boxes))
        if recall.share < LOW_RECALL:
            logger.warning(
                "model.anchor_sizes: anchors reach %.1f%% of the training objects (before augmentation) at IoU %.1f; "
                "those they miss are %s; add sizes or ratios that fit",
                *(100 * recall.share, recall.iou, recall.describe_missed()),
            )

    def check_options(self, options):
        """UserError for PredictionOptions that detection has not."""
        asked = {
            "--tta": options.tta,
            "--tile": options.tile is not None,
            "--save-probabilities": options.probabilities,
        }
        wrong = [name for name, is_asked in asked.items() if is_asked]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: for task: segmentation; this run's task is detection")

    def create_inference(self, model, options=PLAIN, tiler=None):
        """Function image (H, W, C) -> Prediction with boxes, labels and scores. options: PredictionOptions."""
        self.check_options(options)
        return DetectionInference(model, self.config.data.resize, options.score_threshold, options.max_detections)

    def evaluation_options(self, options):
        """The options that `create_scores(extra=True)` needs beside those given."""
        return options

    def create_scores(self, extra=False, masks=False):
        """What collects a split's scores, of masks too where asked for.

        extra:  bool, for files and drawings too (`write_scores`).
        """
        return DetectionTaskScores(self.classes, masks, keep_predictions=extra)

    def figures(self, result):
        """{name: float} of a result of `evaluate` to follow over the epochs, the one that decides first."""
        coco, voc = result["coco"], result["voc"]
        return {name: coco[name] for name in ("AP", "AP50", "AP75")} | {"mAP": voc["mAP"]}

    def write_scores(self, scores, dataset, folder, name):
        """Writes detections, curves and confusion matrix beside FOLDER/NAME.json; returns the paths."""
        return scores.write(dataset, folder, name, self.voc_list(dataset))

    def draw_truth_and_found(self, sample, found):
        """Two drawings, uint8 (H, W, 3) of one size: a Sample's objects, and those found in it of scores above
        `shown_from` (Prediction or Detections); with masks where there are some.
        """
        objects, shown = sample.objects, np.flatnonzero(np.asarray(found.scores) > self.shown_from)
        true_masks = None if objects.masks is None else encode_masks(objects.masks)
        masks = None if found.masks is None else [found.masks[i] for i in shown]
        parts = (found.boxes[shown], found.labels[shown], self.classes, found.scores[shown], masks)
        return (
            draw_detections(sample.image, objects.boxes, objects.labels, self.classes, masks=true_masks),
            draw_detections(sample.image, *parts),
        )

    def voc_list(self, dataset):
        """The name of the list in VOC's layout that a dataset reads; None in others."""
        return Path(getattr(self.config.data, dataset.split)).name if self.config.data.format == "voc" else None

    def create_writer(self, output, options, category_ids=None):
        """What writes predictions into a folder. category_ids: of the run's data, index = label."""
        self.check_options(options)
        if options.voc_boxes is not None and not options.voc_xml:
            raise UserError("--voc-boxes: says what --voc-xml writes; expected that too")
        voc_boxes = options.voc_boxes or getattr(self.config.data, "voc_boxes", "inclusive")
        return DetectionWriter(output, self.classes, category_ids, options.voc_xml, voc_boxes == "inclusive")

    def format_scores(self, result):
        """A result of `evaluate` as lines of text: every class from best to worst, and the scores."""
        return format_detection_scores(result)
