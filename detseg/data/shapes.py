"""Deterministic pictures of shapes: the embedded data set's images with the exact masks of their objects."""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

CLASSES = ("disk", "square", "triangle", "star", "ring")
SPLITS = ("train", "val", "test")
MIN_EXTENT, MAX_EXTENT = 20, 96  # pixels, the longer side of a whole object's box
MAX_OBJECTS = 6
MIN_VISIBLE = 0.5  # share of an object that later objects must leave visible
OCCLUDED = 0.05  # hidden share from which an object counts as occluded

# Regular star polygons {n/m} of circumradius 1: n lines, at most m - 1 of which a point inside may lie beyond.
_STAR_POLYGONS = {"square": (4, 1), "triangle": (3, 1), "star": (5, 2)}
_HOLES = {"disk": 0.0, "ring": 0.55}  # inner radius as a share of the outer
_EMPTY_SHARE = 0.03  # of the images
_NEIGHBOUR_SHARE = 0.3  # of the objects are first tried where they meet an earlier one
_BACKGROUND_SATURATION, _OBJECT_SATURATION = (0.0, 0.45), (0.3, 1.0)  # what is in front tends to be more vivid
_BACKGROUND_RELIEF, _OBJECT_RELIEF = (5, 25), (60, 100)  # RGB distance of a pattern's extremes from its mean colour
_OBJECT_PERIOD = (6, 9)  # pixels, of the patterns on objects
_CONTRAST = 110.0  # least RGB distance between the mean colours of surfaces that meet
_CONTOUR = np.ones((5, 5), np.uint8)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what is in it, the objects from back to front."""

    image: np.ndarray  # uint8 (S, S, 3), RGB
    labels: np.ndarray  # int (N,), index in CLASSES
    masks: np.ndarray  # bool (N, S, S), the visible pixels of each object, by pixel centre; no two overlap
    hidden: np.ndarray  # float (N,), the share of each object's pixels that others hide, at most 1 - MIN_VISIBLE
    extents: np.ndarray  # int (N,), the longer side in pixels of the box around each whole object


def draw_picture(seed, split, index, size=192):
    """The `index`-th Picture of a split, one of SPLITS: a function of its arguments alone, whatever else is drawn.

    size:    side of the square picture in pixels, at least 128.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    colour, canvas = _draw_surface(rng, size, "background")
    owner = np.zeros((size, size), np.uint8)  # 0 background, k the k-th object
    colours, labels, areas, extents = [colour], [], [0], []
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        coverage, mask = _draw_shape(rng, CLASSES[label])
        place = _find_place(rng, mask, owner, areas)
        if place is None:
            continue
        window = (slice(place[0], place[0] + mask.shape[0]), slice(place[1], place[1] + mask.shape[1]))
        met = np.unique(owner[window][coverage > 0])
        colour, pixels = _draw_surface(rng, max(mask.shape), CLASSES[label], unlike=[colours[k] for k in met])
        canvas[window] += coverage[..., None] * (pixels[: mask.shape[0], : mask.shape[1]] - canvas[window])
        owner[window][mask] = len(colours)
        colours.append(colour)
        labels.append(label)
        areas.append(int(mask.sum()))
        extents.append(max(mask.shape) - 2)
    masks = owner == np.arange(1, len(colours), dtype=np.uint8)[:, None, None]  # (N, S, S)
    hidden = 1 - masks.sum(axis=(1, 2)) / np.array(areas[1:])
    return Picture(_photograph(rng, canvas), np.array(labels, int), masks, hidden, np.array(extents, int))


def paint_label_maps(picture, void=255):
    """The VOC label maps of a Picture, with the void border along every outline.

    void:     the value of the border: four pixels wide, two on either side of the outline (VOC's is about five).
    Returns   semantic uint8 (S, S), 0 = background, else 1 + index in CLASSES;
              instances uint8 (S, S), 0 = background, else 1..N from back to front.
    """
    number = np.arange(1, len(picture.labels) + 1, dtype=np.uint8)[:, None, None]
    instances = (picture.masks * number).sum(axis=0, dtype=np.uint8)  # (S, S)
    semantic = np.concatenate([[0], picture.labels + 1]).astype(np.uint8)[instances]
    border = cv2.dilate(instances, _CONTOUR) != cv2.erode(instances, _CONTOUR)
    semantic[border] = instances[border] = void
    return semantic, instances


