"""Features of regions: RoIAlign (Mask R-CNN, ICCV 2017, section 3) and RoI pooling (Fast R-CNN, section 2.1)."""

import functools
import math
import os

import keras
import numpy as np
from keras import ops

from detseg.detection.boxes import box_area, corners


def assign_levels(boxes, first, last, canonical=(224, 4)):
    """The pyramid level for regions of each size (FPN, eq. 1).

    first, last:  the finest and coarsest level k that there are; level k has stride 2 ** k.
    canonical:    (size, level): a region of this size in pixels (square root of its area) belongs to this level.
    Returns       (...) int32, 0 for `first`. 1e-6 octaves below a boundary are on it, as in torchvision.
    """
    size = ops.sqrt(box_area(ops.stop_gradient(boxes)))
    level = ops.floor(canonical[1] + ops.log2(size / canonical[0]) + 1e-6)  # -inf for an empty box
    return ops.cast(ops.clip(level, first, last) - first, "int32")


def roi_align(
    features, boxes, strides, output_size=7, sampling_ratio=2, aligned=False, canonical=(224, 4), under_xla=False
):
    """Each region's features on a grid of output_size x output_size bins, each the mean of bilinear samples.

    features:        list of (B, H, W, C) maps, from fine to coarse: one, or levels to `assign_levels` from.
    boxes:           (B, R, 4) in pixels of the image; of padding, too, something finite comes back. R may be 0.
    strides:         list, of each map; powers of two where there are several.
    sampling_ratio:  samples in a bin, along each side.
    aligned:         True: pixel i of a map lies at (i + 0.5) * stride, as in our half-open coordinates. False: at
                     i * stride, and regions are at least one pixel of the map wide and high, as in torchvision's
                     detectors. A sample up to a pixel beyond the outermost ones takes their value, beyond that it is 0.
    Returns          (B, R, output_size, output_size, C) in the features' dtype; computed in float32. The gradient flows
                     to the features, not to the boxes.
    """
    dtype = features[0].dtype
    features = [ops.cast(x, "float32") for x in features]
    boxes = ops.stop_gradient(ops.cast(boxes, "float32"))
    if len(features) == 1:
        levels = ops.zeros_like(boxes[..., 0], dtype="int32")
    else:
        first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
        levels = assign_levels(boxes, first, last, canonical)
    on_kernel = keras.backend.backend() == "tensorflow" and not under_xla
    pool = _align_by_kernel if on_kernel else _align_by_gathering
    return ops.cast(pool(features, boxes, levels, strides, output_size, sampling_ratio, aligned), dtype)


def _spans(boxes, scale, aligned):
    """Starts and lengths of regions in pixels of a map, first down, then across: each (...)."""
    x1, y1, x2, y2 = (x * scale - (0.5 if aligned else 0.0) for x in corners(boxes))
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = ops.maximum(width, 1.0), ops.maximum(height, 1.0)
    return (y1, height), (x1, width)


def _align_by_gathering(features, boxes, levels, strides, output_size, sampling_ratio, aligned):
    """Every backend, and XLA: a table of the pixels of all maps, from which bins add up their samples' neighbours."""
    batch, channels = ops.shape(features[0])[0], features[0].shape[-1]
    sizes = [ops.shape(x)[1:3] for x in features]
    counts = [height * width for height, width in sizes]
    pixels = sum(counts)
    table = ops.concatenate([ops.reshape(x, (batch, n, channels)) for x, n in zip(features, counts, strict=True)], 1)
    table = ops.reshape(table, (batch * pixels, channels))

    def of_level(values, dtype):
        """One of `values`, a number for each level, for each region: (B, R)."""
        return ops.take(ops.stack([ops.cast(value, dtype) for value in values]), levels)

    down, across = _spans(boxes, of_level([1 / stride for stride in strides], "float32"), aligned)
    bins, (heights, widths) = (output_size, sampling_ratio), zip(*sizes, strict=True)
    rows, row_weights = _neighbours(*down, of_level(heights, "float32"), *bins)
    columns, column_weights = _neighbours(*across, of_level(widths, "float32"), *bins)
    starts = of_level([sum(counts[:level]) for level in range(len(counts))], "int32")  # (B, R)
    starts = starts + ops.cast(ops.arange(batch) * pixels, "int32")[:, None]
    rows = rows * of_level(widths, "int32")[..., None, None] + starts[..., None, None]

    pooled = 0.0
    for i in range(2 * sampling_ratio):
        for j in range(2 * sampling_ratio):  # one by one: all at once would be 4 * sampling_ratio ** 2 times the memory
            places = rows[..., :, None, i] + columns[..., None, :, j]  # (B, R, P, P)
            weights = row_weights[..., :, None, i] * column_weights[..., None, :, j]
            pooled = pooled + weights[..., None] * ops.take(table, places, axis=0)  # (B, R, P, P, C)
    return pooled


