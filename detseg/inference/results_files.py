"""Detections as files, written and read: COCO's results (cocodataset.org/#format-results) and the VOC devkit's."""

import contextlib
import json
import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as rle

from detseg.data.checks import raise_problems
from detseg.data.coco_checks import is_number, looks_like_corners
from detseg.data.masks import encode_segmentation
from detseg.data.readers.voc import CORNERS, voc_element
from detseg.errors import UserError
from detseg.files import make_folder, written_whole
from detseg.inference.prediction import Prediction
from detseg.metrics.arrays import to_xywh

logger = logging.getLogger("detseg")

DECIMALS = 3  # of coordinates: a thousandth of a pixel
_STEP = 10.0**-DECIMALS


def coco_entries(found, image_id, category_ids, file_name=None):
    """The boxes, and masks where there are any, of an image's Prediction as entries; category_ids: index = label."""
    boxes = to_xywh(np.asarray(found.boxes, np.float64)).round(DECIMALS)
    labels = np.asarray(found.labels).tolist()
    scores = map(float, np.asarray(found.scores).astype(str))  # as text and back, a float32 needs fewer digits
    entries = []
    for i, (box, label, score) in enumerate(zip(boxes.tolist(), labels, scores, strict=True)):
        entry = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        if file_name is not None:
            entry["file_name"] = file_name
        if found.masks is not None:
            entry["segmentation"] = rle_as_json(found.masks[i])
        entries.append(entry)
    return entries


def rle_as_json(mask):
    counts = mask["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in mask["size"]], "counts": counts}


def write_coco_results(path, entries):
    """Writes the `coco_entries` of a split as a JSON list, one entry a line."""
    with written_whole(path) as temporary:
        lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_coco_results(path, image_sizes, category_ids):
    """Anybody's COCO results file.

    image_sizes:   {image id: (H, W)} of the split.
    category_ids:  index = label.
    Returns        {image id: Prediction} of every image of the split, float64 as in the file, in its order. Entries
                   without bbox have that of their mask.
    Raises         UserError naming index and field; it lists up to 20 problems.
    """
    path = Path(path)
    entries = _load(path)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    problems = ((i, _problem(entry, image_sizes, label_of)) for i, entry in enumerate(entries))
    raise_problems(path, [f"[{i}]: {problem}" for i, problem in problems if problem])
    masks = _masks(path, entries, image_sizes)
    boxes = [entry["bbox"] if "bbox" in entry else rle.toBbox(masks[i]) for i, entry in enumerate(entries)]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    _check_not_corners(path, boxes, [image_sizes[entry["image_id"]] for entry in entries])
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[entry["category_id"]] for entry in entries], np.int64)
    scores = np.array([entry["score"] for entry in entries], np.float64)
    of_image = {image_id: [] for image_id in image_sizes}
    for index, entry in enumerate(entries):
        of_image[entry["image_id"]].append(index)
    found = {}
    for image_id, own in of_image.items():
        own_masks = masks and [masks[i] for i in own]
        found[image_id] = Prediction(boxes=boxes[own], labels=labels[own], scores=scores[own], masks=own_masks)
    return found


def _load(path):
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # JSON's and UTF-8's errors say where
        raise UserError(f"{path}: the detections cannot be read; expected COCO results JSON: {error}") from error
    if not isinstance(entries, list):
        sections = f" with {', '.join(list(entries)[:5])}" if isinstance(entries, dict) else ""
        raise UserError(
            f"{path}: a JSON {type(entries).__name__}{sections}, expected COCO's results format: a list of "
            "{image_id, category_id, bbox, score}"
        )
    return entries


