"""What a detector is scored by, with the files and drawings that show it."""

import numpy as np

from detseg.inference.results_files import coco_entries, write_coco_results, write_voc_results
from detseg.metrics.coco import describe_images_over
from detseg.metrics.detection import DetectionScores
from detseg.report.plots import draw_confusion, draw_precision_recall
from detseg.tasks.base import class_lines


class DetectionTaskScores:
    """Collects a split's scores image by image.

    masks:             bool, whether to score masks too.
    keep_predictions:  bool, whether `write` is to be called.
    max_detections:    the model's, of an image; None where none is known.
    """

    def __init__(self, classes, masks=False, keep_predictions=False, max_detections=None):
        self._classes = classes
        self._masks = masks
        self._scores = DetectionScores(classes, masks)
        self._plain_scores = None  # of Prediction.without_regression, where there are such
        self._predictions = [] if keep_predictions else None
        self._max_detections = max_detections
        self._images_over = 0  # images with more objects than the model can find

    def update(self, sample, found, true_instances, image_id=None):
        """Adds an image: a Sample with its original objects, of which the image is not read, and a Prediction of it.

        true_instances:  function of no arguments -> (masks, labels, is_crowd) of the same objects.
        image_id:        the source's, unique: between detections of equal score COCO's figures go by the order of the
                         ids. None for the number of images before it.
        """
        objects = sample.objects
        if self._max_detections is not None:
            objects_to_find = np.count_nonzero(~(objects.is_crowd | objects.difficult))
            self._images_over += objects_to_find > self._max_detections
        masks = {"true_masks": true_instances()[0], "masks": found.masks} if self._masks else {}
        flags = {"is_crowd": objects.is_crowd, "difficult": objects.difficult, "areas": objects.areas}
        both = (objects.boxes, objects.labels, found.boxes, found.labels, found.scores)
        self._scores.update(*both, **flags, **masks, image_id=image_id)
        if (plain := found.without_regression) is not None:
            self._plain_scores = self._plain_scores or DetectionScores(self._classes)
            both = (objects.boxes, objects.labels, plain.boxes, plain.labels, plain.scores)
            self._plain_scores.update(*both, **flags, image_id=image_id)
        if self._predictions is not None:
            self._predictions.append(found)

    def result(self):
        """The scores as in evaluation/SPLIT.json; undefined ones are nan.

        Of a model whose boxes are moved by regressors that were fitted afterwards, without_regression {coco, voc} has
        the scores of the same detections where their proposals are.

        Where images have more objects than the model gives detections, so that it can't find all, there is
        images_over_model_max_detections {images, max_detections}, like COCO's images_over_max_detections.
        """
        result = self._scores.result()
        if self._images_over:
            over = {"images": self._images_over, "max_detections": self._max_detections}
            result["images_over_model_max_detections"] = over
        if self._plain_scores is not None:
            plain = self._plain_scores.result()
            result["without_regression"] = {name: plain[name] for name in ("coco", "voc")}
        return result

    def write(self, dataset, folder, name, voc_list=None):
        """Writes what was found in a dataset's images, in the same order, and drawings of the scores.

        NAME_detections.json: COCO results with the source's ids; NAME_curves.png: precision and recall;
        NAME_confusion.png; with a VOC list's name also NAME_comp4/, the devkit's text files of results.
        Returns  the paths.
        """
        pairs = list(zip(dataset.image_ids, self._predictions, strict=True))
        paths = [folder / f"{name}_{rest}" for rest in ("detections.json", "curves.png", "confusion.png")]
        entries = [entry for image_id, found in pairs for entry in coco_entries(found, image_id, dataset.category_ids)]
        write_coco_results(paths[0], entries)
        draw_precision_recall(self._scores.voc.curves(), paths[1], self._scores.voc.min_overlap)
        confusion = self._scores.confusion
        title = f"scores from {confusion.min_score:g}, IoU from {confusion.min_overlap:g}"
        draw_confusion(confusion.matrix, self._classes, paths[2], title)
        if voc_list is not None:
            paths.append(folder / f"{name}_comp4")
            found = dict(zip(dataset.names, self._predictions, strict=True))
            write_voc_results(paths[-1], voc_list, found, self._classes)
        return paths


def format_detection_scores(result):
    """A result of `evaluate` as text: every class from best to worst, and the scores."""
    per_class = result["per_class"]
    lines = class_lines(
        {name: scores["AP"] for name, scores in per_class.items()},
        {name: f"AP {scores['AP']:.3f}  AP50 {scores['AP50']:.3f}" for name, scores in per_class.items()},
    )
    if "images_over_max_detections" in result:
        lines.append(describe_images_over(result["images_over_max_detections"]))
    if "images_over_model_max_detections" in result:
        images, most = result["images_over_model_max_detections"].values()
        lines.append(
            f"model.max_detections is {most}, but {images} images have more objects; raise it to find them all"
        )
    coco, voc = result["coco"], result["voc"]
    lines.append("  ".join(f"{name} {value:.4f}" for name, value in coco.items()))
    if "coco_masks" in result:
        masks, voc_masks = result["coco_masks"], result["voc_masks"]
        lines.append("masks: " + "  ".join(f"{name} {value:.4f}" for name, value in masks.items()))
        lines.append(
            f"masks: AP {masks['AP']:.4f}, AP50 {masks['AP50']:.4f} (COCO); mAP {voc_masks['mAP']:.4f}, with the "
            f"11-point rule {voc_masks['mAP07']:.4f} (VOC)"
        )
    speed = f", {result['images_per_second']:.1f} images/s" if "images_per_second" in result else ""
    lines.append(
        f"{result['split']}: AP {coco['AP']:.4f}, AP50 {coco['AP50']:.4f} (COCO, by {result['engine']}); mAP "
        f"{voc['mAP']:.4f}, with the 11-point rule {voc['mAP07']:.4f} (VOC); {result['images']} images{speed}"
    )
    for key, columns in (
        ("without_regression", ("no regression", "regression")),
        ("without_truncated_svd", ("as trained", "truncated SVD")),
    ):
        if key in result:
            lines += _beside(result[key], result, columns)
    return "\n".join(lines)


def _beside(before, after, columns):
    """A table of the scores of two results, and what the second one gains."""
    rows = {name: (before["coco"][name], after["coco"][name]) for name in ("AP", "AP50", "AP75")}
    rows["mAP"] = (before["voc"]["mAP"], after["voc"]["mAP"])
    lines = [f"{'':6}{columns[0]:>15}{columns[1]:>15}{'gain':>10}"]
    lines += [f"{name:6}{first:15.4f}{second:15.4f}{second - first:+10.4f}" for name, (first, second) in rows.items()]
    if "images_per_second" in before:
        first, second = (1000 / each["images_per_second"] for each in (before, after))
        lines.append(f"{'ms':6}{first:15.1f}{second:15.1f}{first - second:+10.1f}")
    return lines
