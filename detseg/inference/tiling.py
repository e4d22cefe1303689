"""Images of any size through a segmentation network, tile by tile (U-Net, section 2 and figure 2: "overlap-tile").

Beyond its border the image is mirrored. Tiles overlap by what the network's receptive field needs, so that together
they equal the network on the mirrored whole image, to float rounding.
"""

import logging
import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from detseg.analysis.receptive_field import inexact_layers, peak_bytes, receptive_field
from detseg.errors import UserError
from detseg.inference.compile import compile_forward
from detseg.inference.prediction import DEFAULT_TILE_MEMORY, Prediction
from detseg.layers.padding import MirrorPad
from detseg.layers.resize import resize_bilinear

logger = logging.getLogger("detseg")

# What a network takes over the maps alive (`peak_bytes`), most of it oneDNN's reordered copies. Measured on CPUs, 1020
# to 2048 pixels wide: U-Nets of width 16 1.23 to 1.52, of width 64 1.19, with ResNet-18 1.11, FCNs 1.30 and 1.34.
_COPIES = 1.5


class Tiler:
    """A segmentation model as a function of images of any size, in bounded memory.

    model:         keras.Model (B, H, W, C) uint8 -> logits (B, H, W, K), functional. One with layers that look at whole
                   maps (global pooling, group norm) can't equal itself on the whole image: a warning says so, and tiles
                   are blended over a quarter of their size.
    tile:          "auto", or the most pixels of a tile's side, overlap included (572 for the paper's U-Net). All tiles
                   of an image have one size, at most this, and so small that no fewer would do. UserError where it is
                   too small or doesn't fit the network's strides.
    memory_bytes:  of one tile in the network, from which "auto" gets the size.
    """

    def __init__(self, model, tile="auto", memory_bytes=DEFAULT_TILE_MEMORY):
        network, margin, residue = without_mirror(model)
        inexact = inexact_layers(network)
        if inexact:
            names = ", ".join(inexact[:3]) + (f" and {len(inexact) - 3} more" if len(inexact) > 3 else "")
            logger.warning(
                "tiles of this model can't equal the whole image because of its layers %s; they are blended", names
            )
        fields = [receptive_field(network, axis, residue) for axis in (0, 1)]
        self.axes = [_axis(field, residue, margin, blended=bool(inexact)) for field in fields]
        self.classes = model.output_shape[-1]
        if tile == "auto":
            tile = _largest_tile(self.axes, memory_bytes, _COPIES * peak_bytes(network))
        else:
            _check_tile(self.axes, tile)
        self.tile = tile
        rows, columns = (slice(axis.cut[0], -axis.cut[1] or None) for axis in self.axes)

        def scores(logits, height, width):
            return (ops.softmax(ops.cast(logits[:, rows, columns], "float32")),)

        def label_map(logits, height, width):
            return (ops.cast(ops.argmax(scores(logits, height, width)[0], axis=-1), "uint8"),)

        self._scores, self._label_map = compile_forward(network, scores), compile_forward(network, label_map)

    def predict(self, image, probabilities=False):
        """The Prediction of uint8 (H, W, C); probabilities: bool, whether it has them."""
        bands = [
            (band.label_map, band.probabilities) if probabilities else (band.label_map,)
            for band in self.bands(ImageSource(image), probabilities)
        ]
        return Prediction(*map(np.concatenate, zip(*bands, strict=True)))

    def forward(self, probabilities, images, size):
        """Label map (1, H, W) and, with probabilities or a size, scores: as a function of `compile_forward`."""
        prediction = self.predict(images[0], probabilities or size is not None)
        if size is None:
            return prediction.label_map[None], prediction.probabilities[None] if probabilities else None
        scores = np.asarray(resize_bilinear(ops.convert_to_tensor(prediction.probabilities[None]), *size))
        return scores.argmax(-1).astype("uint8"), scores

    def bands(self, source, probabilities=False, on_tile=lambda: None):
        """The Prediction of a large image as an iterator of bands of rows, from the top down.

        source:   `ImageSource` or `detseg.data.windows.TiffReader`.
        on_tile:  function without arguments, called after each of the `tile_count` tiles.
        Memory: one tile in the network, and a band of label maps (W bytes a row; with probabilities or where tiles are
        blended W * K floats a row).
        """
        if self.axes[0].blended:
            return self._blended_bands(source, on_tile)
        return self._exact_bands(source, probabilities, on_tile)

    def tile_count(self, shape):
        """Into how many tiles an image of shape (H, W, ...) is cut."""
        return math.prod(len(starts) for starts, _ in self._plans(shape))

    def _plans(self, shape):
        return [axis.plan(length, self.tile) for axis, length in zip(self.axes, shape, strict=False)]

    def _read(self, source, row, column, size):
        """uint8 (1, h, w, C): the tile of this size whose block starts there, mirrored beyond the image's border."""
        starts = (row - self.axes[0].before, column - self.axes[1].before)
        rows, columns = (mirrored_places(*axis) for axis in zip(starts, size, source.shape[:2], strict=True))
        row, column = int(rows.min()), int(columns.min())
        window = source.read(row, column, int(rows.max()) + 1 - row, int(columns.max()) + 1 - column)
        return window[(rows - row)[:, None], columns - column][None]

    def _exact_bands(self, source, probabilities, on_tile):
        (rows, columns), size = zip(*self._plans(source.shape), strict=True)
        for row in rows:
            parts = []
            for column in columns:
                tile = self._read(source, row, column, size)
                (part,) = (self._scores if probabilities else self._label_map)(tile, None)
                parts.append(np.asarray(part[0])[: source.shape[0] - row])
                on_tile()
            band = np.concatenate(parts, axis=1)[:, : source.shape[1]]  # (h, W) or (h, W, K)
            yield Prediction(_most_probable(band), band) if probabilities else Prediction(band)

    def _blended_bands(self, source, on_tile):
        (rows, columns), size = zip(*self._plans(source.shape), strict=True)
        (height, width), step = source.shape[:2], rows.step
        total = np.zeros((size[0] - self.axes[0].overlap, width, self.classes), "float32")
        for row, row_weights in zip(rows, self.axes[0].weights(rows, size[0]), strict=True):
            for column, column_weights in zip(columns, self.axes[1].weights(columns, size[1]), strict=True):
                (scores,) = self._scores(self._read(source, row, column, size), None)
                blended = row_weights[:, None, None] * column_weights[:, None] * np.asarray(scores[0])
                total[:, column : column + len(column_weights)] += blended[:, : width - column]
                on_tile()
            band = total[: height - row if row == rows[-1] else step].copy()  # no later tile reaches these rows
            yield Prediction(_most_probable(band), band)
            total[:-step] = total[step:]
            total[-step:] = 0


