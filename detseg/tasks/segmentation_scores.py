"""What a segmentation model is scored by: collected image by image over a split."""

import numpy as np

from detseg.data.masks import encode_instances
from detseg.errors import UserError
from detseg.inference.instances import find_class_instances
from detseg.metrics.coco import describe_images_over
from detseg.metrics.em import EMScores
from detseg.metrics.instances import InstanceScores
from detseg.metrics.semantic import BoundaryScores, confusion_matrix, dice_scores, segmentation_scores
from detseg.segmentation.weight_maps import instances_of_components


class SegmentationScores:
    """Collects a split's confusion matrix, and the scores that the config's evaluation section asks for beside mIoU.

    settings:  that section, or None.
    """

    def __init__(self, classes, ignore_label, settings=None):
        self._classes = classes
        self._ignore_label = ignore_label
        self._confusion = 0
        asked = {key: getattr(settings, key, None) for key in _PARTS}
        self._parts = {
            key: _PARTS[key](section, classes, ignore_label) for key, section in asked.items() if section is not None
        }

    def update(self, sample, prediction, true_instances, image_id=None):
        """Adds an image.

        true_instances:  function of no arguments -> (masks, labels, crowds) of the data set's objects, or None where it
                         has only label maps.
        image_id:        the source's, or None where it has none. See `CocoScores.update`.
        """
        truth, found = sample.label_map, prediction.label_map
        self._confusion += confusion_matrix(truth, found, len(self._classes), self._ignore_label)
        for part in self._parts.values():
            part.update(sample, prediction, true_instances, image_id)

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan."""
        scores = segmentation_scores(self._confusion) | dice_scores(self._confusion)
        iou, dice = scores.pop("iou"), scores.pop("dice")
        result = scores | {
            "per_class": dict(zip(self._classes, iou.tolist(), strict=True)),
            "per_class_dice": dict(zip(self._classes, dice.tolist(), strict=True)),
        }
        return result | {key: part.result() for key, part in self._parts.items()}


class BoundaryPart:
    def __init__(self, settings, classes, ignore_label):
        self._classes = classes
        self._tolerance = settings.tolerance
        self._scores = BoundaryScores(len(classes), settings.tolerance, ignore_label)

    def update(self, sample, prediction, true_instances, image_id):
        self._scores.update(sample.label_map, prediction.label_map)

    def result(self):
        scores = self._scores.result()
        per_class = dict(zip(self._classes, scores["boundary_f_of_class"].tolist(), strict=True))
        return {"f": scores["boundary_f"], "tolerance": self._tolerance, "per_class": per_class}


class EMPart:
    """The scores of ISBI 2012 from the probability of everything but membrane."""

    def __init__(self, settings, classes, ignore_label):
        membrane = settings.membrane
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
        return self._scores.result()


class InstancePart:
    """Average precision of the objects cut out of the label map."""

    def __init__(self, settings, classes, ignore_label):
        if len(classes) < 2:
            raise UserError(f"evaluation.instances: the data's one class, {classes[0]!r}, is the background")
        self._settings = settings.model_dump()
        self._ignore_label = ignore_label
        self._scores = InstanceScores(dict(enumerate(classes[1:], start=1)))

    def update(self, sample, prediction, true_instances, image_id):
        probabilities = prediction.probabilities
        truth = true_instances()
        if truth is None:
            truth = self._components(sample.label_map)
            ignored = (sample.label_map == self._ignore_label)[..., None]
            probabilities = np.where(ignored, np.eye(1, probabilities.shape[-1], dtype="float32"), probabilities)
        masks, labels, crowds = truth
        ids, found_labels, scores = find_class_instances(probabilities, **self._settings)
        self._scores.update(masks, labels, encode_instances(ids), found_labels, scores, crowds, image_id)

    def _components(self, label_map):
        ids = instances_of_components(label_map, background=0, ignore_label=self._ignore_label)
        _, first_pixels = np.unique(ids, return_index=True)
        labels = label_map.ravel()[first_pixels[-ids.max() :]] if ids.any() else np.zeros(0, int)
        return encode_instances(ids), labels, None

    def result(self):
        return self._scores.result()


_PARTS = {"boundary": BoundaryPart, "em": EMPart, "instances": InstancePart}  # key of results and settings -> scores


def format_extra_scores(result):
    """The lines of text for what the evaluation section adds to a result."""
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
        if "images_over_max_detections" in instances:
            lines.append(describe_images_over(instances["images_over_max_detections"]))
    return lines
