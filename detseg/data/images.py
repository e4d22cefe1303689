"""Image files and label-map files as arrays."""

import functools
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from detseg.data.tiff_codecs import codec_refusal, foreign_codec, page_count
from detseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # in order of preference

_log = logging.getLogger("detseg")
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a phone's JPEG with further pictures behind the first
_CV2_FORMATS = (*_JPEG_FORMATS, "PNG", "BMP", "WEBP")  # what cv2 decodes into the right RGB with EXIF orientation
_DECLARE_PALETTE = " Is it a colour mask? Declare data.palette: {class name: [red, green, blue], ..., ignore: [...]}"
_MEND = "Replace the file or take it out of the split"


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its pixels are decoded."""

    format: str
    mode: str  # Pillow's
    frames: int
    has_alpha: bool
    is_deep: bool  # more than 8 bits a channel


def read_image(path, channels=3):
    """Decode an image file.

    path:       JPEG, PNG, TIFF, BMP, WebP or whatever else OpenCV or Pillow reads.
    channels:   1 (luminance), 3 (RGB) or 4 (RGB and alpha; 255 where the file has no alpha).
    Returns     uint8 (H, W, channels) with the EXIF orientation applied. 16-bit values are divided by 257, float values
                of 0..1 are multiplied by 255, both rounded; grey is repeated, alpha is dropped unless channels is 4.
                Each kind of conversion is logged once per process.
    Raises      UserError if the file is missing, empty, truncated, no image, a TIFF packed by a codec that isn't there,
                or has several pages or another value range.
    """
    if channels not in (1, 3, 4):
        raise UserError(f"data.channels: {channels!r}, expected 1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    data = _read_bytes(path, "image")
    header = _read_header(path, data)
    _check_complete(path, data)
    frames = page_count(data) or 1 if header is None else header.frames
    if frames > 1:
        raise UserError(f"{path}: {frames} pages or frames in one file, expected a single image. Split it up")
    pixels = _decode(path, data, header, keep_alpha=channels == 4)
    if header is not None:
        say_conversions(header, channels)
    return with_channels(as_uint8(path, pixels), channels)


def read_label_map(path, class_count, ignore_label=255, palette=None):
    """Read a mask file of class indices.

    path:           PNG (or TIFF, BMP) whose values are indices: palette, 1-, 2-, 4-, 8- or 16-bit grey. The colours of
                    a palette file do not matter. RGB(A) only with `palette`. JPEG is refused: it changes values.
    class_count:    K; the values must be 0..K-1 or ignore_label.
    palette:        {index: (red, green, blue)} for masks drawn in colours, or None.
    Returns         uint8 (H, W).
    Raises          UserError that names the first pixel that has no meaning.
    """
    indices = _read_indices(path, palette, "class indices", _DECLARE_PALETTE)
    return _checked_indices(path, indices, class_count, ignore_label)


def read_instance_ids(path):
    """Read a PNG (or TIFF, BMP) in which a pixel is the number of its object, 0: none.

    Returns     int32 (H, W).
    Raises      UserError for a file that is none, JPEG and colours.
    """
    indices = _read_indices(path, None, "object numbers")
    if indices.min(initial=0) < 0:
        raise UserError(f"{path}: object number {indices.min()}, expected numbers >= 0")
    return indices.astype(np.int32)


def check_same_size(image, image_source, label_map, label_source):
    """UserError unless the image (H, W, C) and the label map (H, W) cover the same pixels; sources name the files."""
    check_size(image.shape[:2], image_source, label_map.shape, label_source)


def check_size(image_size, image_source, label_size, label_source):
    """UserError unless an image and its labels have the same (height, width); sources name the files."""
    if tuple(image_size) != tuple(label_size):
        height, width = image_size
        label_height, label_width = label_size
        raise UserError(
            f"{label_source}: {label_height}x{label_width} (height x width), but its image {image_source} is "
            f"{height}x{width}. Labels must have their image's size (after EXIF orientation)"
        )


def _read_bytes(path, kind):
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {kind} file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder, expected a file ({kind})") from error
    except OSError as error:
        raise UserError(f"{path}: the {kind} file cannot be read: {error.strerror}") from error
    if not data:
        raise UserError(f"{path}: the {kind} file is empty (0 bytes). {_MEND}")
    return data


def _read_indices(path, palette, expected, colour_hint=""):
    """The numbers that a mask file holds, (H, W) of any integer dtype or bool; with a palette, of its colours.

    expected, colour_hint:  for messages: what the numbers are, and what to do about colours.
    """
    data = _read_bytes(path, "mask")
    _check_complete(path, data)
    try:
        image = Image.open(io.BytesIO(data))
        stored_as = _raw_mode(image)  # known only before load()
        frames = getattr(image, "n_frames", 1)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # the decoders raise whatever they like on broken files
        _check_codec(path, data)
        raise UserError(f"{path}: cannot be read as a mask: {error}. Expected an index PNG. {_MEND}") from error
    if image.format in _JPEG_FORMATS:
        raise UserError(f"{path}: a JPEG mask: its compression changes {expected}. Save masks as index PNG")
    if frames > 1:
        raise UserError(f"{path}: {frames} pages or frames in one mask file, expected one")
    if palette is not None and image.mode in ("P", "L", "1"):
        image = image.convert("RGB")  # with declared colours it is the colours that count, however they are stored
    if image.mode in ("RGB", "RGBA") and palette is not None:
        return _indices_of_colours(path, image, palette)
    if image.mode in ("RGB", "RGBA"):
        raise UserError(
            f"{path}: an {image.mode} mask, expected {expected} in one channel (palette or grey PNG).{colour_hint}"
        )
    if not (image.mode in ("P", "L", "1", "I") or image.mode.startswith("I;16")):
        raise UserError(f"{path}: a mask of kind {image.mode!r}, expected {expected} as a palette or grey PNG")
    indices = np.array(image)
    if stored_as.startswith(("L;2", "L;4")):  # Pillow stretches 2- and 4-bit grey to 0..255
        indices //= 85 if stored_as.startswith("L;2") else 17
    return indices


def _raw_mode(image):
    """How Pillow names the file's own pixel format, such as "L;4" or "RGB;16B"; "" where it does not say."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    while isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def _read_header(path, data):
    """The file's header as Pillow sees it, or None where Pillow does not know the format."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Header(
                format=image.format,
                mode=image.mode,
                frames=1 if image.format in _JPEG_FORMATS else getattr(image, "n_frames", 1),
                has_alpha=image.has_transparency_data,
                is_deep=image.mode.startswith("I") or image.mode == "F" or ";16" in _raw_mode(image),
            )
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the image is too large: {error}. Cut it into tiles") from error
    except Exception:  # the decoders raise whatever they like on broken files; cv2 has the last word
        return None


def _check_complete(path, data):
    """Find a truncated JPEG or PNG by its missing end: cv2 and libjpeg fill the rest with grey and only warn."""
    if data.startswith(b"\xff\xd8"):
        # An EXIF thumbnail has an end marker too, but it stands before the picture's own start of scan (FF DA).
        is_complete = data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
    elif data.startswith(b"\x89PNG"):
        is_complete = data.rfind(b"IEND") >= 0
    else:
        return
    if not is_complete:
        raise UserError(f"{path}: truncated: the file ends after {len(data)} bytes without an end marker. {_MEND}")


def _check_codec(path, data):
    number = foreign_codec(data)
    if number is not None:
        raise codec_refusal(path, number, "which neither OpenCV nor Pillow can decode")


def _decode(path, data, header, keep_alpha):
    """The file's pixels: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, in the file's own dtype."""
    keep_alpha = keep_alpha and header is not None and header.has_alpha
    if header is None or header.is_deep:  # Pillow cannot, or would cut to 8 bits
        _check_codec(path, data)  # before, as OpenCV makes black images of unknown codecs
        pixels = _decode_deep(path, data, header, keep_alpha)
    elif header.format in _CV2_FORMATS and not keep_alpha:
        pixels = _decode_cv2(data, cv2.IMREAD_COLOR)
        pixels = _decode_pillow(data, keep_alpha) if pixels is None else pixels
    else:
        pixels = _decode_pillow(data, keep_alpha)
    if pixels is None:
        _check_codec(path, data)
        found = "corrupt, or not an image" if header is None else f"a corrupt {header.format} file"
        raise UserError(
            f"{path}: {found}: neither OpenCV nor Pillow can decode it. Expected JPEG, PNG or TIFF. {_MEND}"
        )
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise UserError(f"{path}: {pixels.shape[2]} channels, expected 1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    return pixels


def _decode_deep(path, data, header, keep_alpha):
    if header is not None and header.format == "PNG" and not keep_alpha:
        return _decode_cv2(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    # For TIFF, cv2's colour flags give zeros (16 bits) or nothing (float grey): only "unchanged" is right.
    pixels = _decode_cv2(data, cv2.IMREAD_UNCHANGED)
    is_oriented = header is None or header.format == "TIFF"  # cv2 turns TIFF, and leaves the others lying
    if pixels is not None and not is_oriented and _exif_orientation(data) != 1:
        raise UserError(f"{path}: a 16-bit image that is turned by its EXIF data. Save it upright")
    return pixels


def _exif_orientation(data):
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(0x0112, 1)
    except Exception:  # the decoders raise whatever they like on broken files
        return 1


def _decode_cv2(data, flags):
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:  # the fast way; IMREAD_COLOR_RGB needs OpenCV 4.10
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=2)


def _decode_pillow(data, keep_alpha):
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGBA" if keep_alpha else "RGB"))
    except Exception:  # the decoders raise whatever they like on broken files
        return None


def as_uint8(path, pixels):
    """Pixels of 8 or 16 bits or float in 0..1 as uint8; UserError for others."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        _say_once("16-bit images are scaled to 8 bits by the range of their dtype (value / 257)")
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for nan as well
            raise UserError(
                f"{path}: a float image with values {pixels.min():g}..{pixels.max():g}, expected 0..1. Scale it first"
            )
        _say_once("float images are scaled from 0..1 to 0..255")
        return np.rint(pixels * 255).astype(np.uint8)
    raise UserError(f"{path}: pixel values of type {pixels.dtype}, expected 8 or 16 bits unsigned, or float in 0..1")


