"""Detections as files, in the forms in which COCO's and VOC's evaluation servers take them."""

import json
import logging
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as rle

from detseg.data.checks import raise_problems
from detseg.data.readers.coco_file import encode_segmentation, looks_like_corners
from detseg.data.readers.voc_annotation import CORNERS
from detseg.errors import UserError
from detseg.files import make_folder, written_whole

_log = logging.getLogger("detseg")
_ANNOTATOR = "detseg"
_DECIMALS = 3  # of coordinates: a thousandth of a pixel
_STEP = 10.0**-_DECIMALS


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image.

    boxes:   float (N, 4), as `detseg` states it.
    labels:  int (N,), 0..K-1.
    scores:  float (N,).
    masks:   N compressed RLEs, or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list | None = None


def coco_entries(found, image_id, category_ids, file_name=None):
    """The detections of an image as entries of COCO's results format (cocodataset.org/#format-results).

    found:         Detections, or what has the same fields.
    category_ids:  the source's category ids, index = label.
    file_name:     goes into each entry, where one is given.
    """
    boxes = np.asarray(found.boxes, np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(_DECIMALS)  # x y width height
    # As text and back, a float32 needs fewer digits.
    scores = [float(text) for text in np.asarray(found.scores).astype(str)]
    entries = []
    labels = np.asarray(found.labels).tolist()
    for i, (box, label, score) in enumerate(zip(boxes.tolist(), labels, scores, strict=True)):
        entry = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        if file_name is not None:
            entry["file_name"] = file_name
        if found.masks is not None:
            size, counts = found.masks[i]["size"], found.masks[i]["counts"]
            counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
            entry["segmentation"] = {"size": [int(side) for side in size], "counts": counts}
        entries.append(entry)
    return entries


def write_coco_results(path, entries):
    """Writes the `coco_entries` of a split as a JSON list, one entry a line."""
    with written_whole(path) as temporary:
        lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_coco_results(path, image_sizes, category_ids):
    """Anybody's COCO results file.

    image_sizes:   {image id: (H, W)} of the split.
    category_ids:  the data's category ids, index = label.
    Returns        {image id: Detections} of every image of the split, float64 as in the file, in its order. Entries
                   without bbox have that of their mask.
    Raises         UserError naming index and field; it lists up to 20 problems.
    """
    path = Path(path)
    entries = _load(path)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    raise_problems(path, list(_coco_problems(entries, image_sizes, label_of)))
    _check_masks_are_all_or_none(path, entries)
    of_image = {image_id: [] for image_id in image_sizes}
    for index, entry in enumerate(entries):
        of_image[entry["image_id"]].append(index)
    masks = _masks(path, entries, image_sizes) if entries and "segmentation" in entries[0] else None
    boxes = np.array(
        [entry["bbox"] if "bbox" in entry else rle.toBbox(masks[i]) for i, entry in enumerate(entries)], np.float64
    ).reshape(-1, 4)
    _check_not_corners(path, boxes, [image_sizes[entry["image_id"]] for entry in entries])
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[entry["category_id"]] for entry in entries], np.int64)
    scores = np.array([entry["score"] for entry in entries], np.float64)
    return {
        image_id: Detections(
            boxes[chosen], labels[chosen], scores[chosen], None if masks is None else [masks[i] for i in chosen]
        )
        for image_id, chosen in of_image.items()
    }


def write_voc_results(folder, list_name, detections, classes):
    """Writes the devkit's FOLDER/comp4_det_LIST_CLASS.txt for each class: lines "name score xmin ymin xmax ymax".

    Coordinates are the devkit's: the first pixel is 1, and xmax, ymax lie within the box.

    list_name:   of the images, such as "test".
    detections:  {image name: Detections}.
    classes:     names, index = label.
    """
    make_folder(folder, "folder of results")
    lines = {name: [] for name in classes}
    for image, found in detections.items():
        boxes = np.asarray(found.boxes, np.float64) + np.array([1, 1, 0, 0])
        scores = np.asarray(found.scores).astype(str)
        for box, label, score in zip(boxes, np.asarray(found.labels).tolist(), scores, strict=True):
            coordinates = " ".join(f"{value:.{_DECIMALS}f}" for value in box)
            lines[classes[label]].append(f"{image} {score} {coordinates}\n")
    for name, lines_of_class in lines.items():
        with written_whole(_voc_path(folder, list_name, name)) as temporary:
            temporary.write_text("".join(lines_of_class), encoding="utf-8")


