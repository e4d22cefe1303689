"""COCO's figures for boxes and masks, by pycocotools, which defines them, or by hotcoco, which is faster."""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
from pycocotools import mask as rle

from detseg.data.masks import code_areas
from detseg.errors import UserError
from detseg.metrics.arrays import Array, Flags, Masks, as_boxes, as_column, as_labels, as_rles, mean_of_defined, to_xywh

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_LARGEST = 1e5**2  # COCO's bound of all areas


@dataclass(frozen=True)
class CocoSettings:
    """What COCO's figures are computed at; by default as COCO does.

    iou_thresholds:  in (0, 1]. AP and AR are means over them; AP50 and AP75 are nan where 0.5 or 0.75 isn't among them.
    max_detections:  rising counts: the best detections of a class in an image that AR1, AR10, AR100 (named by these)
                     count; all other figures are at the last.
    areas:           {suffix: (from, to)} in pixels, both included, for the figures APs, ARs and so on.
    Raises           UserError.
    """

    iou_thresholds: Sequence[float] = IOU_THRESHOLDS
    max_detections: Sequence[int] = (1, 10, 100)
    areas: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, _LARGEST)}
    )

    def __post_init__(self):
        thresholds, counts = np.asarray(self.iou_thresholds), np.asarray(self.max_detections)
        if thresholds.ndim != 1 or not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
            raise UserError(f"iou_thresholds: {self.iou_thresholds}, expected a list of numbers above 0, up to 1")
        is_list = counts.ndim == 1 and counts.dtype.kind in "iu" and len(counts) > 0
        if not is_list or not (np.diff(counts, prepend=0) > 0).all():
            raise UserError(f"max_detections: {self.max_detections}, expected a list of rising whole numbers from 1 on")
        for suffix, bounds in self.areas.items():
            if np.shape(bounds) != (2,) or not 0 <= bounds[0] <= bounds[1]:
                raise UserError(f"areas: {suffix!r} is {bounds}, expected (from, to) in pixels")


