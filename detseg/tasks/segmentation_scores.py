"""What a segmentation model is scored by: collected image by image over a split."""

import numpy as np

from detseg.errors import UserError
from detseg.metrics.boundary import BoundaryScores
from detseg.metrics.em import EMScores
from detseg.metrics.instances import InstanceScores
from detseg.metrics.semantic import confusion_matrix, dice_scores, segmentation_scores
from detseg.segmentation.instances import encode_instances, find_class_instances
from detseg.segmentation.weight_maps import instances_of_components


def create_extra_scores(settings, classes, ignore_label):
    """The scores that the config's evaluation section asks for beside mIoU: objects like `BoundaryPart`.

    Each has update(sample, prediction, true_instances, image_id) and result(), the part of evaluation/SPLIT.json that
    it makes.
    """
    parts = []
    if settings.boundary is not None:
        parts.append(BoundaryPart(classes, settings.boundary.tolerance, ignore_label))
    if settings.em is not None:
        parts.append(EMPart(classes, settings.em.membrane, ignore_label))
    if settings.instances is not None:
        parts.append(InstancePart(classes, settings.instances, ignore_label))
    return parts


class SegmentationScores:
    """Collects a split's confusion matrix, and `extra` scores, image by image."""

    def __init__(self, classes, ignore_label, extra=()):
        self._classes = classes
        self._ignore_label = ignore_label
        self._confusion = 0
        self._extra = extra

    def update(self, sample, prediction, true_instances, image_id=None):
        """Adds an image.

        true_instances:  function of no arguments -> (masks, labels, crowds) of the data set's objects, or None where it
                         has only label maps.
        image_id:        the source's, or None where it has none. See `CocoScores.update_boxes`.
        """
        self._confusion = self._confusion + confusion_matrix(
            sample.label_map, prediction.label_map, len(self._classes), self._ignore_label
        )
        for part in self._extra:
            part.update(sample, prediction, true_instances, image_id)

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan."""
        scores = segmentation_scores(self._confusion) | dice_scores(self._confusion)
        iou, dice = scores.pop("iou"), scores.pop("dice")
        result = scores | {
            "per_class": dict(zip(self._classes, iou.tolist(), strict=True)),
            "per_class_dice": dict(zip(self._classes, dice.tolist(), strict=True)),
        }
        for part in self._extra:
            result |= part.result()
        return result


class BoundaryPart:
    """The key `boundary`."""

    def __init__(self, classes, tolerance, ignore_label):
        self._classes = classes
        self._tolerance = tolerance
        self._scores = BoundaryScores(len(classes), tolerance, ignore_label)

    def update(self, sample, prediction, true_instances, image_id):
        self._scores.update(sample.label_map, prediction.label_map)

    def result(self):
        scores = self._scores.result()
        per_class = dict(zip(self._classes, scores["boundary_f_of_class"].tolist(), strict=True))
        return {"boundary": {"f": scores["boundary_f"], "tolerance": self._tolerance, "per_class": per_class}}


class EMPart:
    """The key `em`: the scores of ISBI 2012 from the probability of everything but membrane."""

    def __init__(self, classes, membrane, ignore_label):
        if membrane not in classes or len(classes) != 2:
            raise UserError(
                f"evaluation.em.membrane: {membrane!r}; expected one of two classes, but the data's are "
                f"{', '.join(classes)}"
            )
        self._interior = 1 - classes.index(membrane)
        self._scores = EMScores(self._interior, ignore_label)

    def update(self, sample, prediction, true_instances, image_id):
        self._scores.update(sample.label_map, prediction.probabilities[..., self._interior])

    def result(self):
        return {"em": self._scores.result()}


class InstancePart:
    """The key `instances`: average precision of the objects cut out of the label map."""

    def __init__(self, classes, settings, ignore_label):
        if len(classes) < 2:
            raise UserError(f"evaluation.instances: the data's one class, {classes[0]!r}, is the background")
        self._settings = settings.model_dump()
        self._ignore_label = ignore_label
        self._scores = InstanceScores(dict(enumerate(classes[1:], start=1)))

    def update(self, sample, prediction, true_instances, image_id):
        probabilities = prediction.probabilities
        if true_instances:
            masks, labels, crowds = true_instances()
        else:
            masks, labels, crowds = self._components(sample.label_map)
            ignored = (sample.label_map == self._ignore_label)[..., None]
            probabilities = np.where(ignored, np.eye(1, probabilities.shape[-1], dtype="float32"), probabilities)
        ids, found_labels, scores = find_class_instances(probabilities, **self._settings)
        self._scores.update(masks, labels, encode_instances(ids), found_labels, scores, crowds, image_id)

    def _components(self, label_map):
        ids = instances_of_components(label_map, background=0, ignore_label=self._ignore_label)
        _, first_pixels = np.unique(ids, return_index=True)
        labels = label_map.ravel()[first_pixels[-ids.max() :]] if ids.any() else np.zeros(0, int)
        return encode_instances(ids), labels, None

    def result(self):
        return {"instances": self._scores.result()}


def format_extra_scores(result):
    """The lines of text for what `create_extra_scores` adds to a result."""
    lines = []
    if "boundary" in result:
        lines.append(f"boundary F {result['boundary']['f']:.4f} within {result['boundary']['tolerance']:g} px")
    if "em" in result:
        em = result["em"]
        lines.append(
            f"V_rand {em['v_rand']:.4f} (threshold {em['v_rand_threshold']:.2f}), V_info {em['v_info']:.4f} "
            f"({em['v_info_threshold']:.2f}), Rand error {em['rand_error']:.4f}, pixel error {em['pixel_error']:.4f}"
        )
    if "instances" in result:
        instances, coco = result["instances"], result["instances"]["coco"]
        lines.append(
            f"instances: AP {coco['AP']:.4f}, AP50 {coco['AP50']:.4f}, AP75 {coco['AP75']:.4f}; Data Science Bowl AP "
            f"{instances['dsb_ap']:.4f}, F1 at IoU 0.5 {instances['f1_50']:.4f}"
        )
    return lines