def _problem(entry, image_sizes, label_of):
    if not isinstance(entry, dict):
        return f"{entry!r}, expected an object with image_id, category_id, bbox and score"
    for field, known in (("image_id", image_sizes), ("category_id", label_of)):
        if field not in entry:
            return f"field {field} is missing"
        is_id = isinstance(entry[field], str) or is_number(entry[field])  # VOC's images have names
        if not is_id or entry[field] not in known:
            return f"field {field} is {entry[field]!r}, but the data have no such id. They have {some(known)}"
    if "score" not in entry:
        return "field score is missing: these may be annotations, expected detections"
    if not is_number(entry["score"]):
        return f"field score is {entry['score']!r}, expected a number"
    if "bbox" not in entry and "segmentation" not in entry:
        return "field bbox is missing"
    box = entry.get("bbox", [0, 0, 0, 0])
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"field bbox is {box!r}, expected four numbers x, y, width, height"
    if box[2] < 0 or box[3] < 0:
        return f"field bbox is {box!r}: a negative size, expected x, y, width, height"
    code = entry.get("segmentation", {"size": [], "counts": ""})
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str | list) or "size" not in code:
        return "field segmentation is not RLE, an object with size and counts"
    return None


def _masks(path, entries, image_sizes):
    """N compressed RLEs; None where no entry has one."""
    missing = [index for index, entry in enumerate(entries) if "segmentation" not in entry]
    if len(missing) == len(entries):
        return None
    if missing:
        raise UserError(
            f"{path}: [{missing[0]}]: field segmentation is missing, but {len(entries) - len(missing)} entries have "
            "one. Expected masks in all entries or in none"
        )
    masks = []
    for index, entry in enumerate(entries):
        try:
            masks.append(encode_segmentation(entry["segmentation"], image_sizes[entry["image_id"]]))
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: [{index}]: field segmentation: {error}") from error
    return masks


def _check_not_corners(path, boxes, sizes):
    corners = np.flatnonzero(looks_like_corners(boxes, np.reshape(sizes, (-1, 2))))
    if len(corners):
        index = corners[0]
        height, width = sizes[index]
        raise UserError(
            f"{path}: [{index}]: field bbox is {boxes[index].tolist()}, which as x, y, width, height ends far outside "
            f"of its image of {width}x{height} (width x height), like {len(corners)} of the {len(boxes)} boxes, while "
            "they fit as x1, y1, x2, y2. Write x, y, x2 - x1, y2 - y1"
        )


def some(names):
    return ", ".join([*map(str, list(names)[:10]), *(["..."] if len(names) > 10 else [])])


# ----- the VOC devkit's ----------------------------------------------------------------------------------------------


def write_voc_results(folder, list_name, detections, classes):
    """Writes {image name: Prediction} as the devkit's FOLDER/comp4_det_LIST_CLASS.txt for each class.

    Lines are "name score xmin ymin xmax ymax", the first pixel being 1, and xmax, ymax within the box.
    """
    make_folder(folder, "folder of results")
    lines = [[] for _ in classes]
    for image, found in detections.items():
        boxes = np.asarray(found.boxes, np.float64) + np.array([1, 1, 0, 0])
        scores = np.asarray(found.scores).astype(str)
        for box, label, score in zip(boxes, np.asarray(found.labels).tolist(), scores, strict=True):
            coordinates = " ".join(f"{value:.{DECIMALS}f}" for value in box)
            lines[label].append(f"{image} {score} {coordinates}\n")
    for path, lines_of_class in zip(_voc_paths(folder, list_name, classes), lines, strict=True):
        with written_whole(path) as temporary:
            temporary.write_text("".join(lines_of_class), encoding="utf-8")


def read_voc_results(folder, list_name, image_names, classes):
    """Anybody's folder of comp4_det_LIST_CLASS.txt, one for each class, see `write_voc_results`.

    Returns  {image name: Prediction} of every image of the split, float64, class by class in the files' order.
    Raises   UserError naming file, line and field; it lists up to 20 problems.
    """
    paths = _voc_paths(folder, list_name, classes)
    _check_voc_files(Path(folder), list_name, [path.name for path in paths], classes)
    rows = {name: [] for name in image_names}
    for label, path in enumerate(paths):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the detections cannot be read: {error}") from error
        lines = [line.rsplit(maxsplit=5) for line in lines]  # from the right: names may have spaces
        problems = ((number, _voc_problem(line, rows)) for number, line in enumerate(lines, 1))
        raise_problems(path, [f"line {number}: {problem}" for number, problem in problems if problem])
        for name, *numbers in lines:
            rows[name].append((*map(float, numbers), label))
    columns = {name: np.array(found, np.float64).reshape(-1, 6) for name, found in rows.items()}
    return {
        name: Prediction(boxes=found[:, 1:5] - [1, 1, 0, 0], labels=found[:, 5].astype(np.int64), scores=found[:, 0])
        for name, found in columns.items()
    }


