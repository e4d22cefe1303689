"""What a model says of an image, and what it is asked."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detseg.data.masks import encode_masks
from detseg.errors import UserError
from detseg.report.drawing import draw_detections, draw_label_map

DEFAULT_TILE_MEMORY = 10**9  # bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image, at the image's own size; None for what its task doesn't say.

    label_map:      uint8 (H, W), 0..K-1.
    probabilities:  float32 (H, W, K), or None where they were not asked for.
    boxes:          float32 (N, 4), x1 y1 x2 y2 within the image, by falling score.
    labels:         int64 (N,), 0..K-1.
    scores:         float32 (N,).
    masks:          N compressed RLEs.
    proposals:      float32 (N, 4), the proposal that each box was moved from, where a model is given proposals.
    without_regression:  Prediction of the same image by the same scores with boxes where the proposals are, where the
                    model moves boxes by regressors that were fitted afterwards (R-CNN); to be scored beside it.
    classes:        tuple of K names, index = label; given by `Predictor.predict`, like
    image:          the image that was predicted, uint8 (H, W, C), and
    category_ids:   tuple of K, the ids that the classes have in the data; None: counted from 1.
    """

    label_map: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: list | None = None
    proposals: np.ndarray | None = None
    without_regression: "Prediction | None" = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    image: np.ndarray | None = field(default=None, repr=False)
    category_ids: Sequence[int] | None = None

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """The image, uint8 (H, W, C), with what was found drawn on it: uint8 RGB, as `predict` writes *_overlay.png."""
        image = self.image if image is None else np.asarray(image)
        if image is None or not self.classes:
            raise UserError("draw: this Prediction has no image or no class names; take that of Predictor.predict")
        if self.label_map is not None:
            return draw_label_map(image, self.label_map, self.classes)
        return draw_detections(image, self.boxes, self.labels, self.classes, self.scores, self.masks)

    def to_coco(self, image_id: int | str = 1, file_name: str | Path | None = None) -> list[dict]:
        """Detections as entries of COCO's results format: image_id, category_id, bbox [x, y, width, height], score.

        A label map has one entry for each class in it, with its pixels as segmentation (RLE), as COCO's stuff task has
        them; a background that is no category of the data has none.
        """
        from detseg.inference.results_files import coco_entries, rle_as_json

        name = {} if file_name is None else {"file_name": str(file_name)}
        ids = self.category_ids or range(1, 2**31)
        if self.label_map is None:
            return coco_entries(self, image_id, ids, **name)
        first = len(self.classes) - len(ids) if self.category_ids else 0
        labels = np.unique(self.label_map)
        labels = labels[labels >= first]
        masks = map(rle_as_json, encode_masks(self.label_map == labels[:, None, None]))
        return [
            {"image_id": image_id, "category_id": ids[label - first], "segmentation": mask, **name}
            for label, mask in zip(labels.tolist(), masks, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class SegmentationPredictionOptions:
    """What predictions of label maps are asked for beside the config."""

    probabilities: bool = False  # whether they carry them
    tta: bool = False  # whether they are averaged over the views of the config's `tta`
    tile: str | int | None = None  # "auto" or the side in pixels of the tiles in which images go through the model
    tile_memory: int = DEFAULT_TILE_MEMORY  # bytes for one tile, where tile is "auto"

    def __post_init__(self):
        _check("tile", self.tile, self.tile in (None, "auto") or _is_count(self.tile), "auto or a number of pixels")
        memory = self.tile_memory
        _check("tile_memory", memory, _is_number(memory) and memory > 0, "a number of bytes > 0")


@dataclass(frozen=True, slots=True)
class DetectionPredictionOptions:
    """What detections are asked for beside the config, whose values None stands for."""

    score_threshold: float | None = None  # only detections of a score above it
    max_detections: int | None = None  # of an image

    def __post_init__(self):
        threshold, most = self.score_threshold, self.max_detections
        is_fraction = threshold is None or (_is_number(threshold) and 0 <= threshold < 1)
        _check("score_threshold", threshold, is_fraction, "a number from 0 to below 1")
        _check("max_detections", most, most is None or _is_count(most), "a whole number from 1")


def _is_number(value, kind=numbers.Real):
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_count(value):
    return _is_number(value, numbers.Integral) and value > 0


def _check(name, value, is_right, expected):
    if not is_right:
        raise UserError(f"{name}: got {value!r}, expected {expected}")