def with_channels(pixels, channels):
    """uint8 (H, W), (H, W, 3) or (H, W, 4) -> (H, W, channels)."""
    has = 1 if pixels.ndim == 2 else pixels.shape[2]
    if has == channels:
        return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels))
    conversion = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (1, 4): cv2.COLOR_GRAY2RGBA,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (3, 4): cv2.COLOR_RGB2RGBA,
        (4, 1): cv2.COLOR_RGBA2GRAY,
        (4, 3): cv2.COLOR_RGBA2RGB,
    }[has, channels]
    converted = cv2.cvtColor(pixels, conversion)
    return converted.reshape(*pixels.shape[:2], channels)


def say_conversions(header, channels):
    """Logs, once a process and kind, what reading a file with this Header as `channels` channels changes."""
    is_grey = header.mode in ("1", "L", "LA", "F") or header.mode.startswith("I")
    if is_grey and channels != 1:
        _say_once("grey images are repeated to RGB")
    if not is_grey and channels == 1:
        _say_once("colour images are converted to their luminance")
    if header.has_alpha and channels != 4:
        _say_once("the alpha channel of images is dropped")
    if not header.has_alpha and channels == 4:
        _say_once("images without an alpha channel get an opaque one")
    if header.mode in ("P", "PA"):
        _say_once("palette images are read as their colours")
    if header.mode in ("CMYK", "YCCK", "LAB"):
        _say_once(f"{header.mode} images are converted to RGB")