def _voc_paths(folder, list_name, classes):
    """The file of each class. A / in a class's name, which would lead into another folder, becomes _."""
    paths = [Path(folder) / f"comp4_det_{list_name}_{name.replace('/', '_')}.txt" for name in classes]
    if len(set(paths)) < len(paths):
        raise UserError(f"{folder}: two classes would have one file of results, of {some(classes)}; rename one")
    return paths


def _check_voc_files(folder, list_name, expected, classes):
    there = sorted(path.name for path in folder.glob("*.txt"))
    missing = [name for name in expected if name not in there]
    if missing:
        shown = f"there are: {', '.join(there[:10])}" if there else "there are no .txt files"
        raise UserError(f"{folder}: {missing[0]} is missing (one file a class, empty without detections); {shown}")
    unknown = [name for name in there if name.startswith(f"comp4_det_{list_name}_") and name not in expected]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: names no class of the data, which has {some(classes)}")


def _voc_problem(fields, rows):
    if len(fields) != 6:
        return f"{len(fields)} fields, expected 6: name score xmin ymin xmax ymax"
    if fields[0] not in rows:
        return f"field name is {fields[0]!r}, but the split has no such image. It has {some(rows)}"
    for field, text in zip(("score", *CORNERS), fields[1:], strict=True):
        with contextlib.suppress(ValueError):
            if np.isfinite(float(text)):
                continue
        return f"field {field} is {text!r}, expected a number"
    xmin, ymin, xmax, ymax = map(float, fields[2:])
    if xmax < xmin - 1 or ymax < ymin - 1:
        return f"the box {' '.join(fields[2:])} has a negative size, expected xmin ymin xmax ymax"
    return None


def write_voc_annotation(path, image_name, image_shape, found, classes, inclusive=True):
    """Writes detections as an annotation in PASCAL VOC's XML, but for boxes without area to a thousandth of a pixel.

    image_name, image_shape:  file name of the image and its (H, W, C).
    found:                    Prediction with boxes. Scores are written too, which readers of VOC pass over.
    inclusive:                True: the devkit's corners, as in `write_voc_results`; what is narrower than a pixel is
                              written a pixel wide, with a warning. False: edges from 0 (data.voc_boxes: continuous).
    """
    boxes = np.round(np.asarray(found.boxes, np.float64).reshape(-1, 4), DECIMALS)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # (N,)
    if inclusive:
        boxes = _inclusive_corners(path, boxes, has_area, image_shape)
    size = dict(zip(("height", "width", "depth"), image_shape, strict=True))
    root = voc_element("annotation", {"filename": image_name, "source": {"annotation": "detseg"}, "size": size})
    for i in np.flatnonzero(has_area).tolist():
        texts = [f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".") for value in boxes[i]]
        item = {"name": classes[found.labels[i]], "difficult": 0, "score": found.scores[i]}
        root.append(voc_element("object", item | {"bndbox": dict(zip(CORNERS, texts, strict=True))}))
    ElementTree.indent(root)
    with written_whole(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _inclusive_corners(path, boxes, has_area, image_shape):
    """The devkit's xmin ymin xmax ymax, float64 (N, 4), of boxes (N, 4).

    xmin = xmax, to the devkit a box of one pixel, is refused by readers, ours too: xmax stays a last decimal above.
    """
    is_narrow = boxes[:, 2:] - boxes[:, :2] < 1 - _STEP / 2  # (N, 2)
    if count := (is_narrow.any(axis=1) & has_area).sum():
        logger.warning(
            "%s: boxes narrower or lower than a pixel, %d of %d, are written one pixel wide or high; only edges "
            "(voc_boxes: continuous) tell them exactly",
            *(path, count, len(boxes)),
        )
    low, high = boxes[:, :2] + 1, boxes[:, 2:]
    low = np.where(is_narrow, np.minimum(low, image_shape[1::-1]), low)  # the pixel lies in the image
    return np.concatenate([low, np.maximum(high, low + _STEP)], axis=1)
