"""The mask head and what it learns (He et al.: Mask R-CNN, ICCV 2017, section 3 and figure 4)."""

import keras
from keras import ops
from keras.initializers import RandomNormal

from detseg.detection.boxes import corners
from detseg.detection.nms import take_rows
from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm

CROP_SIZE = 56  # rows and columns in which a batch has the mask of an object: twice those of the masks that are learned
_SAMPLES = 2  # of a true mask along each side of a pixel of the learned one


def create_mask_head(in_channels, roi_size, class_count, channels=256, convolutions=4, norm=None):
    """3x3 convolutions on a region's features, a transposed convolution to twice the size, and a mask for each class.

    channels, convolutions, norm:  of the 3x3 convolutions; norm None or one of `detseg.layers.norm.NORMS`.
    Returns  keras.Model (N, roi_size, roi_size, in_channels) -> logits (N, 2 * roi_size, 2 * roi_size, class_count),
             float32.
    """
    regions = x = keras.Input((roi_size, roi_size, in_channels), name="regions")
    options = {"kernel_initializer": "he_normal"}
    for i in range(1, convolutions + 1):
        x = Conv2D(channels, 3, padding="same", use_bias=norm is None, name=f"mask_conv{i}", **options)(x)
        if norm is not None:
            x = create_norm(norm, channels, epsilon=1e-5, name=f"mask_conv{i}_norm")(x)
        x = keras.layers.ReLU(name=f"mask_relu{i}")(x)
    x = keras.layers.Conv2DTranspose(channels, 2, strides=2, activation="relu", name="mask_upsample", **options)(x)
    initializer = RandomNormal(stddev=0.001)  # Detectron's
    logits = Conv2D(class_count, 1, kernel_initializer=initializer, name="mask_logits", dtype="float32")(x)
    return keras.Model(regions, logits, name="mask_head")


def masks_of(logits, labels):
    """Of each region the mask of its class: logits (N, M, M, K), labels (N,) int 0..K-1 -> (N, M, M)."""
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return ops.take_along_axis(logits, ops.cast(labels, "int32")[:, None, None, None], axis=-1)[..., 0]


def mask_targets(crops, boxes, matched, regions, size):
    """The part of an object's mask that lies in each region, at the size of the learned masks (section 3).

    crops, boxes:      the ground truth's: (B, G, S, S), 0..255, shares of an object's mask in S x S cells of its box
                       (B, G, 4); nothing lies beyond the box.
    matched, regions:  (B, R) int, each region's object; (B, R, 4), of positive size where somebody reads the target.
    Returns            (B, R, size, size) float32, 1 where at least half of a pixel is the object's, else 0; no gradient
                       flows.
    """
    own = ops.cast(take_rows(crops, matched), "float32") / 255.0  # (B, R, S, S)
    x1, y1, x2, y2 = corners(take_rows(boxes, matched))
    left, top, right, bottom = corners(regions)
    down = _shares(top, bottom, y1, y2, size, crops.shape[-1])  # (B, R, size, S)
    across = _shares(left, right, x1, x2, size, crops.shape[-1])
    inside = ops.matmul(ops.matmul(down, own), ops.swapaxes(across, -1, -2))
    return ops.stop_gradient(ops.cast(inside >= 0.5, "float32"))


def _shares(start, end, first, last, size, cells):
    """By how much each of a box's cells counts for each pixel of a region, along one axis: bilinear samples' mean.

    start, end, first, last:  (B, R), of the region and of the box of its object.
    Returns                   (B, R, size, cells).
    """
    places = (ops.arange(size * _SAMPLES, dtype="float32") + 0.5) / (size * _SAMPLES)  # from 0 to 1 in the region
    places = start[..., None] + places * (end - start)[..., None]
    length = ops.maximum(last - first, 1e-6)[..., None]  # of padding, 0
    places = (places - first[..., None]) / length * cells - 0.5  # in cells, from the first one's centre
    distances = ops.abs(places[..., None] - ops.arange(cells, dtype="float32"))
    weights = ops.maximum(1.0 - distances, 0.0)  # (B, R, size * _SAMPLES, cells)
    return ops.mean(ops.reshape(weights, (*ops.shape(start), size, _SAMPLES, cells)), axis=-2)


def mask_losses(logits, targets):
    """The mean log loss over a mask's pixels: logits and targets (N, M, M) -> (N,) (section 3: sigmoid, no softmax)."""
    return ops.mean(ops.binary_crossentropy(targets, logits, from_logits=True), axis=(1, 2))