def _draw_shape(rng, name):
    """An object of random size, proportion and rotation: coverage float32 (h, w) in 0..1 and mask bool (h, w).

    Both are cut one pixel around it and come from the signed distance to the outline, so the mask is exact.
    """
    while True:
        extent = math.sqrt(rng.uniform(MIN_EXTENT**2, MAX_EXTENT**2))
        aspect, angle = rng.uniform(0.75, 1.0), rng.uniform(0, 2 * math.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        n, m = _STAR_POLYGONS.get(name, (64, 1))
        tips = [(math.cos(math.pi * (2 * k + m) / n), math.sin(math.pi * (2 * k + m) / n)) for k in range(n)]
        tips = [(cos * x - sin * y * aspect, sin * x + cos * y * aspect) for x, y in tips]
        radius = extent / max(np.ptp(tips, axis=0))
        side = math.ceil(2 * radius) + 6
        centre_x, centre_y = side / 2 + rng.uniform(-0.5, 0.5, 2)
        rows, columns = np.mgrid[:side, :side] + 0.5  # pixel centres
        x, y = (columns - centre_x) / radius, (rows - centre_y) / radius
        distance = radius * _signed_distance(name, cos * x + sin * y, (cos * y - sin * x) / aspect)
        mask = distance > 0
        x1, y1, x2, y2 = bounding_box(mask)
        if MIN_EXTENT <= max(x2 - x1, y2 - y1) <= MAX_EXTENT:
            window = (slice(y1 - 1, y2 + 1), slice(x1 - 1, x2 + 1))
            return np.clip(distance[window] + 0.5, 0, 1).astype(np.float32), mask[window]


def _signed_distance(name, x, y):
    """Distance of points x, y to the outline of a shape of circumradius 1: positive inside, a bound beyond corners."""
    if name in _HOLES:
        radius = np.sqrt(x * x + y * y)
        return np.minimum(1 - radius, radius - _HOLES[name]) if _HOLES[name] else 1 - radius
    n, m = _STAR_POLYGONS[name]
    turns = [2 * math.pi * k / n for k in range(n)]
    inside = [math.cos(math.pi * m / n) - (x * math.cos(turn) + y * math.sin(turn)) for turn in turns]
    return np.partition(inside, m - 1, axis=0)[m - 1]


def bounding_box(mask):
    """The box around the set pixels of a mask (H, W) with at least one: x1, y1, x2, y2 as ints, half-open."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _find_place(rng, mask, owner, areas):
    """Top and left of a place in the picture where `mask` leaves every earlier object visible enough, or None."""
    height, width = mask.shape
    room = np.array(owner.shape) - mask.shape  # highest top and left
    visible = np.bincount(owner.ravel(), minlength=len(areas))
    beside = len(areas) > 1 and rng.random() < _NEIGHBOUR_SHARE
    anchor = int(rng.integers(1, len(areas))) if beside else 0
    for attempt in range(40):
        if beside and attempt < 20:
            x1, y1, x2, y2 = bounding_box(owner == anchor)
            reach = np.array([y2 - y1 + height, x2 - x1 + width]) / 2
            place = np.array([y1 + y2 - height, x1 + x2 - width]) / 2 + reach * rng.uniform(-0.8, 0.8, 2)
            top, left = np.rint(place).astype(int).tolist()
            if not (0 <= top <= room[0] and 0 <= left <= room[1]):
                continue
        else:
            top, left = rng.integers(0, room + 1).tolist()
        covered = np.bincount(owner[top : top + height, left : left + width][mask], minlength=len(areas))
        if all(visible[k] - covered[k] >= MIN_VISIBLE * areas[k] for k in range(1, len(areas))):
            return top, left
    return None


def _draw_surface(rng, size, kind, unlike=()):
    """A texture for "background" or a class: its mean colour (3,), unlike some, and its pixels, float32 (S, S, 3)."""
    is_object = kind in CLASSES
    while True:
        hue, value = rng.random(), rng.uniform(60, 230)
        saturation = rng.uniform(*(_OBJECT_SATURATION if is_object else _BACKGROUND_SATURATION))
        colour = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if all(np.sqrt(np.sum((colour - other) ** 2)) >= _CONTRAST for other in unlike):
            break
    direction = rng.uniform(-1, 1, 3) + np.sign(rng.uniform(-1, 1))  # mostly lighter against darker
    direction *= rng.uniform(*(_OBJECT_RELIEF if is_object else _BACKGROUND_RELIEF)) / np.sqrt(np.sum(direction**2))
    draw = _OBJECT_PATTERNS[kind] if is_object else _BACKGROUND_PATTERNS[int(rng.integers(len(_BACKGROUND_PATTERNS)))]
    return colour, (colour + draw(rng, size)[..., None] * direction).astype(np.float32)


def _wave(position):
    """Triangle wave of period 1 in -1..1, in arithmetic that is equal on every machine."""
    return 4 * np.abs(position - np.floor(position) - 0.5) - 1


def _grid(rng, size, period=1):
    """Coordinates along a random direction and across it, in periods: (S, S) each, 0 at the centre."""
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = (np.mgrid[:size, :size] - (size - 1) / 2) / period
    along = columns * math.cos(angle) + rows * math.sin(angle)
    return along, rows * math.cos(angle) - columns * math.sin(angle)


def _stripes(rng, size, period=(5, 24)):
    return np.clip(_wave(_grid(rng, size)[0] / rng.uniform(*period)) * rng.uniform(1, 4), -1, 1)


def _checker(rng, size, period=(8, 32)):
    along, across = _grid(rng, size, rng.uniform(*period))
    return np.clip(_wave(along) * _wave(across) * 6, -1, 1)


def _dots(rng, size, period):
    along, across = _grid(rng, size, rng.uniform(*period))
    return np.clip((_wave(along) + _wave(across) - 0.5) * 3, -1, 1)


def _circles(rng, size, period):
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.clip(_wave(np.sqrt(rows * rows + columns * columns) / rng.uniform(*period)) * 3, -1, 1)


def _gradient(rng, size):
    return _grid(rng, size)[0] * (2 / size)


def _cloud(rng, size):
    """Smooth noise: random grids of a coarse and a finer scale, scaled up."""
    scale, noise = rng.uniform(8, 48), 0  # pixels
    for share, cell in ((1, scale), (0.5, scale / 3)):
        cells = max(2, round(size / cell))
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        # Pillow resizes 8 bit images in integers: the same bits on every machine.
        noise += share * (np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / 127.5 - 1)
    return np.clip(noise, -1, 1)


_BACKGROUND_PATTERNS = (_stripes, _checker, _gradient, _cloud, lambda rng, size: rng.uniform(-1, 1, (size, size)))
# Shape alone takes a network without pretraining longer to learn than a quickstart may last: each class has a pattern
# of its own too, as things in the world do. Backgrounds share three of the five.
_OBJECT_PATTERNS = {
    "disk": lambda rng, size: _circles(rng, size, _OBJECT_PERIOD),
    "square": lambda rng, size: _checker(rng, size, [2 * length for length in _OBJECT_PERIOD]),
    "triangle": lambda rng, size: _stripes(rng, size, _OBJECT_PERIOD),
    "star": lambda rng, size: _dots(rng, size, _OBJECT_PERIOD),
    "ring": _gradient,
}


def _photograph(rng, canvas):
    """What a modest camera makes of the scene: uneven light, blur, noise. float32 (S, S, 3) -> uint8 (S, S, 3)."""
    light = 1 + rng.uniform(0, 0.12) * _gradient(rng, len(canvas))[..., None]
    image = np.clip(np.rint(canvas * light), 0, 255).astype(np.uint8)
    image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.3, 1.0))  # in 8 bits OpenCV's result is the same on every CPU
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 7))
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
