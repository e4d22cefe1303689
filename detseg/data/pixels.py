"""Decoded pixels as the images that models see: uint8, of data.channels channels."""

import functools
import logging

import cv2
import numpy as np

from detseg.errors import UserError

_log = logging.getLogger("detseg")
_CONVERTIBLE = {1: "GRAY", 3: "RGB", 4: "RGBA"}  # numbers of channels, and OpenCV's names for them
_SAY_RANGE = "Say data.value_range: [low, high], which become 0 and 255"


def as_image(path, pixels, channels, value_range=None, has_alpha=False):
    """Decoded pixels of a file as an image.

    pixels:       (H, W, C) of any dtype, as stored; three and more channels start with red, green and blue.
    channels:     of the image. 1 (luminance), 3 (RGB) and 4 (RGB and one more) are made of one another: grey is
                  repeated, a fourth channel is dropped or, where there is none, 255. Other numbers must be the file's.
    value_range:  (low, high), which become 0 and 255; None: the range of the dtype, 0..1 for floats.
    has_alpha:    bool, whether the second of two channels is alpha, which counts as the fourth then.
    Returns       uint8 (H, W, channels).
    """
    check_channels(path, pixels.shape[2], channels, has_alpha)
    if pixels.shape[2] == 2 and channels != 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    if channels in (1, 3) and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    pixels = np.ascontiguousarray(_as_uint8(path, pixels, value_range))
    if pixels.shape[2] == channels:
        return pixels
    conversion = getattr(cv2, f"COLOR_{_CONVERTIBLE[pixels.shape[2]]}2{_CONVERTIBLE[channels]}")
    return cv2.cvtColor(pixels, conversion).reshape(*pixels.shape[:2], channels)


def check_channels(path, found, channels, has_alpha=False):
    """UserError unless a file with `found` channels can be read as `channels`, as `as_image` states it."""
    if found == channels or (channels in _CONVERTIBLE and (found in _CONVERTIBLE or (found == 2 and has_alpha))):
        return
    expected = "1 (grey), 3 (RGB) or 4 (RGB and alpha)" if channels in _CONVERTIBLE else f"exactly {channels}"
    raise UserError(
        f"{path}: {found} channels, expected {expected}, as data.channels is {channels}. "
        "Give data.channels the files' number of channels, which must be the same in all of them"
    )


def _as_uint8(path, pixels, value_range):
    if value_range is None and pixels.dtype == np.uint8:
        return pixels
    if value_range is None and pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # of either byte order
        say_once("16-bit images are scaled to 8 bits by the range of their dtype (value / 257)")
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if pixels.dtype.kind not in "uif" or (value_range is None and not is_float):
        expected = "8 or 16 bits unsigned, or float in 0..1"
        raise UserError(f"{path}: pixel values of type {pixels.dtype}, expected {expected}. {_SAY_RANGE}")
    low, high = value_range or (0, 1)
    least, most = pixels.min(), pixels.max()
    if not (least >= low and most <= high):  # true for nan as well
        if value_range is None:
            raise UserError(f"{path}: a float image with values {least:g}..{most:g}, expected 0..1. {_SAY_RANGE}")
        raise UserError(
            f"{path}: the pixel value {most if least >= low else least:g} is outside of data.value_range "
            f"[{low:g}, {high:g}]. Give it the range of the whole data set, or correct the file"
        )
    if value_range is None:
        say_once("float images are scaled from 0..1 to 0..255")
        return np.rint(pixels * 255).astype(np.uint8)
    return np.rint((pixels.astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)


def in_parts(function, image):
    """A function of OpenCV's on an image (H, W, C) of any C: it takes up to four, and is less exact with two."""
    channels = image.shape[2]
    counts = [4] * (channels // 4) + {0: [], 1: [1], 2: [1, 1], 3: [3]}[channels % 4]
    parts = [function(part) for part in np.split(image, np.cumsum(counts)[:-1], axis=2)]
    parts = [part.reshape(*part.shape[:2], -1) for part in parts]  # of a single channel it drops the axis
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def cut_window(array, starts, size, fill):
    """The window of `size` that starts at (row, column) `starts` of an array (H, W, ...), filled where it leaves it."""
    (row, column), (height, width) = starts, size
    inside = array[max(row, 0) : max(row + height, 0), max(column, 0) : max(column + width, 0)]
    if inside.shape[:2] == (height, width):
        return np.ascontiguousarray(inside)
    window = np.empty((height, width, *array.shape[2:]), array.dtype)
    window[:] = fill
    top, left = max(-row, 0), max(-column, 0)
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window


def say_conversions(mode, has_alpha, channels):
    """Logs, once a process and kind, what reading a file of Pillow's `mode` as `channels` channels changes."""
    is_grey = mode in ("1", "L", "LA", "F") or mode.startswith("I")
    conversions = {
        "grey images are repeated to RGB": is_grey and channels in (3, 4),
        "colour images are converted to their luminance": not is_grey and channels == 1,
        "the alpha channel of images, or what else comes fourth, is dropped": has_alpha and channels in (1, 3),
        "images without an alpha channel get an opaque one": not has_alpha and channels == 4,
        "palette images are read as their colours": mode in ("P", "PA"),
        f"{mode} images are converted to RGB": mode in ("CMYK", "YCCK", "LAB"),
    }
    for conversion, is_made in conversions.items():
        if is_made:
            say_once(conversion)


@functools.cache  # once per process and kind
def say_once(conversion):
    """Logs a sentence on what is changed in silence otherwise."""
    _log.warning("%s (said once)", conversion)
