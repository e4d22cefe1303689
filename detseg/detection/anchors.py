"""Anchors: the boxes of fixed sizes and shapes, at every position of every feature level, that are classified and moved
(Ren et al.: Faster R-CNN, 2015, section 3.1.1)."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from detseg.errors import UserError

CENTRES = {"cell": 0.5, "corner": 0.0}  # of a position's anchors, in strides from its cell's top left


@dataclass(frozen=True, slots=True)
class Anchors:
    """Shapes of anchors.

    sizes:    for each level its size, or a tuple of sizes: the square root of an anchor's area, in pixels.
    ratios:   height / width, for every level (the order of py-faster-rcnn and torchvision).
    scales:   by which each size is multiplied: (1, 2 ** (1 / 3), 2 ** (2 / 3)) in RetinaNet's paper.
    centre:   "cell": in the middle of the stride x stride pixels of a position, as in the paper's code, whose middle
              (stride - 1) / 2 of inclusive pixels is stride / 2 in our half-open coordinates. "corner": at their top
              left, a multiple of the stride, as in torchvision.
    rounded:  bool, whether the corners of the anchors around 0 are rounded to whole pixels, as in torchvision.
              (The paper's code rounds the shapes of size 16 before they are scaled: an anchor of size 128 and ratio
              1 / 2 is 184 x 96 there and 181 x 90.5 here.)
    The anchors of a position are ordered by ratio, then by size, then by scale: what a head's channels stand for.
    """

    sizes: tuple
    ratios: tuple = (0.5, 1.0, 2.0)
    scales: tuple = (1.0,)
    centre: str = "cell"
    rounded: bool = False

    def __post_init__(self):
        if self.centre not in CENTRES:
            raise ValueError(f"centre {self.centre!r}: expected one of {', '.join(CENTRES)}")

    def count(self, level=0):
        """How many there are at a position of the level of this index."""
        return len(self.shapes(level))

    def shapes(self, level):
        """float32 (A, 4): the anchors of the level of this index around (0, 0)."""
        sizes = np.outer(np.atleast_1d(self.sizes[level]), self.scales).ravel().astype("float32")
        heights = np.sqrt(np.array(self.ratios, "float32"))  # of area 1
        widths = 1 / heights
        width, height = np.outer(widths, sizes).ravel(), np.outer(heights, sizes).ravel()
        shapes = np.stack([-width, -height, width, height], axis=-1) / 2
        return shapes.round() if self.rounded else shapes

    def __call__(self, level_sizes, strides):
        """The anchors of each level.

        level_sizes:  for each level (height, width) of its map, ints or scalar tensors.
        strides:      for each level its stride in pixels, or (vertical, horizontal), ints or scalar tensors.
                      torchvision takes image size // map size, which differs from the nominal stride where a map's
                      size has been rounded up.
        Returns       list of (height * width * A, 4) float32 x1 y1 x2 y2, row by row, then as in `shapes`. They are
                      not clipped: those at the border reach out of the image.
        """
        pairs = zip(level_sizes, strides, strict=True)
        return [self._grid(level, size, stride) for level, (size, stride) in enumerate(pairs)]

    def _grid(self, level, size, stride):
        vertical, horizontal = stride if isinstance(stride, tuple | list) else (stride, stride)
        y = self._centres(size[0], vertical)[:, None]  # (H, 1)
        x = self._centres(size[1], horizontal)[None, :]  # (1, W)
        x, y = x + ops.zeros_like(y), y + ops.zeros_like(x)
        centres = ops.stack([x, y, x, y], axis=-1)  # (H, W, 4)
        return ops.reshape(centres[:, :, None] + self.shapes(level), (-1, 4))

    def _centres(self, count, stride):
        return (ops.arange(count, dtype="float32") + CENTRES[self.centre]) * ops.cast(stride, "float32")


# model.anchor_form -> where and how anchors lie
FORMS = {
    "cell": {"centre": "cell", "rounded": False},
    "torchvision": {"centre": "corner", "rounded": True},
}


class LevelAnchors:
    """The anchors of a detector's levels, by the values of its config.

    sizes, ratios, scales:  of `Anchors`; sizes has an item for each level, as many sizes in each.
    form:                   a key of `FORMS`. "torchvision": at the corners of cells, of whole pixels, and a level's are
                            image size // map size apart, not its stride.
    strides:                {native stride of each level, as its name: actual stride}.
    Raises UserError for sizes that don't fit the levels.
    """

    def __init__(self, sizes, ratios, scales, form, strides):
        sizes = tuple(tuple(size) if isinstance(size, list | tuple) else size for size in sizes)
        counts = {np.size(size) for size in sizes}
        if len(sizes) != len(strides) or len(counts) != 1:
            raise UserError(
                f"model.anchor_sizes: {list(sizes)} doesn't fit the {len(strides)} levels, of strides "
                f"{', '.join(map(str, strides))}; expected one item for each, all of them sizes in pixels or all lists "
                "of equally many, since the levels share one head"
            )
        self.anchors = Anchors(sizes, tuple(ratios), tuple(scales), **FORMS[form])
        self.strides = tuple(strides.values())
        self._follow_maps = form == "torchvision"

    def count(self):
        """How many there are at a position."""
        return self.anchors.count()

    def __call__(self, image_size, level_sizes):
        """The anchors of each level, list of (N, 4) float32 as those of `Anchors`.

        image_size, level_sizes:  (height, width) of the padded image and of each map, ints or scalar tensors.
        """
        strides = self.strides
        if self._follow_maps:
            height, width = image_size
            strides = [(height // rows, width // columns) for rows, columns in level_sizes]
        return self.anchors(level_sizes, strides)
