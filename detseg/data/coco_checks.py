"""What may be wrong with a COCO file: entries of its sections, and boxes written as corners."""

import numpy as np

from detseg.data.checks import Finding


def find_coco_problems(path, content, masks, areas):
    """What is wrong with the entries of a COCO instances file, as an iterator of Finding; the bboxes are left out.

    masks, areas:  whether segmentations, which all have to have then, and areas, which some may have, are looked at.
    """
    image_ids, category_ids = (
        {entry["id"] for entry in content[section] if isinstance(entry, dict) and _is_id(entry.get("id"))}
        for section in ("images", "categories")
    )
    no_category = f"section categories has no such id (it has {', '.join(map(str, sorted(category_ids)[:10]))}, ...)"
    side = _expect(lambda value: type(value) is int and value > 0, "expected a positive whole number")
    annotation_rules = {
        "image_id": _expect(lambda value: _is_id(value) and value in image_ids, "section images has no such id"),
        "category_id": _expect(lambda value: _is_id(value) and value in category_ids, no_category),
        "iscrowd": _expect(lambda value: value in (0, 1), "expected 0 or 1"),
        "area": _expect(lambda value: value is None or (is_number(value) and value >= 0), "expected a number >= 0"),
        "segmentation": _segmentation_problem,
    }
    left_out = {"area": not areas, "segmentation": not masks}
    annotation_rules = {field: rule for field, rule in annotation_rules.items() if not left_out.get(field)}
    image_rules = {"file_name": _expect(_is_text, "expected a file name"), "height": side, "width": side}
    category_rules = {"name": _expect(_is_text, "expected a class name")}
    yield from _entry_problems(path, "images", content["images"], image_rules)
    yield from _entry_problems(path, "categories", content["categories"], category_rules, unique=("id", "name"))
    yield from _entry_problems(path, "annotations", content["annotations"], annotation_rules)


def _entry_problems(path, section, entries, rules, unique=("id",)):
    """rules: {field: function value -> what is wrong with it or None}. unique: fields whose values may not repeat."""
    first = {}
    for index, entry in enumerate(entries):
        place = f"{section}[{index}]"
        if not isinstance(entry, dict):
            yield Finding(path, place, "", "value", repr(entry), f"{entry!r}, expected an object")
            continue
        if not _is_id(entry.get("id")):
            yield Finding(path, place, "id", "value", repr(entry.get("id")), "expected a whole number")
        place += f" (id {entry.get('id')})"
        for field in unique:
            value = entry.get(field)
            if (_is_id(value) or _is_text(value)) and first.setdefault((field, value), index) != index:
                advice = f"already that of {section}[{first[field, value]}]"
                yield Finding(path, place, field, "double", repr(value), advice)
        for field, problem_of in rules.items():
            value = entry.get(field, 0 if field == "iscrowd" else None)
            if problem := problem_of(value):
                shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
                yield Finding(path, place, field, "value", shown, problem)
                break


def _expect(is_right, expected):
    return lambda value: None if is_right(value) else expected


def _is_id(value):
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_text(value):
    return isinstance(value, str) and value.strip() != ""


def is_number(value):
    """Whether a value of a JSON file is a number that arrays of floats can hold."""
    return type(value) in (int, float) and abs(value) < 1e18  # false for nan


def _segmentation_problem(segmentation):  # of its form; its numbers are checked when it is decoded
    if not segmentation:
        return "missing or empty; masks are painted from polygons or RLE"
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), str | list) and isinstance(segmentation.get("size"), list):
            return None
        return "an object without counts and size, expected RLE"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return "neither a list of polygons nor RLE"
    wrong = [len(polygon) for polygon in segmentation if len(polygon) < 6 or len(polygon) % 2]
    return f"a polygon of {wrong[0]} numbers, expected x, y of 3 or more points" if wrong else None


def bbox_problem(annotation):
    """What is wrong with the form of an annotation's bbox, or None."""
    if "bbox" not in annotation:
        return "missing, expected [x, y, width, height]"
    bbox = annotation["bbox"]
    is_right = isinstance(bbox, list) and len(bbox) == 4 and all(is_number(value) for value in bbox)
    return None if is_right else "expected four finite numbers [x, y, width, height]"


def looks_like_corners(boxes, sizes):
    """Which of a COCO file's boxes, float64 (N, 4) or nan, give away that all are x1 y1 x2 y2, not x y width height.

    sizes:   (N, 2), height and width of each one's image.
    Returns  bool (N,): those that end far outside as x + width, y + height, if they are more than a third of at least
             10 boxes, (nearly) all of which fit as x1 y1 x2 y2; else none.
    """
    is_number = np.isfinite(boxes).all(axis=1)
    is_far_outside = ((boxes[:, :2] + boxes[:, 2:]) > 1.1 * sizes[:, ::-1]).any(axis=1)  # (N,)
    fit = fits_as_corners(boxes, sizes)[is_number]
    are_corners = len(fit) >= 10 and fit.mean() >= 0.95 and is_far_outside.sum() > len(fit) / 3
    return is_far_outside & are_corners


def fit_only_as_corners(boxes, sizes):
    """As `looks_like_corners`, of annotations only: detections may leave their image.

    It is for files of few boxes and boxes near the left upper corner: those that leave their image by more than a pixel
    as x y width height, if all of at least 5 boxes have x < width and y < height and none leaves it as x1 y1 x2 y2.
    """
    is_number = np.isfinite(boxes).all(axis=1)
    limits = sizes[:, ::-1]  # (N, 2)
    fit = ((boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= limits)).all(axis=1)[is_number]
    return (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(axis=1) & (len(fit) >= 5 and fit.all())


def fits_as_corners(boxes, sizes):
    """Which of the boxes, float64 (N, 4), would be well-formed as x1 y1 x2 y2: bool (N,). sizes: (N, 2)."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= sizes[:, ::-1] + 1).all(axis=1)