def _neighbours(start, length, size, output_size, sampling_ratio):
    """The pixels of a line between which the samples of each bin lie, and their weights, which sum to 1 in a bin.

    start, length, size:  (B, R), of the region and of the line.
    Returns               places int32 and weights, (B, R, P, 2 * sampling_ratio).
    """
    samples = output_size * sampling_ratio
    size = size[..., None]
    centres = (ops.arange(samples, dtype="float32") + 0.5) * (length / samples)[..., None] + start[..., None]
    inside = ops.logical_and(centres >= -1.0, centres <= size)  # (B, R, samples)
    centres = ops.clip(centres, 0.0, size - 1.0)
    low = ops.floor(centres)
    high = ops.minimum(low + 1.0, size - 1.0)
    shares = ops.stack([1.0 - (centres - low), centres - low], axis=-1)
    weights = ops.where(inside[..., None], shares, 0.0) / sampling_ratio
    shape = (*ops.shape(start), output_size, 2 * sampling_ratio)
    return ops.reshape(ops.cast(ops.stack([low, high], axis=-1), "int32"), shape), ops.reshape(weights, shape)


def _align_by_kernel(features, boxes, levels, strides, output_size, sampling_ratio, aligned):
    """tf.image.crop_and_resize takes the samples, level by level; a mean over each bin. Several times faster on CPUs.

    It has 0 beyond the outermost pixels: with a border that repeats them, that begins a pixel further out.
    """
    import tensorflow as tf

    batch, regions = ops.shape(boxes)[:2]
    boxes = tf.reshape(boxes, (batch * regions, 4))
    images = tf.repeat(tf.range(batch), regions)  # (B * R,)
    parts = tf.dynamic_partition(tf.range(batch * regions), tf.reshape(levels, [-1]), len(features))
    samples = output_size * sampling_ratio
    pooled = []
    for maps, stride, part in zip(features, strides, parts, strict=True):
        padded = tf.pad(maps, [(0, 0), (1, 1), (1, 1), (0, 0)], "SYMMETRIC")
        edges = []
        spans = _spans(tf.gather(boxes, part), 1 / stride, aligned)
        for (start, length), size in zip(spans, ops.shape(maps)[1:3], strict=True):
            last = tf.cast(size + 1, tf.float32)  # pixel of the padded line; crop_and_resize counts from 0 to 1
            first_sample = start + 0.5 * length / samples
            edges.append([(first_sample + 1) / last, (first_sample + length * (samples - 1) / samples + 1) / last])
        (y1, y2), (x1, x2) = edges
        sampled = _crop_and_resize(padded, tf.stack([y1, x1, y2, x2], axis=-1), tf.gather(images, part), samples)
        pooled.append(tf.nn.avg_pool2d(sampled, sampling_ratio, sampling_ratio, "VALID"))
    pooled = tf.dynamic_stitch(parts, pooled)
    return tf.reshape(pooled, (batch, regions, output_size, output_size, features[0].shape[-1]))