def _most_probable(scores):
    """uint8 (h, W) of (h, W, K), row by row: numpy's indices are eight times as large."""
    return np.stack([row.argmax(axis=-1).astype("uint8") for row in scores])


class ImageSource:
    """An image (H, W, C) in memory, read by windows."""

    def __init__(self, image):
        self.shape = image.shape
        self._image = image

    def read(self, row, column, height, width):
        return self._image[row : row + height, column : column + width]


# ----- how tiles lie along one axis ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileAxis:
    """What a network asks of its tiles, along one axis. A tile gives a smaller block of results."""

    alignment: int  # pixels; tiles must lie at multiples of it
    residue: int  # tiles have this many pixels more than a multiple of `alignment`
    before: int  # from the first pixel of a tile to that of its block
    overlap: int  # pixels that a tile has more than its block
    cut: tuple[int, int]  # the network's results at the front and the end of a tile that don't belong to its block
    blended: bool  # whether blocks overlap; else they lie edge to edge

    @property
    def smallest(self):
        """The smallest tile: its block is one aligned step, or two that overlap by one."""
        return self.at_least(self.overlap + (2 if self.blended else 1) * self.alignment)

    def at_least(self, size):
        """The smallest size of a tile from `size` pixels on."""
        return size + (self.residue - size) % self.alignment

    def at_most(self, size):
        """The largest size of a tile up to `size` pixels."""
        return size - (size - self.residue) % self.alignment

    def step(self, tile):
        """Pixels from one block to the next: of blended ones, which overlap by a quarter, never more than two meet."""
        block = tile - self.overlap
        blended = max(block * 3 // 4 // self.alignment, -(-block // 2 // self.alignment)) * self.alignment
        return blended if self.blended else block

    def count(self, length, tile):
        step = self.step(tile)
        return max(1, -(-(length - tile + self.overlap) // step) + 1)

    def plan(self, length, largest):
        """The first pixel of each block, range, of `length` pixels, and the tile: the smallest that needs no more tiles
        than `largest` does."""
        largest = self.at_most(largest)
        count = self.count(length, largest)
        sizes = range(self.smallest, largest + 1, self.alignment)
        tile = next(size for size in sizes if self.count(length, size) == count)
        step = self.step(tile)
        return range(0, count * step, step), tile

    def weights(self, starts, tile):
        """float32 (block,) for each tile: squared sines where blocks overlap, so that they sum to 1 everywhere."""
        block = tile - self.overlap
        common = block - starts.step
        ramp = np.sin((np.arange(common) + 0.5) * (np.pi / 2 / max(common, 1))).astype("float32") ** 2
        for start in starts:
            weights = np.ones(block, "float32")
            if start != starts[0]:
                weights[:common] = ramp
            if start != starts[-1]:
                weights[starts.step :] = 1 - ramp
            yield weights


def _axis(field, residue, margin, blended):
    """The TileAxis of a network whose results have this Field; result 0 belongs to the tile's pixel `margin`."""
    alignment = field.alignment
    front = end = 0
    if not blended:
        # Results from `front` on, and up to `end` before the last, look at nothing beyond the tile.
        front = max(0, -(field.first.min() // alignment)) * alignment
        steps = min((residue - 1 - field.last.max()) // alignment + 1, field.extra // alignment)
        end = field.extra - steps * alignment
    overlap = residue - field.extra + front + end
    return TileAxis(alignment, residue, int(front + margin), int(overlap), (int(front), int(end)), blended)


def without_mirror(model):
    """(network, margin, residue): a model without its own mirroring at the border, which would mirror every tile's; the
    tile's pixel at which its first result belongs; what tiles have more than a multiple of the alignment."""
    mirrors = [layer for layer in model.layers if isinstance(layer, MirrorPad)]
    if not mirrors:
        return model, 0, 0
    (mirror,) = mirrors
    scores, _ = model.get_layer("logits").input  # before they are cut to the image's size
    before, behind = keras.Model(model.input, mirror.input), keras.Model(mirror.output, scores)
    images = keras.Input(model.input_shape[1:], dtype="uint8")
    network = keras.Model(images, behind(before(images)))
    return network, mirror.margin, (mirror.remainder + 2 * mirror.margin) % mirror.multiple


def _largest_tile(axes, memory_bytes, bytes_per_pixel):
    smallest = max(axis.smallest for axis in axes)
    side = min(axis.at_most(math.isqrt(int(memory_bytes / bytes_per_pixel))) for axis in axes)
    if side < smallest:
        raise UserError(
            f"--tile auto: the smallest tile of this model, {smallest} pixels wide, takes "
            f"{smallest**2 * bytes_per_pixel / 1e6:.0f} MB, but only {memory_bytes / 1e6:.0f} MB are given. Give it "
            "more or take a smaller model"
        )
    return side


def _check_tile(axes, tile):
    for axis in axes:
        if tile < axis.smallest or axis.at_most(tile) != tile:
            down, up = axis.at_most(tile), axis.at_least(tile)
            nearest = max(axis.smallest, down if tile - down < up - tile else up)
            multiple = f"a multiple of {axis.alignment}" + (f" plus {axis.residue}" if axis.residue else "")
            raise UserError(
                f"--tile: {tile} can't work with this model; expected {multiple}, at least {axis.smallest}, of which "
                f"neighbours share {axis.overlap}. The nearest that works is {nearest}"
            )


def mirrored_places(start, count, length):
    """int (count,): the pixels of a line of `length` that stand at start, start + 1 .. of its endless mirror images."""
    period = max(2 * (length - 1), 1)
    places = np.arange(start, start + count) % period
    return np.minimum(places, period - places)