def write_voc_annotation(path, image_name, image_shape, found, classes, inclusive=True):
    """Writes detections as an annotation in PASCAL VOC's XML, for tools that correct labels; boxes without area to a
    thousandth of a pixel, which annotations cannot have, are left out.

    image_name:   file name of the image.
    image_shape:  (H, W, C).
    found:        Detections, or what has the same fields. Scores are written too, which readers of VOC pass over.
    inclusive:    bool. True: the devkit's corners, the first pixel being 1, xmax and ymax within the box, which cannot
                  tell what is narrower than a pixel: it is written a pixel wide, and counted in a warning; False: edges
                  counted from 0 (data.voc_boxes: continuous).
    """
    root = ElementTree.Element("annotation")
    _add(root, "filename", image_name)
    _add(ElementTree.SubElement(root, "source"), "annotation", _ANNOTATOR)
    size = ElementTree.SubElement(root, "size")
    for field, value in zip(("height", "width", "depth"), image_shape, strict=True):
        _add(size, field, value)
    boxes = np.round(np.asarray(found.boxes, np.float64).reshape(-1, 4), _DECIMALS)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # (N,)
    if inclusive:
        boxes = _inclusive_corners(path, boxes, has_area, image_shape)
    for i in np.flatnonzero(has_area).tolist():
        label, score, corners = found.labels[i], found.scores[i], boxes[i]
        item = ElementTree.SubElement(root, "object")
        _add(item, "name", classes[label])
        _add(item, "difficult", 0)
        _add(item, "score", score)
        bndbox = ElementTree.SubElement(item, "bndbox")
        for field, value in zip(CORNERS, corners, strict=True):
            _add(bndbox, field, f"{value:.{_DECIMALS}f}".rstrip("0").rstrip("."))
    ElementTree.indent(root)
    with written_whole(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _inclusive_corners(path, boxes, has_area, image_shape):
    """The devkit's xmin ymin xmax ymax, float64 (N, 4), of boxes (N, 4).

    A box of one pixel is xmin = xmax to the devkit, but in annotations that is as a rule a slip of the hand, which
    readers refuse, ours too: xmax stays one step of the last decimal above xmin.
    """
    is_narrow = boxes[:, 2:] - boxes[:, :2] < 1 - _STEP / 2  # (N, 2)
    count = (is_narrow.any(axis=1) & has_area).sum()
    if count:
        _log.warning(
            "%s: boxes narrower or lower than a pixel, %d of %d, are written one pixel wide or high; only edges "
            "(voc_boxes: continuous) tell them exactly",
            *(path, count, len(boxes)),
        )
    low, high = boxes[:, :2] + 1, boxes[:, 2:]
    low = np.where(is_narrow, np.minimum(low, image_shape[1::-1]), low)  # the pixel lies in the image
    return np.concatenate([low, np.maximum(high, low + _STEP)], axis=1)


def is_own_annotation(path):
    """Whether a file was written by `write_voc_annotation`."""
    return f"<annotation>{_ANNOTATOR}</annotation>".encode() in path.read_bytes()


def _add(parent, field, value):
    ElementTree.SubElement(parent, field).text = str(value)


def read_voc_results(folder, list_name, image_names, classes):
    """Anybody's folder of comp4_det_LIST_CLASS.txt, one for each class, see `write_voc_results`.

    image_names:  names of the split's images.
    Returns       {image name: Detections} of every image of the split, float64, class by class in the files' order.
    Raises        UserError naming file, line and field; it lists up to 20 problems.
    """
    _check_voc_files(Path(folder), list_name, classes)
    rows = {name: [] for name in image_names}
    for label, class_name in enumerate(classes):
        path = _voc_path(folder, list_name, class_name)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the detections cannot be read: {error}") from error
        lines = [line.rsplit(maxsplit=5) for line in lines]  # from the right: names may have spaces
        problems = ((number, _voc_problem(line, rows)) for number, line in enumerate(lines, 1))
        raise_problems(path, [f"line {number}: {problem}" for number, problem in problems if problem])
        for name, *numbers in lines:
            rows[name].append((*map(float, numbers), label))
    return {name: _from_voc_rows(np.array(found, np.float64).reshape(-1, 6)) for name, found in rows.items()}


def _from_voc_rows(rows):
    return Detections(rows[:, 1:5] - [1, 1, 0, 0], rows[:, 5].astype(np.int64), rows[:, 0])


def _voc_path(folder, list_name, class_name):
    return Path(folder) / f"comp4_det_{list_name}_{class_name}.txt"


def _check_voc_files(folder, list_name, classes):
    there = sorted(path.name for path in folder.glob("*.txt")) if folder.is_dir() else []
    expected = [_voc_path(folder, list_name, name).name for name in classes]
    missing = [name for name in expected if name not in there]
    if missing:
        shown = f"there are: {', '.join(there[:10])}" if there else "there are no .txt files"
        raise UserError(f"{folder}: {missing[0]} is missing (one file a class, empty without detections); {shown}")
    prefix = _voc_path(folder, list_name, "").stem
    unknown = [name for name in there if name.startswith(prefix) and name not in expected]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: names no class of the data, which has {_some(classes)}")


def _voc_problem(fields, rows):
    if len(fields) != 6:
        return f"{len(fields)} fields, expected 6: name score xmin ymin xmax ymax"
    if fields[0] not in rows:
        return f"field name is {fields[0]!r}, but the split has no such image. It has {_some(rows)}"
    for field, text in zip(("score", "xmin", "ymin", "xmax", "ymax"), fields[1:], strict=True):
        try:
            is_number = math.isfinite(float(text))
        except ValueError:
            is_number = False
        if not is_number:
            return f"field {field} is {text!r}, expected a number"
    xmin, ymin, xmax, ymax = map(float, fields[2:])
    if xmax < xmin - 1 or ymax < ymin - 1:
        return f"the box {' '.join(fields[2:])} has a negative size, expected xmin ymin xmax ymax"
    return None


def _load(path):
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the detections cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected COCO results JSON") from error
    if not isinstance(entries, list):
        sections = f" with {', '.join(list(entries)[:5])}" if isinstance(entries, dict) else ""
        raise UserError(
            f"{path}: a JSON {type(entries).__name__}{sections}, expected COCO's results format: a list of "
            "{image_id, category_id, bbox, score}"
        )
    return entries


def _coco_problems(entries, image_sizes, label_of):
    for index, entry in enumerate(entries):
        problem = _coco_problem(entry, image_sizes, label_of)
        if problem:
            yield f"[{index}]: {problem}"


def _coco_problem(entry, image_sizes, label_of):
    if not isinstance(entry, dict):
        return f"{entry!r}, expected an object with image_id, category_id, bbox and score"
    for field, known in (("image_id", image_sizes), ("category_id", label_of)):
        if field not in entry:
            return f"field {field} is missing"
        is_id = isinstance(entry[field], str) or _is_number(entry[field])  # VOC's images have names
        if not is_id or entry[field] not in known:
            return f"field {field} is {entry[field]!r}, but the data have no such id. They have {_some(known)}"
    if "score" not in entry:
        return "field score is missing: these may be annotations, expected detections"
    if not _is_number(entry["score"]):
        return f"field score is {entry['score']!r}, expected a number"
    if "bbox" not in entry and "segmentation" not in entry:
        return "field bbox is missing"
    if "bbox" in entry:
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return f"field bbox is {box!r}, expected four numbers x, y, width, height"
        if box[2] < 0 or box[3] < 0:
            return f"field bbox is {box!r}: a negative size, expected x, y, width, height"
    if "segmentation" in entry:
        code = entry["segmentation"]
        if not isinstance(code, dict) or not isinstance(code.get("counts"), str | list) or "size" not in code:
            return "field segmentation is not RLE, an object with size and counts"
    return None


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _check_masks_are_all_or_none(path, entries):
    with_mask = ["segmentation" in entry for entry in entries]
    if any(with_mask) and not all(with_mask):
        raise UserError(
            f"{path}: [{with_mask.index(False)}]: field segmentation is missing, but [{with_mask.index(True)}] has "
            "one. Expected masks in all entries or in none"
        )


def _masks(path, entries, image_sizes):
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


def _some(names):
    shown = ", ".join(str(name) for name in islice(names, 10))
    return shown + (", ..." if len(names) > 10 else "")
