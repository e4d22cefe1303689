"""Bilinear resizing by two small matrix products: dynamic sizes, mixed precision, jit and export all work."""

from keras import ops


def interpolation_matrix(size, new_size):
    """The (new_size, size) float32 matrix that resizes a line of `size` pixels bilinearly.

    Pixel areas are aligned (half-pixel centres, as OpenCV, PIL and tf.image.resize do); beyond the outermost centres
    the border value holds. Sizes may be ints or scalar tensors.
    """
    scale = ops.cast(size, "float32") / ops.cast(new_size, "float32")
    centres = (ops.arange(new_size, dtype="float32") + 0.5) * scale - 0.5  # (new_size,)
    centres = ops.clip(centres, 0.0, ops.cast(size, "float32") - 1.0)
    distances = ops.abs(centres[:, None] - ops.arange(size, dtype="float32")[None, :])  # (new_size, size)
    return ops.maximum(1.0 - distances, 0.0)


def resize_bilinear(maps, height, width):
    """Resizes (B, h, w, K) floats to (B, height, width, K); no antialiasing when shrinking."""
    batch, old_height, old_width = ops.shape(maps)[:3]
    channels = maps.shape[3]
    rows = ops.cast(interpolation_matrix(old_height, height), maps.dtype)
    columns = ops.cast(interpolation_matrix(old_width, width), maps.dtype)
    maps = ops.matmul(rows, ops.reshape(maps, (batch, old_height, old_width * channels)))  # (B, H, w * K)
    maps = ops.matmul(columns, ops.reshape(maps, (batch * height, old_width, channels)))  # (B * H, W, K)
    return ops.reshape(maps, (batch, height, width, channels))
