"""What a detector is scored by, with the files and drawings that show it."""

import math

from detseg.detection.results_files import coco_entries, write_coco_results, write_voc_results
from detseg.files import make_folder
from detseg.metrics.detection import DetectionScores
from detseg.report.detection_plots import draw_confusion, draw_precision_recall


class DetectionTaskScores:
    """Collects a split's scores image by image.

    masks:             bool, whether to score masks too.
    keep_predictions:  bool, whether `write` is to be called.
    """

    def __init__(self, classes, masks=False, keep_predictions=False):
        self._classes = classes
        self._masks = masks
        self._scores = DetectionScores(classes, masks)
        self._predictions = [] if keep_predictions else None

    def update(self, sample, prediction, true_instances, image_id=None):
        """Adds an image: a Sample with its original objects, and what was found in it.

        true_instances:  function of no arguments -> (masks, labels, is_crowd) of the same objects.
        image_id:        the source's, unique: between detections of equal score COCO's figures go by the order of the
                         ids. None for the number of images before it.
        """
        self.add(sample.objects, prediction, true_instances, image_id)

    def add(self, objects, found, true_instances, image_id=None):
        """Adds an image: its Objects, and a Prediction or Detections. The rest is as in `update`."""
        self._scores.update(
            objects.boxes,
            objects.labels,
            found.boxes,
            found.labels,
            found.scores,
            is_crowd=objects.is_crowd,
            difficult=objects.difficult,
            areas=objects.areas,
            true_masks=true_instances()[0] if self._masks else None,
            masks=found.masks if self._masks else None,
            image_id=image_id,
        )
        if self._predictions is not None:
            self._predictions.append(found)

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan."""
        return self._scores.result()

    def write(self, dataset, folder, name, voc_list=None):
        """Writes what was found in a dataset's images, in the same order, and drawings of the scores.

        NAME_detections.json: COCO results with the source's ids; NAME_curves.png: precision and recall;
        NAME_confusion.png; with a VOC list's name also NAME_comp4/, the devkit's text files of results.
        Returns  the paths.
        """
        make_folder(folder, "folder of results")
        pairs = list(zip(dataset.image_ids, self._predictions, strict=True))
        paths = [folder / f"{name}_{rest}" for rest in ("detections.json", "curves.png", "confusion.png")]
        entries = [entry for image_id, found in pairs for entry in coco_entries(found, image_id, dataset.category_ids)]
        write_coco_results(paths[0], entries)
        draw_precision_recall(self._scores.voc.curves(), paths[1])
        confusion = self._scores.confusion
        title = f"scores from {confusion.min_score:g}, IoU from {confusion.min_overlap:g}"
        draw_confusion(confusion.matrix, self._classes, paths[2], title)
        if voc_list is not None:
            paths.append(folder / f"{name}_comp4")
            found = dict(zip(dataset.names, self._predictions, strict=True))
            write_voc_results(paths[-1], voc_list, found, self._classes)
        return paths


def format_detection_scores(result):
    """A result of `evaluate` as lines of text: every class from best to worst, and the scores."""
    per_class = result["per_class"]
    defined = {name: scores for name, scores in per_class.items() if not math.isnan(scores["AP"])}
    width = max(map(len, per_class))
    order = sorted(defined, key=lambda name: -defined[name]["AP"])
    lines = [f"{name:<{width}}  AP {defined[name]['AP']:.3f}  AP50 {defined[name]['AP50']:.3f}" for name in order]
    absent = [name for name in per_class if name not in defined]
    if absent:
        lines.append(f"absent from this split and left out of the mean: {', '.join(absent)}")
    coco, voc = result["coco"], result["voc"]
    lines.append("  ".join(f"{name} {value:.4f}" for name, value in coco.items()))
    speed = f", {result['images_per_second']:.1f} images/s" if "images_per_second" in result else ""
    lines.append(
        f"{result['split']}: AP {coco['AP']:.4f}, AP50 {coco['AP50']:.4f} (COCO, by {result['engine']}); mAP "
        f"{voc['mAP']:.4f}, with the 11-point rule {voc['mAP07']:.4f} (VOC); {result['images']} images{speed}"
    )
    return "\n".join(lines)