class CocoScores:
    """Collects true and found objects of a split, image by image.

    The figures are COCOeval's: of each image the 100 best finds of a class, matched at IoU >= threshold; what lies in a
    crowd counts nowhere.

    classes:   {label: name}.
    iou_type:  bbox (IoU of boxes) or segm (of masks).
    engine:    hotcoco or pycocotools; None for hotcoco where it is installed. Their figures are equal.
    settings:  thresholds other than COCO's.
    """

    def __init__(
        self,
        classes: Mapping[int, str],
        iou_type: str = "bbox",
        engine: str | None = None,
        settings: CocoSettings | None = None,
    ):
        self._classes = dict(sorted(classes.items()))
        self._iou_type = iou_type
        self._engine = engine or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
        if self._engine not in ENGINES:
            raise UserError(f"engine: {engine!r}, expected one of {', '.join(ENGINES)}")
        self._settings = settings or CocoSettings()
        areas = [(float(low), float(high)) for low, high in self._settings.areas.values()]
        self._ranges = list(dict.fromkeys([(0.0, _LARGEST), *areas]))  # each once, as hotcoco wants it
        self._image_ids, self._truth, self._found = [], [], []
        self._images_over = 0

    def update(
        self,
        truth: Array | Masks,
        true_labels: Array,
        found: Array | Masks,
        labels: Array,
        scores: Array,
        true_crowds: Flags = None,
        true_areas: Array | None = None,
        image_id: int | str | None = None,
    ) -> None:
        """Adds an image.

        truth:        boxes, float (G, 4), or with iou_type segm masks: G compressed RLEs or bool (G, H, W).
        true_labels:  int (G,), keys of `classes`.
        found:        the same of the D objects found; labels int (D,), scores float (D,).
        true_crowds:  bool (G,), COCO's iscrowd; None for no crowds.
        true_areas:   float (G,), COCO's area, which decides between small, medium and large; None for that of the boxes
                      or masks.
        image_id:     number or text, unique, whose order decides between detections of equal score; None for the number
                      of images before it.
        Raises        UserError for other shapes and for labels that are no keys of `classes`.
        """
        truth = self._objects("true_", truth, true_labels, None, true_crowds, true_areas)
        found = self._objects("", found, labels, scores)
        sizes = sorted({tuple(mask["size"]) for mask in truth["segmentation"] + found["segmentation"]})
        if len(sizes) > 1:
            raise UserError(f"masks of {' and '.join(map(str, sizes))}, expected all masks of an image of its (H, W)")
        self._truth.append(truth)
        self._found.append(found)
        self._image_ids.append(len(self._image_ids) if image_id is None else image_id)
        _, of_class = np.unique(truth["category_id"][~truth["iscrowd"]], return_counts=True)
        self._images_over += int(of_class.max(initial=0) > self._settings.max_detections[-1])

    def _objects(self, prefix, shapes, labels, scores, crowds=None, areas=None):
        """The objects of an image as columns, named as in COCO's annotations."""
        if self._iou_type == "segm":
            masks = as_rles(shapes, f"{prefix}masks")
            boxes, own_areas = rle.toBbox(masks).reshape(-1, 4), code_areas(masks)
        else:
            masks, boxes = [], to_xywh(as_boxes(shapes, f"{prefix}boxes"))
            own_areas = boxes[:, 2:].prod(1)
        return {
            "category_id": as_labels(labels, len(boxes), self._classes, f"{prefix}labels"),
            "bbox": boxes,
            "area": as_column(own_areas if areas is None else areas, len(boxes), np.float64, f"{prefix}areas"),
            "score": np.ones(len(boxes)) if prefix else as_column(scores, len(boxes), np.float64, "scores"),
            "iscrowd": as_column(crowds, len(boxes), bool, f"{prefix}crowds"),
            "segmentation": masks,
        }

    def result(self) -> dict:
        """The scores; undefined ones are nan.

        Returns  dict: coco {key of `COCO_KEYS`: figure}, per_class {name: {AP, AP50}} and engine, its name and version.
                 Where some images have more objects of a class than the last of max_detections, so that no detector
                 could reach 1, also images_over_max_detections {images, max_detections}.
        """
        order = sorted(range(len(self._image_ids)), key=self._image_ids.__getitem__)
        nothing = self._objects("", [], [], [])  # for a split without images
        truth, found = (_joined([nothing, *(objects[i] for i in order)]) for objects in (self._truth, self._found))
        images = [{"id": i, "height": None, "width": None} for i in range(1, len(order) + 1)]  # RLEs carry their size
        categories = [{"id": label, "name": name} for label, name in self._classes.items()]
        with contextlib.redirect_stdout(io.StringIO()):  # they print their progress
            evaluation = ENGINES[self._engine](images, categories, truth, found, self._iou_type)
            params = evaluation.params  # COCOeval's names, which hotcoco has too
            params.iouThrs = np.array(self._settings.iou_thresholds, np.float64)
            params.maxDets = [int(count) for count in self._settings.max_detections]
            params.areaRng = [list(bounds) for bounds in self._ranges]
            params.areaRngLbl = [str(bounds) for bounds in self._ranges]
            evaluation.evaluate()
            evaluation.accumulate()
        figures, per_class = self._figures(*(np.asarray(evaluation.eval[key]) for key in ("precision", "recall")))
        result = {"coco": figures, "per_class": per_class, "engine": f"{self._engine} {version(self._engine)}"}
        if self._images_over:
            limit = int(self._settings.max_detections[-1])
            result["images_over_max_detections"] = {"images": self._images_over, "max_detections": limit}
        return result

    def _figures(self, precision, recall):
        """The figures of `COCOeval.summarize`, which knows the default parameters only, and those of each class.

        precision:  float (IoU thresholds, recalls, classes, areas, max_detections), -1: undefined; recall: no recalls.
        """
        precision, recall = (np.where(values < 0, np.nan, values) for values in (precision, recall))
        at = {name: np.isclose(self._settings.iou_thresholds, iou) for name, iou in (("AP50", 0.5), ("AP75", 0.75))}
        whole = precision[..., 0, -1]  # (IoU thresholds, recalls, classes)
        figures = {"AP": mean_of_defined(whole)} | {name: mean_of_defined(whole[which]) for name, which in at.items()}
        areas = {suffix: self._ranges.index(tuple(bounds)) for suffix, bounds in self._settings.areas.items()}
        figures |= {f"AP{suffix}": mean_of_defined(precision[..., i, -1]) for suffix, i in areas.items()}
        figures |= {f"AR{n}": mean_of_defined(recall[..., 0, i]) for i, n in enumerate(self._settings.max_detections)}
        figures |= {f"AR{suffix}": mean_of_defined(recall[..., i, -1]) for suffix, i in areas.items()}
        return figures, {
            name: {"AP": mean_of_defined(whole[..., k]), "AP50": mean_of_defined(whole[at["AP50"], :, k])}
            for k, name in enumerate(self._classes.values())
        }


def describe_images_over(over: Mapping[str, int]) -> str:
    """images_over_max_detections of a result as a sentence."""
    return (
        f"COCO counts the {over['max_detections']} best detections of a class in an image; {over['images']} images "
        "have more objects of one class, so these figures are lower than what was found"
    )


def _joined(parts):
    """The columns of several images as one, with the index of each object's image, and the masks or None."""
    images = np.repeat(np.arange(len(parts)), [len(part["bbox"]) for part in parts])
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "segmentation"}
    return {"image_id": images} | columns, [mask for part in parts for mask in part["segmentation"]] or None


def _pycocotools(images, categories, truth, found, iou_type):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def as_coco(columns, masks):
        """As loadRes makes it, which fails without detections."""
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        annotations = [{"id": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, start=1)]
        for annotation, mask in zip(annotations, masks or (), strict=False):
            annotation["segmentation"] = mask
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    return COCOeval(as_coco(*truth), as_coco(*found), iou_type)


def _hotcoco(images, categories, truth, found, iou_type):
    import hotcoco

    (columns, masks), (found, found_masks) = truth, found
    images = [image | {"height": 0, "width": 0} for image in images]
    annotations = [columns[key] for key in ("image_id", "category_id", "bbox")]
    more = {"area": columns["area"], "iscrowd": columns["iscrowd"], "segmentation": masks}
    true = hotcoco.COCO.from_arrays(images, categories, *annotations, **more)
    rows = np.column_stack([found[key] for key in ("image_id", "bbox", "score", "category_id")])  # (N, 7)
    detected = true.load_res(rows, segmentation=found_masks)
    if found_masks:  # it takes the area of the box
        detected.update_anns(ids=np.arange(1, len(rows) + 1), area=found["area"])
    return hotcoco.COCOeval(true, detected, iou_type)


ENGINES = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}  # name -> function that makes a COCOeval
