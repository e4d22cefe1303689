"""A COCO instances file: its sections, checked, and its three forms of segmentation."""

import json
from itertools import islice

import numpy as np
from pycocotools import mask as rle

from detseg.errors import UserError

_MOST_PROBLEMS_SHOWN = 20


def read_coco_file(path, masks=True, areas=False):
    """The sections of a COCO instances file, with every entry's ids and fields checked (bbox apart).

    masks:      whether every annotation has to have a segmentation.
    areas:      whether an annotation's area, where it has one, has to be a number.
    Returns     dict with the lists images, annotations and categories (and what else the file has), as in the file.
    Raises      UserError naming section, index, id and field; it lists up to 20 problems.
    """
    content = _load(path)
    shown = list(islice(_problems(content, masks, areas), _MOST_PROBLEMS_SHOWN + 1))
    if shown:
        more = ["..."] if len(shown) > _MOST_PROBLEMS_SHOWN else []
        raise UserError("\n  ".join([f"{path}:", *shown[:_MOST_PROBLEMS_SHOWN], *more]))
    return content


def encode_segmentation(segmentation, size):
    """Any of COCO's three forms (polygons, uncompressed and compressed RLE) as one compressed RLE.

    size:       (H, W) of the image.
    Returns     {"size": [H, W], "counts": bytes or str}, safe to give to pycocotools.
    Raises      ValueError. pycocotools itself crashes on coordinates that are no numbers or far away, and reads
                uninitialised memory for counts that are too short.
    """
    height, width = size
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, but its image has {[height, width]}")
    is_compressed = isinstance(segmentation["counts"], str)
    counts = _decompressed(segmentation["counts"]) if is_compressed else _array(segmentation["counts"])
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError("its counts are not a list of whole numbers >= 0")
    if counts.sum() != height * width:
        raise ValueError(f"its counts sum to {counts.sum()}, expected {height} x {width} = {height * width}")
    return segmentation if is_compressed else rle.frPyObjects(segmentation, height, width)


def looks_like_corners(boxes, sizes):
    """Which of the boxes of a COCO file give away that all of them are x1 y1 x2 y2 instead of x y width height.

    They are if (nearly) every one fits into its image that way, while many end far outside as x + width, y + height.

    boxes:   float64 (N, 4), as written; nan where there are no numbers.
    sizes:   (N, 2), height and width of each one's image.
    Returns  bool (N,): those far outside, if they are more than a third of at least 10 boxes; else none.
    """
    is_number = np.isfinite(boxes).all(axis=1)
    is_far_outside = ((boxes[:, :2] + boxes[:, 2:]) > 1.1 * sizes[:, ::-1]).any(axis=1)  # (N,)
    fit = fits_as_corners(boxes, sizes)[is_number]
    if len(fit) < 10 or fit.mean() < 0.95 or is_far_outside.sum() <= len(fit) / 3:
        return np.zeros(len(boxes), bool)
    return is_far_outside


