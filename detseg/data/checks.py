"""Boxes that can't be: found, and refused or dropped as data.on_bad_box says."""

import logging

import numpy as np

from detseg.errors import UserError

_log = logging.getLogger("detseg")
_MOST_SHOWN = 20
_MARGIN = 1.0  # pixels outside of the image that are taken for rounding or off-by-one, and clipped
_ROUNDING = 0.01  # pixels: the grain of COCO's numbers; clipping less than that isn't worth a word


def find_bad_boxes(boxes, sizes, sides=None):
    """Which boxes are empty, negative, no numbers or more than a pixel outside of their image; the others clipped.

    boxes:   float64 (N, 4), x1 y1 x2 y2; nan where there is no number.
    sizes:   (N, 2), height and width of each one's image.
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
        is_good = is_number & (sides > 0).all(axis=1) & (outside <= _MARGIN) & is_left
    bad = {}
    for i in np.flatnonzero(~is_good).tolist():
        width, height = limits[i, :2].astype(int)
        if not is_number[i]:
            bad[i] = "not all finite numbers"
        elif (sides[i] <= 0).any():
            bad[i] = _side_problem(*sides[i])
        elif outside[i] > _MARGIN:
            bad[i] = f"{outside[i]:g} px outside of its image of {width}x{height} (width x height)"
        else:
            bad[i] = f"nothing of it in its image of {width}x{height} (width x height), to the precision of float32"
    corrected = np.flatnonzero(is_good & (outside > _ROUNDING))
    return clipped, bad, dict(zip(corrected.tolist(), outside[corrected].tolist(), strict=True))


def _side_problem(width, height):
    for sign, word in ((-1, "negative"), (0, "zero")):
        wrong = [name for name, side in (("width", width), ("height", height)) if np.sign(side) == sign]
        if wrong:
            return f"{word} {' and '.join(wrong)}"
    raise ValueError("the box has positive width and height")


def settle_bad_boxes(bad, clipped, split, count, on_bad_box):
    """UserError that lists up to 20 bad boxes, or with on_bad_box "drop" a warning that lists all; clipped ones are
    counted.

    bad, clipped:  list of str: file, object, field and what is wrong.
    split:         the split's name; count: objects in it.
    """
    if bad and on_bad_box == "refuse":
        raise UserError(
            f"split {split!r}: {_counted(bad, 'bad box', 'bad boxes')} of {count}; correct them, or leave them out by "
            f"data.on_bad_box: drop{_listed(bad)}"
        )
    if bad:
        _log.warning(
            "split %r: %s of %d dropped (data.on_bad_box)%s",
            *(split, _counted(bad, "bad box", "bad boxes"), count, _listed(bad, most=None)),
        )
    if clipped:
        _log.warning(
            "split %r: %s of %d, which reached up to a pixel out of the image, clipped%s",
            *(split, _counted(clipped, "box", "boxes"), count, _listed(clipped)),
        )


def raise_problems(head, problems, tail=""):
    """UserError with up to 20 of the problems, if there are any: "HEAD: 3 problemsTAIL: ..."."""
    if problems:
        raise UserError(f"{head}: {_counted(problems, 'problem', 'problems')}{tail}{_listed(problems)}")


def _counted(items, singular, plural):
    return f"{len(items)} {singular if len(items) == 1 else plural}"


def _listed(lines, most=_MOST_SHOWN):
    rest = len(lines[most:]) if most else 0
    shown = [*lines[:most], *([f"... and {rest} more"] if rest else [])]
    return ":" + "".join(f"\n  {line}" for line in shown)
