"""Figures of segmentation and detection: pure functions and collectors of arrays.

Label maps may be of any integer type or bool, masks RLEs or arrays, everything of any memory order.
"""

import importlib

_MODULES = {  # loaded on first use
    "semantic": ("confusion_matrix", "segmentation_scores", "dice_scores", "BoundaryScores"),
    "em": ("EMScores",),
    "instances": ("InstanceScores",),
    "detection": ("DetectionScores", "DetectionConfusion"),
    "coco": ("CocoScores", "CocoSettings"),
    "voc": ("VocScores", "PrecisionRecall", "area_average", "eleven_point_average", "box_overlaps"),
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
