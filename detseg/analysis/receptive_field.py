"""The image pixels that a pixel of a network's output depends on, computed from the layers.

As Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill, 2019), but pixel by pixel:
behind strides and transposed convolutions, neighbours' windows differ in size. They are kept for one period of pixels.
"""

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import keras
import numpy as np
from keras import layers

from detseg.backbones.backbone import Preprocess
from detseg.layers.padding import CentreCropLike, CropLike, PadToMultiple
from detseg.layers.pooling import DilatedMaxPool
from detseg.layers.resize import BilinearUpsample, ResizeLike


@dataclass(frozen=True, eq=False)
class Field:
    """Where the pixels of a map look, along one axis of the image.

    stride:       Fraction, image pixels from one pixel of the map to the next.
    first, last:  int arrays (P,). Pixel p of the map depends on nothing but the image pixels first[p] to last[p], which
                  count from the image's first one and may lie beyond its border. Pixel p + P looks P * stride further.
    extra:        int. An image of n * alignment + residue pixels (see `receptive_field`) has a map of
                  n * alignment / stride + extra pixels.
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
        """(first, last) image pixel that the map's pixels `starts` to `ends` look at, int arrays (N,) each."""
        period = len(self.first)
        first = self.first[starts % period] + starts // period * self.alignment
        return first, self.last[ends % period] + ends // period * self.alignment


class Map:
    """What a layer makes of the maps `sources` in a model's graph; the image has no layer."""

    def __init__(self, layer=None, sources=()):
        self.layer, self.sources = layer, sources


def receptive_field(model, axis, residue=0):
    """The Field of a functional model's output.

    model:    keras.Model (B, H, W, C) -> (B, H', W', K); models inside it are looked into.
    axis:     0: rows of the image, 1: columns.
    residue:  int. How layers pad and crop may depend on the image's size: the field is that of images which are
              `residue` pixels larger than a multiple of its alignment.
    Zero padding counts as image beyond its border. Layers that look at whole maps (`inexact_layers`) count as if they
    looked at single pixels. Raises NotImplementedError for a layer whose reach isn't known here.
    """
    maps, output = graph(model)
    return _fields(maps, axis, residue)[output]


def inexact_layers(model):
    """Names of the layers that look at whole maps or don't commute with a shift, so that no tile equals the image."""
    maps, _ = graph(model)
    fields = _fields(maps, axis=0)
    return [item.layer.name for item in maps[1:] if _is_inexact(item.layer, *(fields[s] for s in item.sources))]


def peak_bytes(model):
    """float, bytes for each image pixel of the float32 maps that are in memory together, at the worst moment.

    The layers run one after the other, a map lives until the last layer has read it, and no layer works in place.
    """
    maps, _ = graph(model)
    rows, columns = (_fields(maps, axis) for axis in (0, 1))
    last_use = {source: item for item in maps for source in item.sources}
    alive, peak, sizes = 0.0, 0.0, {maps[0]: 0.0}
    for item in maps[1:]:
        area = rows[item] and rows[item].stride * columns[item].stride  # of the image, for each pixel of the map
        sizes[item] = 4.0 * item.layer.output.shape[-1] / float(area) if area else 0.0
        alive += sizes[item]
        peak = max(peak, alive)
        alive -= sum(sizes[source] for source in set(item.sources) if last_use[source] is item)
    return peak


def graph(model):
    """(maps, output): all Maps of a functional model in an order in which they can be computed, from the image on.

    No public function of Keras tells which call of a layer, or of a model within the model, made a tensor.
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


def _fields(maps, axis, residue=0):
    """{map: Field}, None for maps of a single pixel that stands for the whole image."""
    fields = {maps[0]: Field(Fraction(1), np.zeros(1, int), np.zeros(1, int), residue)}
    for item in maps[1:]:
        fields[item] = _field(item.layer, axis, *(fields[source] for source in item.sources))
    return fields


def _is_inexact(layer, maps, reference=None, *_):
    if isinstance(layer, ResizeLike) and maps is not None:
        shared = int(layer.align_corners)  # pixels that the lengths, which are resized, lack of the sizes
        lengths = ((each.extra - shared) * each.stride for each in (maps, reference))
        return len(set(lengths)) > 1  # the factor depends on the image's size
    return isinstance(layer, layers.GroupNormalization | layers.GlobalAveragePooling2D)


@functools.singledispatch
def _field(layer, axis, *maps):
    """The Field of a layer's output, of those of its inputs; None for a map of a single pixel."""
    raise NotImplementedError(
        f"layer {layer.name!r}: how far a {type(layer).__name__} looks is not known; add a rule for it to "
        "detseg/analysis/receptive_field.py"
    )


