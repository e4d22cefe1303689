"""What may be wrong with a data set: readers and the scan collect findings and raise them together."""

import logging
from dataclasses import dataclass

import numpy as np

from detseg.data.sample import Sample
from detseg.errors import UserError

_log = logging.getLogger("detseg")
_MARGIN = 1.0  # pixels outside of the image that are taken for rounding or off-by-one, and clipped
_ROUNDING = 0.01  # pixels: the grain of COCO's numbers; clipping less than that isn't worth a word


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a data set. As text: "FILE: INDEX: field FIELD VALUE: ADVICE"."""

    file: str  # or what else the data come from
    index: str  # the entry in it, such as "annotations[3] (id 8)"; "" where the whole file is meant
    field: str  # the entry's field; "" where the whole entry is meant
    kind: str  # "unreadable", "missing", "double", "unknown" (it names what isn't there), "value", "size" or "box"
    value: str  # what stands there, as text
    advice: str  # what is wrong with it, what is expected and what to do

    def __str__(self):
        field = f"field {self.field} {self.value}".rstrip() if self.field else ""
        return ": ".join(part for part in (str(self.file), self.index, field, self.advice) if part)


class FindingsError(UserError):
    """A UserError that lists `findings`."""

    def __init__(self, head, findings):
        super().__init__(head + _listed(findings))
        self.findings = list(findings)


def raise_problems(head, findings, tail=""):
    """FindingsError with up to 20 of the findings, if there are any: "HEAD: 3 problemsTAIL: ..."."""
    if findings:
        raise FindingsError(f"{head}: {_counted(findings, 'problem', 'problems')}{tail}", findings)


def findings_of(error):
    """The findings of a UserError: its own list, or else the error itself as one."""
    if isinstance(error, FindingsError):
        return error.findings
    file, _, advice = str(error).partition(": ")
    return [Finding(file, "", "", "unreadable", "", advice)]


_NEEDED = {"label_map": "expected uint8 (H, W) of class indices", "objects": "expected detseg.Objects"}


def sample_findings(sample, dataset, i, needed):
    """What is wrong with the i-th sample of a Dataset: list of Finding.

    needed:  the field that it must have beside its image: label_map or objects.
    """

    def finding(field, kind, value, advice):
        return [Finding(dataset.labels_source(i), "", field, kind, value, advice)]

    if not isinstance(sample, Sample):
        return finding("", "value", "", f"the sample is a {type(sample).__name__}, expected a detseg Sample")
    image, label_map = sample.image, sample.label_map
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if not is_image or image.shape[2] != dataset.channels or not image.size:
        return finding("image", "value", _described(image), f"expected uint8 (H, W, {dataset.channels})")
    if getattr(sample, needed) is None:
        return finding(needed, "missing", "None", f"this task learns from it; {_NEEDED[needed]}")
    size = image.shape[:2]
    if needed == "objects":
        return _object_findings(sample.objects, size, dataset.classes, finding)
    if label_map.shape != size:
        return finding("label_map", "size", _described(label_map), f"expected the image's {size}")
    unknown = np.argwhere((label_map >= len(dataset.classes)) & (label_map != dataset.ignore_label))
    if len(unknown):
        row, column = unknown[0]
        meaning = f"expected 0..{len(dataset.classes) - 1} or the ignore label {dataset.ignore_label}"
        return finding("label_map", "value", f"{label_map[row, column]} at row {row}, column {column}", meaning)
    return []


def _object_findings(objects, size, classes, finding):
    found = []
    _, bad, _ = find_bad_boxes(objects.boxes.astype(np.float64), [size] * len(objects), margin=_ROUNDING)
    for k, problem in bad.items():
        found += finding(f"objects.boxes[{k}]", "box", str(objects.boxes[k].tolist()), problem)
    for k in np.flatnonzero((objects.labels < 0) | (objects.labels >= len(classes))).tolist():
        expected = f"expected 0..{len(classes) - 1}; there is no label for the background"
        found += finding(f"objects.labels[{k}]", "value", str(objects.labels[k]), expected)
    masks = objects.masks
    if masks is not None and masks.shape[1:] != size:
        found += finding("objects.masks", "size", _described(masks), f"expected the image's {size}")
    elif masks is not None and masks.max(initial=0) > 1:
        found += finding("objects.masks", "value", f"up to {masks.max()}", "expected 0 and 1")
    elif masks is not None and not found:
        for k, pixels, inside in _masks_beside_boxes(objects):
            box = " ".join(f"{side:g}" for side in objects.boxes[k].tolist())
            advice = f"{inside} of its {pixels} pixels lie in the object's box {box}; expected most of them"
            found += finding(f"objects.masks[{k}]", "value", "", f"box and mask disagree: {advice}")
    return found


def _masks_beside_boxes(objects):
    """(index, pixels, pixels in the box) of objects most of whose mask lies beyond the box, rounded outwards."""
    low = np.floor(objects.boxes[:, :2]).astype(int)
    high = np.ceil(objects.boxes[:, 2:]).astype(int)
    for k in np.flatnonzero(~objects.is_crowd).tolist():
        pixels = np.count_nonzero(objects.masks[k])
        inside = np.count_nonzero(objects.masks[k, low[k, 1] : high[k, 1], low[k, 0] : high[k, 0]])
        if 2 * inside < pixels:
            yield k, pixels, inside


def _described(value):
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"


def checked_boxes(boxes, sizes, sides, describe, split, on_bad_box, hints=None):
    """The good ones of a split's boxes, clipped to their images, and their positions: float64 (M, 4), int (M,).

    describe:    function (position, what is wrong or was done) -> Finding; hints: N str, added to what is wrong.
    on_bad_box:  "refuse": FindingsError where there are bad boxes; "drop": a warning that lists all of them.
    The rest: see `find_bad_boxes`.
    """
    boxes, bad, clipped = find_bad_boxes(boxes, sizes, sides)
    findings = [describe(k, problem + (hints[k] if hints is not None else "")) for k, problem in bad.items()]
    counted = f"{_counted(findings, 'bad box', 'bad boxes')} of {len(boxes)}"
    if findings and on_bad_box == "refuse":
        advice = "correct them, or leave them out by data.on_bad_box: drop"
        raise FindingsError(f"split {split!r}: {counted}; {advice}", findings)
    if findings:
        _log.warning("split %r: %s dropped (data.on_bad_box)%s", split, counted, _listed(findings, most=None))
    if clipped:
        moved = [describe(k, f"by {pixels:g} px") for k, pixels in clipped.items()]
        counted = f"{_counted(moved, 'box', 'boxes')} of {len(boxes)}, which reached up to a pixel out of the image"
        _log.warning("split %r: %s, clipped%s", split, counted, _listed(moved))
    kept = np.setdiff1d(np.arange(len(boxes)), list(bad))
    return boxes[kept], kept


def find_bad_boxes(boxes, sizes, sides=None, margin=_MARGIN):
    """Which boxes are empty, negative, no numbers or outside of their image by more than a margin; the others clipped.

    boxes:   float64 (N, 4), x1 y1 x2 y2; nan where there is no number. sizes: (N, 2), (height, width) of their images.
    sides:   float64 (N, 2), width and height where they aren't to be computed from the boxes.
    Returns  boxes clipped to their images, float64 (N, 4), the good ones not empty as float32 either;
             {index: what is wrong with it};
             {index: pixels by which it was outside} of the good ones that were clipped by more than a rounding error.
    """
    sides = boxes[:, 2:] - boxes[:, :2] if sides is None else sides
    limits = np.asarray(sizes, np.float64).reshape(-1, 2)[:, [1, 0, 1, 0]]  # (N, 4)
    is_number = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        outside = np.maximum(-boxes, boxes - limits).max(axis=1, initial=0)  # (N,)
        clipped = boxes.clip(0, limits)
        stored = clipped.astype(np.float32)  # what samples hold: two numbers may become one
        is_left = (stored[:, 2:] > stored[:, :2]).all(axis=1)
        is_good = is_number & (sides > 0).all(axis=1) & (outside <= margin) & is_left
    bad = {}
    for i in np.flatnonzero(~is_good).tolist():
        image = "its image of {:.0f}x{:.0f} (width x height)".format(*limits[i, :2])
        if not is_number[i]:
            bad[i] = "not all finite numbers"
        elif (sides[i] <= 0).any():
            kind, wrong = ("negative", sides[i] < 0) if (sides[i] < 0).any() else ("zero", sides[i] == 0)
            bad[i] = f"{kind} {' and '.join(np.compress(wrong, ['width', 'height']))}"
        elif outside[i] > margin:
            bad[i] = f"{outside[i]:g} px outside of {image}"
        else:
            bad[i] = f"nothing of it in {image}, to the precision of float32"
    corrected = np.flatnonzero(is_good & (outside > _ROUNDING))
    return clipped, bad, dict(zip(corrected.tolist(), outside[corrected].tolist(), strict=True))


def _counted(items, singular, plural):
    return f"{len(items)} {singular if len(items) == 1 else plural}"


def _listed(lines, most=20):
    shown = lines if most is None or len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} more"]
    return ":" + "".join(f"\n  {line}" for line in shown)
