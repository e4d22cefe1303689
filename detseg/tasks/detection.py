"""Object detection as a task: from a config to model, ground truth, inference, scores and drawings."""

import functools
import logging
from pathlib import Path

import numpy as np

from detseg.data.augment import resized_size
from detseg.data.buckets import bucket_groups, describe_buckets, object_arrays, object_batch, shape_buckets
from detseg.data.loader import Batches
from detseg.data.masks import encode_masks
from detseg.data.proposals import WithProposals, load_proposals
from detseg.detection.anchors import anchor_recall
from detseg.detection.fast_rcnn import FastRCNN
from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.mask_head import CROP_SIZE
from detseg.detection.mask_rcnn import MaskRCNN
from detseg.detection.rcnn import RCNN
from detseg.detection.retinanet import RetinaNet
from detseg.detection.selective_search import selective_search
from detseg.errors import UserError
from detseg.inference.detection import DetectionInference
from detseg.inference.prediction import DetectionPredictionOptions
from detseg.pretrained.load import load_whole_model, read_whole_model
from detseg.report.drawing import draw_detections
from detseg.report.drawing_proposals import draw_proposals, draw_regression
from detseg.tasks.base import Task
from detseg.tasks.detection_scores import DetectionTaskScores, format_detection_scores
from detseg.tasks.training_size import training_shapes
from detseg.tasks.writers import DetectionWriter

logger = logging.getLogger("detseg")

# model.name -> class
DETECTORS = {
    "rcnn": RCNN,
    "fast_rcnn": FastRCNN,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "retinanet": RetinaNet,
}

IGNORE_LABEL = 255  # what augmentation gives padding in label maps, of which detection has none
LOW_RECALL = 0.9  # of anchors: below it there is a warning
SHOWN_FROM = 0.5  # score of the detections that are shown unless asked otherwise; figures are made from lower ones too


