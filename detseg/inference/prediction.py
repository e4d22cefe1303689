"""What a model says of an image, and what it is asked."""

from dataclasses import dataclass

import numpy as np

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
    """

    label_map: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: list | None = None


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """What evaluate and predict are asked for beside the config. A task refuses what it has not (`check_options`).

    probabilities:    bool, whether predictions carry them.
    tta:              bool, whether they are averaged over the views of the config's `tta`.
    tile:             None, "auto" or the side in pixels of the tiles in which images go through the model.
    tile_memory:      bytes for one tile, where tile is "auto".
    score_threshold:  only detections of a score above it; None: the config's.
    max_detections:   of an image; None: the config's.
    voc_xml:          bool, whether to write a VOC annotation of each image.
    voc_boxes:        "inclusive" or "continuous", the numbers in it; None: those of data.voc_boxes, else inclusive.
    """

    probabilities: bool = False
    tta: bool = False
    tile: str | int | None = None
    tile_memory: int = DEFAULT_TILE_MEMORY
    score_threshold: float | None = None
    max_detections: int | None = None
    voc_xml: bool = False
    voc_boxes: str | None = None


PLAIN = PredictionOptions()