def _crop_and_resize(maps, regions, images, samples):
    """tf.image.crop_and_resize of maps (B, H, W, C) to (N, samples, samples, C), with a gradient that is right.

    TensorFlow's own adds up regions in several threads without locks and loses up to a quarter of a pixel's gradient,
    unless it is told to be deterministic, as training does. Otherwise samples are added here, in three times the time.

    regions, images:  (N, 4) y1 x1 y2 x2, 0 and 1 being the outermost pixels; (N,) int32.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def crop(maps):
        def gradient(upstream):
            if os.environ.get("TF_DETERMINISTIC_OPS") in ("1", "true"):
                return tf.raw_ops.CropAndResizeGradImage(
                    grads=upstream, boxes=regions, box_ind=images, image_size=tf.shape(maps), T=tf.float32
                )
            return _added_to_pixels(upstream, tf.shape(maps), regions, images, samples)

        return tf.image.crop_and_resize(maps, regions, images, (samples, samples)), gradient

    return crop(maps)


def _added_to_pixels(upstream, shape, regions, images, samples):
    """Samples (N, samples, samples, C) added by shares to the pixels (B, H, W, C) between which they were taken."""
    import tensorflow as tf

    lines = []
    for axis in (0, 1):
        last = tf.cast(shape[1 + axis] - 1, tf.float32)
        # Not first + (final - first) * steps, of which TensorFlow's graph optimizer makes a product of wrong shapes.
        centres = tf.linspace(regions[:, axis] * last, regions[:, 2 + axis] * last, samples, axis=1)  # (N, samples)
        inside = tf.cast((centres >= 0) & (centres <= last), tf.float32)
        low = tf.clip_by_value(tf.floor(centres), 0, last)
        share = centres - low
        lines.append([(low, inside * (1 - share)), (tf.minimum(low + 1, last), inside * share)])
    channels = upstream.shape[-1]
    total = tf.zeros((shape[0] * shape[1] * shape[2], channels))
    for row, row_weight in lines[0]:
        for column, column_weight in lines[1]:
            place = tf.cast(row, tf.int32)[:, :, None] * shape[2] + tf.cast(column, tf.int32)[:, None, :]
            place += (images * shape[1] * shape[2])[:, None, None]
            weighted = upstream * (row_weight[:, :, None] * column_weight[:, None, :])[..., None]
            # One after the other: TensorFlow adds up a list of maps in any order, with other roundings in each run.
            total = tf.tensor_scatter_nd_add(total, tf.reshape(place, (-1, 1)), tf.reshape(weighted, (-1, channels)))
    return tf.reshape(total, shape)


# ----- RoI pooling ---------------------------------------------------------------------------------------------------

_LARGEST_MAP = 511  # pixels a side, where the size isn't static


def roi_pool(features, boxes, stride, output_size=7, inside=False):
    """The largest feature of each bin, of regions rounded to whole pixels of the map.

    features:  (B, H, W, C); where H or W is not static, it is at most 511.
    boxes:     (B, R, 4) in pixels of the image; R may be 0.
    inside:    bool, whether all boxes are known to lie inside the map, as proposals do: bins are small then.
    Returns    (B, R, output_size, output_size, C) in the features' dtype; 0 where a bin lies outside the map. The
               gradient flows to the features, not to the boxes.

    A bin is the union of four windows whose sides are powers of two. The maxima of all such windows are made by
    doubling, with their places, so that the gradient needn't find its way back through all these maps.
    """
    batch, height, width = ops.shape(features)[:3]
    channels = features.shape[-1]
    # The longest bin that there can be along each axis; rounding makes regions a pixel longer.
    longest = [n or _LARGEST_MAP for n in features.shape[1:3]]
    if inside:
        longest = [-(-(n + 1) // output_size) + 1 for n in longest]
    steps = [n.bit_length() for n in longest]  # windows' sides, 1, 2, 4 and so on
    values, places = _window_maxima(ops.stop_gradient(features), *steps)  # (B * steps * steps * H * W, C) each

    scaled = (x / stride for x in corners(ops.stop_gradient(boxes)))  # rounded, halves away from 0:
    x1, y1, x2, y2 = (ops.cast(ops.sign(x) * ops.floor(ops.abs(x) + 0.5), "int32") for x in scaled)  # (B, R)
    step_down, rows, some_down = _bins(y1, y2, height, output_size, steps[0])  # (B, R, P)
    step_across, columns, some_across = _bins(x1, x2, width, output_size, steps[1])
    image = ops.cast(ops.arange(batch), "int32")[:, None, None, None]
    window = (image * steps[0] + step_down[..., :, None]) * steps[1] + step_across[..., None, :]  # (B, R, P, P)
    firsts = [(window * height + y[..., :, None]) * width + x[..., None, :] for y in rows for x in columns]
    candidates = [(ops.take(values, i, axis=0), ops.take(places, i, axis=0)) for i in firsts]
    _, place = functools.reduce(_larger, candidates)  # (B, R, P, P, C)

    place = (image[..., None] * (height * width) + place) * channels + ops.arange(channels, dtype="int32")
    pooled = ops.take(ops.reshape(features, (-1,)), place)
    some = ops.logical_and(some_down[..., :, None], some_across[..., None, :])
    return ops.where(some[..., None], pooled, ops.cast(0.0, features.dtype))


def _window_maxima(maps, steps_down, steps_across):
    """The largest of the 2 ** i x 2 ** j pixels of maps (B, H, W, C) from each pixel on, for all i, and for each all j.

    Returns  the maxima and their places y * W + x, both as rows (B * steps_down * steps_across * H * W, C).
    """
    height, width = ops.shape(maps)[1:3]
    places = ops.reshape(ops.arange(height * width, dtype="int32"), (1, height, width, 1))
    tall = maps, ops.broadcast_to(places, ops.shape(maps))
    maxima = []
    for i in range(steps_down):
        tall = tall if i == 0 else _larger(tall, _later(tall, 2 ** (i - 1), axis=1))
        wide = tall
        for j in range(steps_across):
            wide = wide if j == 0 else _larger(wide, _later(wide, 2 ** (j - 1), axis=2))
            maxima.append(wide)
    return [ops.reshape(ops.stack(tables, axis=1), (-1, maps.shape[-1])) for tables in zip(*maxima, strict=True)]


def _larger(first, second):
    """The larger values with their places; of equals the first."""
    is_first = first[0] >= second[0]
    return ops.where(is_first, first[0], second[0]), ops.where(is_first, first[1], second[1])


def _later(maxima, distance, axis):
    """What lies that many pixels on; nothing beyond the edge."""
    pads = [(0, distance) if i == axis else (0, 0) for i in range(4)]
    padded = ops.pad(maxima[0], pads, constant_values=float("-inf")), ops.pad(maxima[1], pads)
    return tuple(x[:, distance:] if axis == 1 else x[:, :, distance:] for x in padded)


def _bins(first, last, size, output_size, steps):
    """The pixels of a line that belong to each bin of a region, as two windows of a power of two that cover them.

    first, last:  (B, R) int32, the region's first and last pixel.
    Returns       (B, R, P) each: the power, two of the windows' first pixels, and whether the bin has pixels.
    """
    length = ops.maximum(last - first + 1, 1)[..., None]
    edges = np.arange(output_size + 1, dtype="int32")
    # In whole numbers: in float32, seven times 57 / 7 is above 57, and the last bin would get a pixel of its neighbour.
    start = ops.clip(length * edges[:-1] // output_size + first[..., None], 0, size)
    end = ops.clip(-(-length * edges[1:] // output_size) + first[..., None], 0, size)
    some = end > start
    start = ops.minimum(start, size - 1)
    end = ops.maximum(end, start + 1)
    powers = 2 ** np.arange(1, steps, dtype="int32")
    step = ops.sum(ops.cast((end - start)[..., None] >= powers, "int32"), axis=-1)  # log2, rounded down
    return step, (start, end - 2**step), some
