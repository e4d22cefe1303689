"""The pixels that an output of a network depends on, computed from its layers.

Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill, 2019), but pixel by pixel:
behind strides and transposed convolutions neighbours look at windows of different sizes, so a map's field is kept for
one period of pixels.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import keras
import numpy as np

from detseg.backbones.backbone import Preprocess
from detseg.layers.padding import CentreCropLike, CropLike, PadToMultiple
from detseg.layers.pooling import DilatedMaxPool
from detseg.layers.resize import ResizeLike
from detseg.layers.upsample import BilinearUpsample


@dataclass(frozen=True, eq=False)
class Field:
    """Where the pixels of a map look, along one axis of the image.

    stride:       Fraction, image pixels from one pixel of the map to the next.
    first, last:  int arrays (P,), the first and the last image pixel on which the map's pixels 0..P-1 depend, counted
                  from the image's first pixel and on beyond its border. P pixels on, everything is P * stride further.
    extra:        int, the map's size less size / stride, where the image has `size` pixels and a residue (see
                  `receptive_field`), and `size` is a multiple of `alignment`.
    """

    stride: Fraction
    first: np.ndarray
    last: np.ndarray
    extra: int

    @property
    def alignment(self):
        """The image pixels by which the image must move for the map to be the same, moved with it."""
        return int(self.stride * len(self.first))

    def reads(self, starts, ends):
        """(first, last) image pixel seen by the map's pixels from `starts` to `ends`, int arrays (N,) each."""
        period = len(self.first)
        first = self.first[starts % period] + starts // period * self.alignment
        return first, self.last[ends % period] + ends // period * self.alignment


@dataclass(frozen=True, eq=False)
class Map:
    """What a layer makes of the maps `sources` in a model's graph; the image has no layer."""

    layer: keras.layers.Layer | None = None
    sources: tuple = ()


def receptive_field(model, axis, residue=0):
    """The Field of a functional model's output.

    model:    keras.Model (B, H, W, C) -> (B, H', W', K); models inside it are looked into.
    axis:     0: rows of the image, 1: columns.
    residue:  int. Where layers pad and crop can depend on the image's size; the field holds for images of `residue`
              pixels more than a multiple of its alignment.
    Zero padding counts as image beyond its border. Layers that look at whole maps (`inexact_layers`) are taken for what
    they are besides. Raises NotImplementedError for a layer whose reach isn't known here.
    """
    maps, output = graph(model)
    return _fields(maps, axis, residue)[output]


def inexact_layers(model):
    """Names of the layers that look at whole maps or don't commute with a shift, so that no tile equals the image."""
    maps, _ = graph(model)
    fields = _fields(maps, axis=0, residue=0)
    return [item.layer.name for item in maps[1:] if _is_inexact(item.layer, [fields[s] for s in item.sources])]


def peak_bytes(model):
    """float, bytes per image pixel of the float32 maps that are alive at the same time at the worst moment.

    The layers run one after the other, each map lives until the last layer that reads it, and no layer works in place.
    """
    maps, _ = graph(model)
    rows, columns = (_fields(maps, axis, residue=0) for axis in (0, 1))
    sizes = {item: _bytes_per_pixel(item, rows[item], columns[item]) for item in maps[1:]}
    last_use = {source: index for index, item in enumerate(maps) for source in item.sources}
    alive, peak = 0.0, 0.0
    for index, item in enumerate(maps[1:], start=1):
        alive += sizes[item]
        peak = max(peak, alive)
        alive -= sum(sizes[source] for source in set(item.sources) & sizes.keys() if last_use[source] == index)
    return peak


def graph(model):
    """(maps, output): all Maps of a functional model in an order in which they can be computed, from the image on.

    The only place that needs what Keras doesn't publish: no public function tells which call of a layer, or of a model
    within the model, made a tensor.
    """
    maps = [Map()]

    def call(layer, *arguments, **options):
        sources = tuple(leaf for leaf in keras.tree.flatten((arguments, options)) if isinstance(leaf, Map))
        if isinstance(layer, keras.Model):
            return run(layer, sources)
        maps.append(Map(layer, sources))
        return maps[-1]

    def run(model, sources):
        return keras.Model(model.inputs, model.outputs)._run_through_graph(sources, call_fn=call)

    (output,) = keras.tree.flatten(run(model, maps[:1]))
    return maps, output