class DetectionTask(Task):
    """Object detection. See `Task`."""

    name = "detection"
    options_kind = DetectionPredictionOptions

    @property
    def has_masks(self):
        """Whether the model learns from objects' masks and says some."""
        return self.config.model is not None and self.config.model.reads_masks

    @property
    def score_name(self):
        return "mask_AP" if self.has_masks else "AP"  # COCO's

    @property
    def score_label(self):
        return "mask AP" if self.has_masks else "AP"

    def create_model(self, pretrained=True):
        config, options = self.config, self.config.model
        create = DETECTORS[options.name].create
        whole = read_whole_model(options) if pretrained else None
        model = create(options, len(self.classes), config.data.channels, config.seed, pretrained and whole is None)
        if whole is not None:
            load_whole_model(model, model.backbone, model.options, self.classes, whole)
        return model, model.backbone

    def create_batches(self, scan, augment=None):
        """Batches of images of several sizes, padded to one of a few shapes, with ground truth: see `object_batch`."""
        shapes, buckets = self._shapes_and_buckets(scan)
        augmented = self.create_augmentation(augment, IGNORE_LABEL)
        room = max(self.config.model.max_objects or int(scan.object_counts.max()), 1)
        most = self.config.model.train_proposals if self.config.model.reads_proposals else None
        mask_size = CROP_SIZE if self.has_masks else None
        return Batches(
            prepare=lambda sample, rng: object_arrays(augmented(sample, rng), mask_size),
            collate=functools.partial(object_batch, buckets=buckets, max_objects=room, max_proposals=most),
            groups=bucket_groups(scan.image_sizes, self.config.data.resize, buckets) if shapes.size is None else None,
        )

    def _shapes_and_buckets(self, scan):
        shapes, resize = training_shapes(self.config.augmentation), self.config.data.resize
        return shapes, shape_buckets(resize, shapes.size, scan.image_sizes, shapes.scale, shapes.is_turned)

    def complete_data(self, dataset, scan):
        """With the proposals of data.proposals, where the model is given some and the data set has none of its own.

        UserError where the model needs masks and there are none.
        """
        if self.has_masks and not dataset.has_masks:
            raise UserError(
                f"data.{dataset.split}: its objects have no masks, which model.name: {self.config.model.name} learns "
                "from and is scored by; expected data.masks: true, or Objects with masks"
            )
        model, files = self.config.model, self.config.data.proposals
        if model is None or not model.reads_proposals or (files is None and dataset.proposals(0) is not None):
            return dataset
        if files is None:
            raise UserError(
                f"data.proposals: null, but model.name: {model.name} is given proposals; name a folder for them, such "
                "as {folder: proposals/mine}, and run `detseg proposals --config FILE`"
            )
        proposals = load_proposals(self.config.data, dataset, scan.image_sizes)
        if without := np.count_nonzero(np.diff(proposals.starts) == 0):
            logger.info("split %r: %d of %d images have no proposals", dataset.split, without, len(dataset))
        return WithProposals(dataset, proposals)

    def propose(self, image):
        """Proposals (P, 4) for an image that comes without, by Selective Search as data.proposals says."""
        files = self.config.data.proposals
        if files is not None and files.mode == "file":
            raise UserError(
                "data.proposals.mode: file; this image is not one of its splits', so there are no proposals for it; "
                "--set data.proposals.mode=fast finds some"
            )
        mode, seed = ("fast", 0) if files is None else (files.mode, files.seed)
        return selective_search(image, mode, seed)

    def check_training_data(self, scan, dataset):
        """UserError where there is no object, or an image has too many."""
        if not scan.class_objects.any():
            raise UserError(f"data.train: no object in {len(dataset)} images; expected boxes to learn from")
        if self.has_masks and scan.maskless == scan.object_counts.sum():
            raise UserError(f"data.train: no mask in {len(dataset)} images has a pixel; expected masks to learn from")
        self.check_room(scan, dataset)

    def check_room(self, scan, dataset):
        """UserError where an image has more objects than batches have room for."""
        room = self.config.model.max_objects
        over = np.flatnonzero(scan.object_counts > (room or np.inf))
        if len(over):
            worst = over[scan.object_counts[over].argmax()]
            raise UserError(
                f"model.max_objects: {room}, but {len(over)} of {len(dataset)} training images have more objects, "
                f"{dataset.names[worst]} {scan.object_counts[worst]}; expected null or at least that"
            )

    def check_validation_data(self, scan):
        if not scan.class_objects.any():
            raise UserError("data.val: no object in its images, so no AP could choose the best weights; expected some")

    def describe_training(self, model, scan, dataset):
        """Logs which shapes batches have, and warns where the model's anchors fit few of the training objects."""
        resize, (shapes, buckets) = self.config.data.resize, self._shapes_and_buckets(scan)
        groups = None if shapes.varies else bucket_groups(scan.image_sizes, resize, buckets)
        logger.info(describe_buckets(buckets, groups, self.config.train.batch_size))
        boxes = scan.boxes_at([resized_size(resize, *size) for size in scan.image_sizes])
        if model.options.reads_proposals:
            return
        recall, missed = anchor_recall(model.anchors, boxes)
        if recall < LOW_RECALL:
            width, height = np.median(missed[:, 2:] - missed[:, :2], axis=0)
            logger.warning(
                "model.anchor_sizes: anchors reach %.1f%% of the training objects (before augmentation) at IoU 0.5; "
                "those they miss are about %.0fx%.0f (width x height, medians of %d); add sizes or ratios that fit",
                *(100 * recall, width, height, len(missed)),
            )

    def load_rest(self, model, folder):
        """Compresses the dense layers that model.truncated_svd names."""
        if getattr(self.config.model, "truncated_svd", None) is not None:
            model.compress_head(self.config.model.truncated_svd)

    def shown_options(self):
        """The score from which detections are drawn and written."""
        own = self.config.model.score_threshold if self.config.model else 0.0
        return {"score_threshold": max(SHOWN_FROM, own)}

    def create_inference(self, model):
        propose = self.propose if model.options.reads_proposals else None
        return DetectionInference(model, self.config.data.resize, propose)

    def create_scores(self, extra=False, masks=False):
        """extra: bool, for files and drawings too (`write_scores`). masks: bool, scores of masks too."""
        most = self.config.model and self.config.model.max_detections
        return DetectionTaskScores(self.classes, masks or self.has_masks, extra, most)

    def figures(self, result):
        coco, voc, masks = result["coco"], result["voc"], result.get("coco_masks", {})
        figures = {name: coco[name] for name in ("AP", "AP50", "AP75")} | {"mAP": voc["mAP"]}
        return figures | {f"mask_{name}": masks[name] for name in ("AP", "AP50", "AP75") if name in masks}

    def write_scores(self, scores, dataset, folder, name):
        return scores.write(dataset, folder, name, self.voc_list(dataset))

    def draw_truth_and_found(self, sample, found):
        """Of a Sample's objects, and of those found that are shown; with masks where there are some."""
        threshold = self.shown_options()["score_threshold"]
        objects, shown = sample.objects, np.flatnonzero(np.asarray(found.scores) > threshold)
        true_masks = None if objects.masks is None else encode_masks(objects.masks)
        masks = None if found.masks is None else [found.masks[i] for i in shown]
        truth = (objects.boxes, objects.labels, self.classes, None, true_masks)
        parts = (found.boxes[shown], found.labels[shown], self.classes, found.scores[shown], masks)
        return draw_detections(sample.image, *truth), draw_detections(sample.image, *parts)

    def draw_more(self, sample, found):
        """The proposals, and the detections that are shown before and after they were moved from theirs."""
        panels = []
        if sample.proposals is not None:
            panels.append(("proposals", draw_proposals(sample.image, sample.proposals, sample.objects.boxes)))
        if found.proposals is not None:
            shown = np.flatnonzero(np.asarray(found.scores) > self.shown_options()["score_threshold"])
            parts = [part[shown] for part in (found.proposals, found.boxes, found.labels)]
            drawing = draw_regression(sample.image, *parts, self.classes, found.scores[shown])
            panels.append(("before and after regression", drawing))
        return panels

    def voc_list(self, dataset):
        """The name of the list in VOC's layout that a dataset reads; None in others."""
        return Path(getattr(self.config.data, dataset.split)).name if self.config.data.format == "voc" else None

    def create_writer(self, output, options, category_ids=None, voc_xml=False, voc_boxes=None, instance_ids=False):
        if instance_ids and not self.has_masks:
            raise UserError(f"--instance-ids: model.name: {self.config.model.name} says no masks; mask_rcnn does")
        if voc_boxes is not None and not voc_xml:
            raise UserError("--voc-boxes: says what --voc-xml writes; expected that too")
        voc_boxes = voc_boxes or getattr(self.config.data, "voc_boxes", "inclusive")
        is_inclusive = voc_boxes == "inclusive"
        return DetectionWriter(output, self.classes, category_ids, voc_xml, is_inclusive, instance_ids)

    def format_scores(self, result):
        return format_detection_scores(result)
