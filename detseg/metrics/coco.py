"""COCO's figures for boxes and masks, by pycocotools, which defines them, or by hotcoco, which is faster."""

import contextlib
import importlib.util
import io
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoScores:
    """Collects true and found objects of a split, image by image.

    The figures are COCOeval's: of each image the 100 best finds of a class, matched at IoU >= threshold; what lies in a
    crowd counts nowhere.

    classes:   {label: name}.
    iou_type:  bbox (IoU of boxes) or segm (of masks).
    engine:    hotcoco or pycocotools; None for hotcoco where it is installed. Their figures are equal.
    """

    def __init__(self, classes, iou_type="bbox", engine=None):
        self._classes = dict(sorted(classes.items()))
        self._iou_type = iou_type
        self._engine = engine or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
        self._image_ids, self._truth, self._found = [], [], []

    def update_boxes(
        self, true_boxes, true_labels, boxes, labels, scores, true_crowds=None, true_areas=None, image_id=None
    ):
        """Adds an image to the scores of boxes.

        true_boxes:   float (G, 4), true_labels int (G,), keys of `classes`.
        boxes:        float (D, 4), those found; labels int (D,), scores float (D,).
        true_crowds:  bool (G,), COCO's iscrowd; None for no crowds.
        true_areas:   float (G,), COCO's area, which decides between small, medium and large: of the object's mask where
                      there is one; None for the boxes' areas.
        image_id:     number or text, unique; None for the number of images before it. Between detections of equal score
                      the order of the ids decides, as in COCOeval.
        """
        true_boxes, boxes = _to_xywh(true_boxes), _to_xywh(boxes)
        areas = true_boxes[:, 2:].prod(1) if true_areas is None else true_areas
        self._add(
            image_id,
            _objects(true_labels, true_boxes, areas, crowds=true_crowds),
            _objects(labels, boxes, boxes[:, 2:].prod(1), scores),
        )

    def update_masks(
        self, true_masks, true_labels, masks, labels, scores, true_crowds=None, true_areas=None, image_id=None
    ):
        """Adds an image to the scores of masks: lists of compressed RLEs. The rest is as in `update_boxes`."""
        areas = rle.area(true_masks) if true_areas is None else true_areas
        self._add(
            image_id,
            _objects(true_labels, _bounds(true_masks), areas, crowds=true_crowds, masks=true_masks),
            _objects(labels, _bounds(masks), rle.area(masks), scores, masks=masks),
        )

    def _add(self, image_id, truth, found):
        self._image_ids.append(len(self._image_ids) if image_id is None else image_id)
        self._truth.append(truth)
        self._found.append(found)

    def result(self):
        """The scores; undefined ones are nan.

        Returns  dict: coco {AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl}, per_class {name: {AP, AP50}} and
                 engine, the name and version of what computed them.
        """
        order = sorted(range(len(self._image_ids)), key=self._image_ids.__getitem__)
        truth, found = (_joined([objects[i] for i in order]) for objects in (self._truth, self._found))
        images = [{"id": i, "height": None, "width": None} for i in range(len(order))]  # RLEs carry their size
        categories = [{"id": label, "name": name} for label, name in self._classes.items()]
        with contextlib.redirect_stdout(io.StringIO()):  # they print their progress and a table
            evaluation = ENGINES[self._engine](images, categories, truth, found, self._iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures = np.array(evaluation.stats)
        figures = np.where(figures < 0, np.nan, figures).tolist()
        # (IoU thresholds, recalls, classes) for all areas and 100 detections
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        return {
            "coco": dict(zip(COCO_KEYS, figures, strict=True)),
            "per_class": {
                name: {"AP": _mean_of_defined(precision[:, :, k]), "AP50": _mean_of_defined(precision[0, :, k])}
                for k, name in enumerate(self._classes.values())
            },
            "engine": f"{self._engine} {version(self._engine)}",
        }


class _Objects(NamedTuple):
    """Objects of one image; of several, when joined, with the index of each one's image."""

    labels: np.ndarray  # int (N,)
    boxes: np.ndarray  # float64 (N, 4), x y width height
    areas: np.ndarray  # float64 (N,)
    scores: np.ndarray  # float64 (N,)
    crowds: np.ndarray  # bool (N,)
    masks: list | None  # N RLEs
    images: np.ndarray | None = None  # int (N,)


def _objects(labels, boxes, areas, scores=None, crowds=None, masks=None):
    count = len(boxes)
    return _Objects(
        labels=np.asarray(labels, np.int64),
        boxes=boxes,
        areas=np.asarray(areas, np.float64),
        scores=np.ones(count) if scores is None else np.asarray(scores, np.float64),
        crowds=np.zeros(count, bool) if crowds is None else np.asarray(crowds, bool),
        masks=masks,
    )


def _joined(parts):
    no_objects = _objects([], np.zeros((0, 4)), [])  # for a split without images
    labels, boxes, areas, scores, crowds = (
        np.concatenate([getattr(part, field) for part in [no_objects, *parts]])
        for field in ("labels", "boxes", "areas", "scores", "crowds")
    )
    masks = [mask for part in parts for mask in part.masks or ()] or None
    images = np.repeat(np.arange(len(parts)), [len(part.boxes) for part in parts])
    return _Objects(labels, boxes, areas, scores, crowds, masks, images)


def _to_xywh(boxes):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)  # (N, 4)


def _bounds(masks):
    return rle.toBbox(masks).reshape(-1, 4)


def _pycocotools(images, categories, truth, found, iou_type):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def as_coco(objects):
        """As loadRes makes it, which fails without detections."""
        columns = [column.tolist() for column in (objects.images, *objects[:5])]
        keys = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
        annotations = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
        for i, annotation in enumerate(annotations):
            annotation["id"] = i + 1  # COCOeval reads 0 as unmatched
        for annotation, mask in zip(annotations, objects.masks or (), strict=False):
            annotation["segmentation"] = mask
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    return COCOeval(as_coco(truth), as_coco(found), iou_type)


def _hotcoco(images, categories, truth, found, iou_type):
    import hotcoco

    images = [image | {"height": 0, "width": 0} for image in images]
    true = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.images,
        truth.labels,
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowds,
        segmentation=truth.masks,
    )
    rows = np.column_stack([found.images, found.boxes, found.scores, found.labels])  # (N, 7)
    detected = true.load_res(rows, segmentation=found.masks)
    if found.masks:  # it takes the area of the box
        detected.update_anns(ids=np.arange(1, len(rows) + 1), area=found.areas)
    return hotcoco.COCOeval(true, detected, iou_type)


ENGINES = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}  # name -> function that makes a COCOeval


def _mean_of_defined(precision):
    """COCOeval marks what is undefined by -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")
