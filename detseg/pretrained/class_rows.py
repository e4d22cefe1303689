"""Rows of classifiers that a model takes over from another one's, by the names of their classes."""

import re
from typing import NamedTuple

import numpy as np

# Names of VOC, and of models trained on it, for what COCO calls otherwise.
_SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}


class ClassOutputs(NamedTuple):
    """What the outputs of a classifying layer are, the last axis of its weights: places x classes x numbers."""

    numbers: int = 1  # of each class
    has_background: bool = False  # whether one output more, the last, is background's


# Layer -> its outputs. RetinaNet's has several places: its anchors.
CLASS_LAYERS = {
    "class_logits": ClassOutputs(has_background=True),
    "class_boxes": ClassOutputs(numbers=4),
    "mask_logits": ClassOutputs(),
    "class_output": ClassOutputs(),
    "logits_conv": ClassOutputs(),
    "auxiliary_logits_conv": ClassOutputs(),
    **dict.fromkeys(("score8", "score16", "score32"), ClassOutputs()),
}


def same_classes(names, source_names):
    """int (K,): for each of K class names the place of the same class among the source's (None: of no class), or -1.

    Case, blanks, hyphens and underscores don't count, and four of VOC's names are COCO's.
    """
    places = {_plain(name): place for place, name in enumerate(source_names) if name is not None}
    return np.array([places.get(_plain(name), -1) for name in names], int)


def _plain(name):
    plain = re.sub(r"[\s_-]", "", name.lower())
    return _SYNONYMS.get(plain, plain)


def taken_over(own, theirs, outputs, places, source_count):
    """Arrays of a layer with those rows that the source has, and its own where that has none; None if they don't fit.

    own, theirs:   lists of arrays, a classifying layer's and the source's; the last axis is the outputs.
    outputs:       its ClassOutputs.
    places:        of `same_classes`.
    source_count:  classes of the source.
    """
    background = int(outputs.has_background)
    repeats, rest = divmod(own[-1].shape[-1] - background, len(places) * outputs.numbers)
    if rest or theirs[-1].shape[-1] != repeats * source_count * outputs.numbers + background:
        return None
    if [array.shape[:-1] for array in own] != [array.shape[:-1] for array in theirs]:
        return None
    numbers = np.arange(outputs.numbers)
    places = np.where(places[:, None] < 0, -1, places[:, None] * outputs.numbers + numbers).ravel()  # (K * numbers,)
    starts = np.arange(repeats)[:, None] * source_count * outputs.numbers
    rows = np.where(places < 0, -1, starts + places).ravel()
    rows = np.concatenate([rows, [theirs[-1].shape[-1] - 1] * background]).astype(int)
    return [np.where(rows < 0, mine, array[..., rows]) for mine, array in zip(own, theirs, strict=True)]
