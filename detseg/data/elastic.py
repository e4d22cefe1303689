"""Elastic deformation as in the U-Net paper: `elastic_maps` draws it, the others move one kind of array each by it.

The moved image shows at each pixel what the image, mirrored beyond its border, has at the maps' source coordinates.
"""

from functools import lru_cache, partial

import cv2
import numpy as np

from detseg.data.pixels import in_parts

_remap = partial(cv2.remap, borderMode=cv2.BORDER_REFLECT_101)
_POINTS_PER_SIDE = 16  # of a box's outline: the displacement between two of them is a straight line to about 0.1 px
# Each step takes this share of what is missing. With the whole of it, steps diverge where the deformation shrinks the
# image to less than half; with this, they don't down to about a third.
_STEP = 0.7
_STEPS = 10  # make 0.1 px of an error of 10 px where the deformation enlarges the image to twice its size


def elastic_maps(height, width, rng, grid=3, sigma=10.0):
    """A random smooth deformation (Ronneberger et al., U-Net, MICCAI 2015, section 3.1).

    Displacement vectors are drawn from a normal distribution at grid x grid nodes and interpolated bicubically
    (Keys 1981) to every pixel. The outermost nodes are the centres of the image's corner pixels, so the nodes of the
    paper's 3 x 3 grid are the corners, the middles of the sides and the centre.

    grid:   nodes along each axis, at least 2.
    sigma:  standard deviation of a displacement along each axis, in pixels. The image folds over itself where the
            displacement changes by more than a pixel a pixel: rarely while nodes are more than 6 sigma apart.
    Returns map_x, map_y: float32 (height, width), the source coordinates of each pixel as cv2.remap takes them, in
            which (0, 0) is the centre of the first pixel.
    """
    rows, columns = _cubic_weights(height, grid), _cubic_weights(width, grid)  # (H, grid), (W, grid)
    dx, dy = rng.normal(0, sigma, (2, grid, grid)).astype(np.float32)
    # Not by @, whose BLAS has threads of its own: on a busy machine they wait for each other, up to 16 ms a call.
    map_x, map_y = (np.einsum("hi,iw->hw", rows, np.einsum("ij,wj->iw", d, columns)) for d in (dx, dy))
    map_x += np.arange(width, dtype=np.float32)
    map_y += np.arange(height, dtype=np.float32)[:, None]
    return map_x, map_y


def move_image(image, maps):
    """uint8 (H, W, C), any C, by `elastic_maps`: interpolated bilinearly."""
    if image.shape[2] == 3:  # by way of four channels: cv2 5 takes half the time for them, and cv2 4 the same
        moved = _remap(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), *maps, cv2.INTER_LINEAR)
        return cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)
    return in_parts(lambda part: _remap(part, *maps, cv2.INTER_LINEAR), image)


def move_labels(labels, maps):
    """Class indices or instance ids, uint8, uint16 or int32 (H, W), by `elastic_maps`: those of the nearest pixel."""
    return _remap(labels, *maps, cv2.INTER_NEAREST)


def move_masks(masks, maps):
    """Instance masks, uint8 (N, H, W), by `elastic_maps`: those of the nearest pixel."""
    return np.array([move_labels(mask, maps) for mask in masks], masks.dtype).reshape(masks.shape)


def move_boxes(boxes, maps):
    """The boxes around the moved outlines of boxes, both float32 (N, 4), where no masks tell more.

    They are clipped to the image: one that has left it has no width or no height. Mirrored copies aren't enclosed.
    """
    if not len(boxes):
        return boxes
    share = np.arange(_POINTS_PER_SIDE, dtype=np.float32) / _POINTS_PER_SIDE
    zeros, ones = np.zeros_like(share), np.ones_like(share)
    along_x = np.concatenate([share, ones, 1 - share, zeros])  # once around the unit square
    along_y = np.concatenate([zeros, share, ones, 1 - share])
    x1, y1, x2, y2 = boxes.T[..., None]  # (N, 1)
    x, y = _targets(x1 + (x2 - x1) * along_x, y1 + (y2 - y1) * along_y, maps)  # (N, P)
    height, width = maps[0].shape
    x, y = x.clip(0, width), y.clip(0, height)
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)


@lru_cache(maxsize=64)  # a fifth of a deformation's time; loaders crop to one size
def _cubic_weights(size, grid):
    """Weights of nodes at the pixel centres of one axis, float32 (size, grid), by cubic convolution (Keys, eq. 15)."""
    positions = np.linspace(0, grid - 1, size, dtype=np.float32)[:, None]
    distances = np.abs(positions - np.arange(-1, grid + 1, dtype=np.float32))  # (size, grid + 2): a node more each side
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((2.5 - 0.5 * distances) * distances - 4) * distances + 2
    weights = np.where(distances < 1, near, np.where(distances < 2, far, np.float32(0)))
    weights[:, 1] += weights[:, 0]  # beyond the outermost nodes their displacement goes on
    weights[:, -2] += weights[:, -1]
    weights = weights[:, 1:-1]
    weights.flags.writeable = False
    return weights


def _targets(x, y, maps):
    """Where points, float32 (N, P) in pixels, are moved to: the fixed points of p <- p + step (source - map(p))."""
    height, width = maps[0].shape
    source = np.stack([x, y]) - 0.5  # pixel centres are the maps' whole numbers
    limits = np.array([width - 1, height - 1], np.float32)[:, None, None]
    target = source.copy()
    for _ in range(_STEPS):
        inside = target.clip(0, limits)  # beyond the border the displacement is that of the border
        looked_up = [cv2.remap(each, *inside, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for each in maps]
        target += _STEP * (source - (looked_up + target - inside))
    return target + 0.5
