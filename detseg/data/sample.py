"""One labelled image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with what is known about it; arrays follow the conventions of `detseg`.

    image:      uint8 (H, W, C).
    label_map:  uint8 (H, W) of class indices and ignore_label, or None where there are no semantic labels.
    name:       the image's identifier in its split: unique, written in results and messages.
    path:       the image file.
    """

    image: np.ndarray
    name: str
    path: Path
    label_map: np.ndarray | None = None