def _slide(maps, kernel, stride, dilation, leading, trailing):
    """A window of `kernel` pixels, `dilation` apart, that moves by `stride` on a map padded by (leading, trailing)."""
    reach = (kernel - 1) * dilation
    starts = np.arange(len(maps.first) // math.gcd(len(maps.first), stride)) * stride - leading
    extra = (maps.extra + leading + trailing - reach - 1) // stride + 1
    return Field(maps.stride * stride, *maps.reads(starts, starts + reach), extra)


@_field.register(layers.Conv2D | layers.DepthwiseConv2D | layers.SeparableConv2D)
@_field.register(layers.MaxPooling2D | layers.AveragePooling2D)
def _(layer, axis, maps):
    if maps is None:  # 1x1
        return None
    is_pool = hasattr(layer, "pool_size")
    kernel, dilation = (layer.pool_size[axis], 1) if is_pool else (layer.kernel_size[axis], layer.dilation_rate[axis])
    stride = layer.strides[axis]
    # TensorFlow's "same" pads what the last window lacks, the smaller half in front.
    total = max((kernel - 1) * dilation + 1 - stride + -maps.extra % stride, 0) if layer.padding == "same" else 0
    return _slide(maps, kernel, stride, dilation, total // 2, total - total // 2)


@_field.register(DilatedMaxPool)
def _(layer, axis, maps):
    # Whether the strided size is even is the same for all images only if these grow by two strided pixels at a time.
    maps = _aligned(maps, 2 * layer.dilation)
    return _slide(maps, layer.pool_size, 1, layer.dilation, *layer.padding(maps.extra))


@_field.register(layers.Conv2DTranspose)
def _(layer, axis, maps):
    """Input pixel i reaches the outputs i * stride to i * stride + kernel - 1, of which "same" cuts some off."""
    if layer.output_padding is not None or layer.dilation_rate[axis] > 1:
        raise NotImplementedError(f"layer {layer.name!r}: the reach with output padding or dilation is not known")
    kernel, stride = layer.kernel_size[axis], layer.strides[axis]
    cut = max(kernel - stride, 0) if layer.padding == "same" else 0
    outputs = np.arange(len(maps.first) * stride) + cut // 2
    starts, ends = -(-(outputs - kernel + 1) // stride), outputs // stride
    starts = np.minimum(starts, ends)  # a kernel smaller than its stride leaves outputs that see nothing
    extra = maps.extra * stride + max(kernel - stride, 0) - cut
    return Field(maps.stride / stride, *maps.reads(starts, ends), extra)


@_field.register(layers.ZeroPadding2D)
def _(layer, axis, maps):
    return _slide(maps, 1, 1, 1, *layer.padding[axis])


def _resize(maps, factor, offset, extra, align_corners=False):
    """Bilinear interpolation, moved by `offset` new pixels; see `interpolation_matrix`."""
    half = Fraction(0 if align_corners else 1, 2)
    count = len(maps.first) * factor.numerator
    centres = [(half + index - Fraction(offset)) / factor - half for index in range(count)]
    starts, ends = (np.array([rounded(centre) for centre in centres]) for rounded in (math.floor, math.ceil))
    return Field(maps.stride / factor, *maps.reads(starts, ends), extra)


@_field.register(BilinearUpsample)
def _(layer, axis, maps):
    return _resize(maps, Fraction(layer.factor), 0, maps.extra * layer.factor)


@_field.register(ResizeLike)
def _(layer, axis, maps, reference):
    if maps is None:
        return reference
    return _resize(maps, maps.stride / reference.stride, layer.offset, reference.extra, layer.align_corners)


@_field.register(PadToMultiple)
def _(layer, axis, maps):
    return _slide(_aligned(maps, layer.multiple), 1, 1, 1, 0, layer.missing(maps.extra))


@_field.register(CropLike)
def _(layer, axis, maps, reference):
    return replace(maps, extra=reference.extra)


@_field.register(CentreCropLike)
def _(layer, axis, maps, reference):
    leading = (maps.extra - reference.extra) // 2
    return _slide(maps, 1, 1, 1, -leading, reference.extra - maps.extra + leading)


@_field.register(layers.Add | layers.Multiply | layers.Concatenate)
def _(layer, axis, *maps):
    """Pixel i of the result depends on pixel i of each map. Maps of a single pixel, None, are the same everywhere."""
    maps = [item for item in maps if item is not None]
    places = np.arange(math.lcm(*(len(item.first) for item in maps)))
    firsts, lasts = zip(*(item.reads(places, places) for item in maps), strict=True)
    return replace(maps[0], first=np.min(firsts, axis=0), last=np.max(lasts, axis=0))


def _aligned(maps, multiple):
    """The same field, with a period that is a multiple of `multiple` pixels of the map."""
    places = np.arange(math.lcm(len(maps.first), multiple))
    return Field(maps.stride, *maps.reads(places, places), maps.extra)


@_field.register(layers.GlobalAveragePooling2D)
def _(layer, axis, maps):
    return None


@_field.register(layers.Activation | layers.ReLU | layers.LeakyReLU | layers.ELU | layers.PReLU | layers.Dropout)
@_field.register(layers.BatchNormalization | layers.GroupNormalization | layers.Rescaling | Preprocess)
def _(layer, axis, maps):
    return maps