def fit_only_as_corners(boxes, sizes):
    """Which of the boxes of a COCO file, where every one fits as x1 y1 x2 y2, don't as x y width height.

    For few boxes, and those near the left upper corner, of which `looks_like_corners` can't tell. Not for detections,
    which may leave their image.

    boxes, sizes: as there.
    Returns  bool (N,): those that leave their image by more than a pixel as x y width height, if all of at least 5
             boxes have x < width and y < height and none leaves its image as x1 y1 x2 y2; else none.
    """
    is_number = np.isfinite(boxes).all(axis=1)
    limits = sizes[:, ::-1]  # (N, 2)
    fit = ((boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= limits)).all(axis=1)[is_number]
    if len(fit) < 5 or not fit.all():
        return np.zeros(len(boxes), bool)
    return (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(axis=1)


def fits_as_corners(boxes, sizes):
    """Which of the boxes, float64 (N, 4), would be well-formed as x1 y1 x2 y2: bool (N,). sizes: (N, 2)."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= sizes[:, ::-1] + 1).all(axis=1)


def _check_polygon(polygon, height, width):
    points = _array(polygon)
    if points.ndim != 1 or points.dtype.kind not in "iuf" or not np.isfinite(points).all():
        raise ValueError("a polygon has coordinates that are no numbers, expected x1, y1, x2, y2, ... in one list")
    points = points.reshape(-1, 2)  # (N, 2) x, y
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < (-width, -height)).any() or (high > (2 * width, 2 * height)).any():
        raise ValueError(
            f"a polygon spans x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}, far outside of its image "
            f"of {width}x{height} (width x height)"
        )


def _array(values):
    """A list from a JSON file as an array: of dtype object where that is nested unevenly."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty(1, object)


def _decompressed(text):
    """The counts of a compressed RLE string (pycocotools' rleFrString): 5 bits a character, then differences."""
    characters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not text or characters.min() < 0 or characters.max() > 63 or characters[-1] & 0x20:
        raise ValueError("its counts are not a compressed RLE string")
    starts = np.concatenate([[0], np.flatnonzero((characters & 0x20) == 0)[:-1] + 1])
    lengths = np.diff(np.append(starts, characters.size))
    if lengths.max() > 7:
        raise ValueError("its counts are not a compressed RLE string")
    place = np.arange(characters.size) - np.repeat(starts, lengths)
    counts = np.add.reduceat((characters & 0x1F) << (5 * place), starts)
    is_negative = (characters[starts + lengths - 1] & 0x10) != 0
    counts -= is_negative * (1 << (5 * lengths))
    counts[1::2] = np.cumsum(counts[1::2])  # from the fourth on, a count is the difference to the last but one;
    counts[2::2] = np.cumsum(counts[2::2])  # the first three stand for themselves
    return counts


def _load(path):
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        there = f"there are: {', '.join(others)}" if others else f"there is no .json file in {path.parent}"
        raise UserError(f"{path}: no such annotation file; {there}") from error
    except OSError as error:
        raise UserError(f"{path}: the annotation file cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected COCO JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON {type(content).__name__}, expected an object with images, annotations, ...")
    for section in ("images", "annotations", "categories"):
        if not isinstance(content.get(section), list):
            found = f"is a {type(content[section]).__name__}" if section in content else "is missing"
            raise UserError(f"{path}: section {section} {found}, expected a list. Sections are: {', '.join(content)}")
    return content


def _problems(content, masks, areas):
    """What is wrong with the sections' entries, one line each."""
    yield from _entry_problems("images", content["images"], _image_problem)
    yield from _entry_problems("categories", content["categories"], _category_problem)
    yield from _double_names(content["categories"])
    image_ids = _ids(content["images"])
    category_ids = _ids(content["categories"])
    yield from _entry_problems(
        "annotations",
        content["annotations"],
        lambda entry: (
            _id_problem(entry, image_ids, category_ids)
            or (areas and _area_problem(entry.get("area")))
            or (masks and _segmentation_problem(entry.get("segmentation")))
        ),
    )


def _double_names(categories):
    first = {}
    for index, entry in enumerate(categories):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            place = f"categories[{index}] (id {entry.get('id')})"
            yield f"{place}: field name {name!r} is already that of categories[{first[name]}]"


def _ids(entries):
    """{image id: entry} or {category id: entry} of the entries that have a usable one."""
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and _is_id(entry.get("id"))}


def _entry_problems(section, entries, problem_of):
    first_with_id = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield f"{section}[{index}]: {entry!r}, expected an object"
            continue
        identifier = entry.get("id")
        if not _is_id(identifier):
            yield f"{section}[{index}]: field id is {identifier!r}, expected a whole number"
        elif first_with_id.setdefault(identifier, index) != index:
            yield f"{section}[{index}]: id {identifier} is already that of {section}[{first_with_id[identifier]}]"
        problem = problem_of(entry)
        if problem:
            yield f"{section}[{index}] (id {identifier}): {problem}"


def _is_id(value):
    return type(value) is int or (type(value) is float and value.is_integer())


def is_number(value):
    """Whether a value of a JSON file is a number that arrays of floats can hold."""
    return type(value) in (int, float) and abs(value) < 1e18  # false for nan


def _image_problem(image):
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        return f"field file_name is {image.get('file_name')!r}, expected a file name"
    for field in ("height", "width"):
        if type(image.get(field)) is not int or image[field] <= 0:
            return f"field {field} is {image.get(field)!r}, expected a positive whole number"
    return None


def _category_problem(category):
    if not isinstance(category.get("name"), str) or not category["name"].strip():
        return f"field name is {category.get('name')!r}, expected a class name"
    return None


def _id_problem(annotation, image_ids, category_ids):
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_id(image_id) or image_id not in image_ids:
        return f"field image_id is {image_id!r}, but section images has no such id"
    if not _is_id(category_id) or category_id not in category_ids:
        known = ", ".join(str(identifier) for identifier in sorted(category_ids)[:10])
        return f"field category_id is {category_id!r}, but section categories has no such id (it has {known}, ...)"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"field iscrowd is {annotation['iscrowd']!r}, expected 0 or 1"
    return None


def _area_problem(area):
    if area is not None and not (is_number(area) and area >= 0):
        return f"field area is {area!r}, expected a number >= 0"
    return None


def _segmentation_problem(segmentation):
    """What is wrong with the form of a segmentation; its numbers are checked when it is decoded."""
    if not segmentation:
        return "field segmentation is missing or empty; masks are painted from polygons or RLE"
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), str | list) and isinstance(segmentation.get("size"), list):
            return None
        return "field segmentation is an object without counts and size, expected RLE"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return "field segmentation is neither a list of polygons nor RLE"
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"field segmentation has a polygon of {len(polygon)} numbers, expected x, y of 3 or more points"
    return None