@functools.cache  # once per process and kind
def _say_once(conversion):
    _log.warning("%s (said once)", conversion)


def _indices_of_colours(path, image, palette):
    pixels = np.array(image)  # (H, W, 3 or 4)
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        row, column = np.argwhere(pixels[..., 3] < 255)[0]
        raise UserError(f"{path}: transparent pixel at row {row}, column {column}: a mask's colours must be opaque")
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    codes = (red << 16) | (green << 8) | blue  # (H, W)
    indices = np.full(codes.shape, -1, np.int16)
    for index, (red, green, blue) in palette.items():
        indices[codes == (red << 16 | green << 8 | blue)] = index
    if indices.min() < 0:
        row, column = np.argwhere(indices < 0)[0]
        colour = [int(value) for value in pixels[row, column, :3]]
        raise UserError(
            f"{path}: colour {colour} at row {row}, column {column} is not in data.palette, which has "
            f"{len(palette)} colours. Add it there, for its class or for `ignore`"
        )
    return indices


def _checked_indices(path, indices, class_count, ignore_label):
    """indices as uint8 (H, W), all of them in 0..class_count-1 or ignore_label."""
    if indices.dtype == bool:
        indices = indices.astype(np.uint8)
    is_unknown = indices >= class_count  # (H, W)
    if indices.dtype != np.uint8:
        is_unknown |= indices < 0
    is_unknown &= indices != ignore_label
    if is_unknown.any():
        row, column = np.argwhere(is_unknown)[0]
        raise UserError(
            f"{path}: label {indices[row, column]} at row {row}, column {column}, but the dataset has {class_count} "
            f"classes (0..{class_count - 1}) and ignore label {ignore_label}. Is this a colour palette? A mask's "
            "values must be class indices: correct classes.txt or data.ignore_label, or declare data.palette for "
            "masks drawn in colours"
        )
    return indices.astype(np.uint8, copy=False)