def _fields(maps, axis, residue):
    """{map: Field}, None for maps of a single pixel that stands for the whole image."""
    fields = {maps[0]: Field(Fraction(1), np.zeros(1, int), np.zeros(1, int), residue)}
    for item in maps[1:]:
        fields[item] = _rule(item.layer)(item.layer, axis, *(fields[source] for source in item.sources))
    return fields


def _rule(layer):
    for kind in type(layer).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    raise NotImplementedError(
        f"layer {layer.name!r}: how far a {type(layer).__name__} looks is not known; add a rule for it to "
        "detseg/analysis/receptive_field.py"
    )


def _is_inexact(layer, fields):
    if isinstance(layer, ResizeLike) and fields[0] is not None:
        maps, reference = fields
        return maps.extra * maps.stride != reference.extra * reference.stride  # the factor depends on the image's size
    return isinstance(layer, _WHOLE_MAP)


def _bytes_per_pixel(item, rows, columns):
    if rows is None:
        return 0.0
    return 4.0 * item.layer.output.shape[-1] / float(rows.stride * columns.stride)


# ----- rules: layer, axis, Field of each input -> Field of the output -------------------------------------------------


def _slide(maps, kernel, stride, dilation, leading, trailing):
    """A window of `kernel` pixels at distance `dilation`, moved by `stride`, on a map padded by (leading, trailing)."""
    reach = (kernel - 1) * dilation
    starts = np.arange(len(maps.first) // math.gcd(len(maps.first), stride)) * stride - leading
    extra = (maps.extra + leading + trailing - reach - 1) // stride + 1
    return Field(maps.stride * stride, *maps.reads(starts, starts + reach), extra)


def _padded_slide(maps, kernel, stride, dilation, padding):
    if padding == "valid":
        return _slide(maps, kernel, stride, dilation, 0, 0)
    # TensorFlow's "same": what the last window lacks, the smaller half in front.
    total = max((kernel - 1) * dilation + 1 - stride + -maps.extra % stride, 0)
    return _slide(maps, kernel, stride, dilation, total // 2, total - total // 2)


def _convolution(layer, axis, maps):
    if maps is None:  # 1x1
        return None
    kernel, stride, dilation = (sizes[axis] for sizes in (layer.kernel_size, layer.strides, layer.dilation_rate))
    return _padded_slide(maps, kernel, stride, dilation, layer.padding)


def _pool(layer, axis, maps):
    return _padded_slide(maps, layer.pool_size[axis], layer.strides[axis], 1, layer.padding)


def _dilated_max_pool(layer, axis, maps):
    strided_size = -(-maps.extra // layer.dilation)
    leading = (layer.pool_size - 2 + strided_size % 2) // 2 * layer.dilation
    total = (layer.pool_size - 1) * layer.dilation
    # `strided_size` is even or odd for all images only if these grow in steps of two strided pixels.
    return _slide(_aligned(maps, 2 * layer.dilation), layer.pool_size, 1, layer.dilation, leading, total - leading)


def _transposed_convolution(layer, axis, maps):
    """Input pixel i reaches the outputs from i * stride to i * stride + kernel - 1, less what "same" cuts off."""
    if layer.output_padding is not None or layer.dilation_rate[axis] > 1:
        raise NotImplementedError(f"layer {layer.name!r}: the reach with output padding or dilation is not known")
    kernel, stride = layer.kernel_size[axis], layer.strides[axis]
    cut = max(kernel - stride, 0) if layer.padding == "same" else 0
    outputs = np.arange(len(maps.first) * stride) + cut // 2
    starts, ends = -(-(outputs - kernel + 1) // stride), outputs // stride
    starts = np.minimum(starts, ends)  # a kernel smaller than its stride leaves outputs that see nothing
    extra = maps.extra * stride + max(kernel - stride, 0) - cut
    return Field(maps.stride / stride, *maps.reads(starts, ends), extra)


def _zero_padding(layer, axis, maps):
    return _slide(maps, 1, 1, 1, *layer.padding[axis])


def _resize(maps, factor, offset, extra):
    """Bilinear interpolation of aligned pixel areas, moved on by `offset` new pixels; see `interpolation_matrix`."""
    centres = [
        (Fraction(1, 2) + index - Fraction(offset)) / factor - Fraction(1, 2)
        for index in range(len(maps.first) * factor.numerator)
    ]
    starts, ends = (np.array([rounded(centre) for centre in centres]) for rounded in (math.floor, math.ceil))
    return Field(maps.stride / factor, *maps.reads(starts, ends), extra)


def _bilinear_upsample(layer, axis, maps):
    return _resize(maps, Fraction(layer.factor), 0, maps.extra * layer.factor)


def _resize_like(layer, axis, maps, reference):
    if maps is None:
        return reference
    return _resize(maps, maps.stride / reference.stride, layer.offset, reference.extra)


def _pad_to_multiple(layer, axis, maps):
    return _slide(_aligned(maps, layer.multiple), 1, 1, 1, 0, -maps.extra % layer.multiple)


def _crop_like(layer, axis, maps, reference):
    return Field(maps.stride, maps.first, maps.last, reference.extra)


def _centre_crop_like(layer, axis, maps, reference):
    leading = (maps.extra - reference.extra) // 2
    return _slide(maps, 1, 1, 1, -leading, reference.extra - maps.extra + leading)


def _merge(layer, axis, *maps):
    """Pixel i of the result depends on pixel i of each map; those of a single pixel are the same everywhere."""
    maps = [item for item in maps if item is not None]
    period = math.lcm(*(len(item.first) for item in maps))
    places = np.arange(period)
    firsts, lasts = zip(*(item.reads(places, places) for item in maps), strict=True)
    return Field(maps[0].stride, np.min(firsts, axis=0), np.max(lasts, axis=0), maps[0].extra)


def _pixel(layer, axis, maps):
    return maps


def _whole_map(layer, axis, maps):
    return None


def _aligned(maps, multiple):
    """The same field, with a period that is a multiple of `multiple` pixels of the map."""
    places = np.arange(math.lcm(len(maps.first), multiple))
    return Field(maps.stride, *maps.reads(places, places), maps.extra)


_RULES = {
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _convolution,
    keras.layers.SeparableConv2D: _convolution,
    keras.layers.Conv2DTranspose: _transposed_convolution,
    keras.layers.MaxPooling2D: _pool,
    keras.layers.AveragePooling2D: _pool,
    keras.layers.ZeroPadding2D: _zero_padding,
    DilatedMaxPool: _dilated_max_pool,
    BilinearUpsample: _bilinear_upsample,
    ResizeLike: _resize_like,
    PadToMultiple: _pad_to_multiple,
    CropLike: _crop_like,
    CentreCropLike: _centre_crop_like,
    keras.layers.Add: _merge,
    keras.layers.Multiply: _merge,
    keras.layers.Concatenate: _merge,
    keras.layers.Activation: _pixel,
    keras.layers.ReLU: _pixel,
    keras.layers.LeakyReLU: _pixel,
    keras.layers.ELU: _pixel,
    keras.layers.PReLU: _pixel,
    keras.layers.Dropout: _pixel,
    keras.layers.BatchNormalization: _pixel,
    keras.layers.Rescaling: _pixel,
    Preprocess: _pixel,
    keras.layers.GroupNormalization: _pixel,
    keras.layers.GlobalAveragePooling2D: _whole_map,
}
_WHOLE_MAP = (keras.layers.GroupNormalization, keras.layers.GlobalAveragePooling2D)
