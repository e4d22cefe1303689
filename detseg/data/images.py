"""Image files and label-map files as arrays."""

import io
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from detseg.data.pixels import as_image, check_channels, say_conversions
from detseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")  # in order of preference

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of TIFF and BigTIFF in both byte orders
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a phone's JPEG with further pictures behind the first
_CV2_FORMATS = (*_JPEG_FORMATS, "PNG", "BMP", "WEBP")  # what cv2 decodes into the right RGB with EXIF orientation
_DECLARE_PALETTE = " Is it a colour mask? Declare data.palette: {class name: [red, green, blue], ..., ignore: [...]}"
_MEND = "Replace the file or take it out of the split"


# What a file says before its pixels are decoded: Pillow's mode; is_deep: more than 8 bits a channel.
_Header = namedtuple("_Header", "format mode channels has_alpha is_deep")


def read_image(path, channels=3, value_range=None):
    """Decode an image file.

    path:         JPEG, PNG, TIFF, BMP, WebP or whatever else OpenCV or Pillow reads; an array in a .npy file, (H, W)
                  or (H, W, C).
    channels:     1 (luminance), 3 (RGB) or 4 (RGB and alpha; 255 where the file has no alpha); any other number, if
                  that is what the file has.
    value_range:  (low, high), which become 0 and 255, and the values between them in proportion, rounded. None: 16-bit
                  values are divided by 257, float values of 0..1 are multiplied by 255, both rounded.
    Returns       uint8 (H, W, channels) with the EXIF orientation applied; grey is repeated, alpha is dropped unless
                  channels is 4. Each kind of conversion is logged once per process.
    """
    data = _read_bytes(path, "image")
    if data.startswith(_TIFF_STARTS):
        return _read_tiff(path, data, channels, value_range)
    if data.startswith(b"\x93NUMPY"):
        return as_image(path, _decode_npy(path, data), channels, value_range)
    header = _read_header(path, data)
    pixels = _decode(path, data, header, channels)
    if header is not None:
        say_conversions(header.mode, header.has_alpha, channels)
    return as_image(path, pixels, channels, value_range)


def read_label_map(path, class_count, ignore_label=255, palette=None):
    """Read a mask file of class indices.

    path:           PNG (or TIFF, BMP) whose values are indices: palette, 1-, 2-, 4-, 8- or 16-bit grey. The colours of
                    a palette file do not matter. RGB(A) only with `palette`. JPEG is refused: it changes values.
    class_count:    K; the values must be 0..K-1 or ignore_label.
    palette:        {index: (red, green, blue)} for masks drawn in colours, or None.
    Returns         uint8 (H, W).
    """
    indices = _read_indices(path, palette, "class indices", _DECLARE_PALETTE)
    is_unknown = ((indices < 0) | (indices >= class_count)) & (indices != ignore_label)  # (H, W)
    if is_unknown.any():
        row, column = np.argwhere(is_unknown)[0]
        raise UserError(
            f"{path}: label {indices[row, column]} at row {row}, column {column}, but the dataset has {class_count} "
            f"classes (0..{class_count - 1}) and ignore label {ignore_label}. Is this a colour palette? A mask's "
            "values must be class indices: correct classes.txt or data.ignore_label, or declare data.palette for "
            "masks drawn in colours"
        )
    return indices.astype(np.uint8, copy=False)


def read_instance_ids(path):
    """Read a PNG (or TIFF, BMP) in which a pixel is the number of its object, 0: none. Returns int32 (H, W)."""
    indices = _read_indices(path, None, "object numbers")
    if indices.min(initial=0) < 0:
        raise UserError(f"{path}: object number {indices.min()}, expected numbers >= 0")
    return indices.astype(np.int32)


def check_size(image_size, image_source, label_size, label_source):
    """UserError unless an image and its labels have the same (height, width); sources name the files."""
    if tuple(image_size) != tuple(label_size):
        (height, width), (label_height, label_width) = image_size, label_size
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
    # cv2 and libjpeg fill what is missing of a truncated file with grey and only warn.
    is_truncated = data.startswith(b"\x89PNG") and data.rfind(b"IEND") < 0
    if data.startswith(b"\xff\xd8") and not data.endswith(b"\xff\xd9"):
        # An EXIF thumbnail has an end marker too, but it stands before the picture's own start of scan (FF DA).
        is_truncated = not data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
    if is_truncated:
        raise UserError(f"{path}: truncated: the file ends after {len(data)} bytes without an end marker. {_MEND}")
    return data


def _read_indices(path, palette, expected, colour_hint=""):
    """The numbers that a mask file holds, (H, W) of any integer dtype; with a palette, of its colours."""
    data = _read_bytes(path, "mask")
    try:
        image = Image.open(io.BytesIO(data))
        stored_as = _raw_mode(image)  # known only before load()
        frames = getattr(image, "n_frames", 1)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # the decoders raise whatever they like on broken files
        if data.startswith(_TIFF_STARTS):
            from detseg.data import windows

            with windows.open_tiff(path, data) as file:
                windows.check_opencv_codec(path, windows.image_page(path, file))
        raise UserError(f"{path}: cannot be read as a mask: {error}. Expected an index PNG. {_MEND}") from error
    if image.format in _JPEG_FORMATS:
        raise UserError(f"{path}: a JPEG mask: its compression changes {expected}. Save masks as index PNG")
    if frames > 1:
        raise UserError(f"{path}: {frames} pages or frames in one mask file, expected one")
    if palette is not None and image.mode in ("P", "L", "1"):
        image = image.convert("RGB")  # with declared colours it is the colours that count, however they are stored
    if image.mode in ("RGB", "RGBA"):
        if palette is not None:
            return _indices_of_colours(path, np.array(image), palette)
        expected += " in one channel (palette or grey PNG)"
        raise UserError(f"{path}: an {image.mode} mask, expected {expected}.{colour_hint}")
    if not (image.mode in ("P", "L", "1", "I") or image.mode.startswith("I;16")):
        raise UserError(f"{path}: a mask of kind {image.mode!r}, expected {expected} as a palette or grey PNG")
    indices = np.array(image, np.uint8 if image.mode == "1" else None)
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
            frames = 1 if image.format in _JPEG_FORMATS else getattr(image, "n_frames", 1)
            has_alpha = image.has_transparency_data
            channels = 3 + has_alpha if image.mode in ("P", "PA", "CMYK") else len(image.getbands())
            is_deep = image.mode.startswith("I") or image.mode == "F" or ";16" in _raw_mode(image)
            header = _Header(image.format, image.mode, channels, has_alpha, is_deep)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the image is too large: {error}. Cut it into tiles") from error
    except Exception:  # the decoders raise whatever they like on broken files; cv2 has the last word
        return None
    if frames > 1:
        raise UserError(f"{path}: {frames} pages or frames in one file, expected a single image. Split it up")
    return header


def _read_tiff(path, data, channels, value_range):
    from detseg.data import windows  # their tifffile takes as long to import as all else here

    try:
        with windows.TiffReader(path, channels, value_range, data) as reader:
            return np.ascontiguousarray(_turned(reader.read(0, 0, *reader.shape[:2]), reader.orientation))
    except windows.Undecodable as refusal:
        pixels = windows.decode_whole(path, data, refusal.page, channels, value_range)
        if pixels is None:
            windows.check_opencv_codec(path, refusal.page)
            raise
        return as_image(path, pixels, channels, value_range)


def _decode_npy(path, data):
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as an array: {error}. {_MEND}") from error
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UserError(f"{path}: an array of shape {pixels.shape}, expected (height, width, channels)")
    return pixels.reshape(*pixels.shape[:2], -1)


def _turned(pixels, orientation):
    """Pixels (H, W, C) as EXIF's orientation, 1..8, wants them to be shown."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _decode(path, data, header, channels):
    """The pixels of a file that is no TIFF: (H, W, C) in the file's own dtype, for `as_image`."""
    if header is not None:
        check_channels(path, header.channels, channels, header.has_alpha)
    keep_alpha = channels in (2, 4) and header is not None and header.has_alpha
    if header is not None and header.is_deep and header.format == "PNG" and not keep_alpha:
        pixels = _decode_cv2(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    elif header is None or header.is_deep:  # Pillow cannot, or would cut to 8 bits
        pixels = _decode_cv2(data, cv2.IMREAD_UNCHANGED)  # it leaves them lying
        pixels = pixels if pixels is None or header is None else _turned(pixels, _exif_orientation(data))
    elif header.format in _CV2_FORMATS and not keep_alpha:
        pixels = _decode_cv2(data, cv2.IMREAD_COLOR)
        pixels = _decode_pillow(data, "RGB") if pixels is None else pixels
    else:
        pixels = _decode_pillow(data, {2: "LA", 4: "RGBA"}[channels] if keep_alpha else "RGB")
    if pixels is None:
        found = "corrupt, or not an image" if header is None else f"a corrupt {header.format} file"
        advice = f"Expected JPEG, PNG or TIFF. {_MEND}"
        raise UserError(f"{path}: {found}: neither OpenCV nor Pillow can decode it. {advice}")
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
        return pixels if pixels is None else pixels[..., None]
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:  # the fast way; IMREAD_COLOR_RGB needs OpenCV 4.10
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=2)


def _decode_pillow(data, mode):
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert(mode))
    except Exception:  # the decoders raise whatever they like on broken files
        return None


def _indices_of_colours(path, pixels, palette):  # (H, W, 3 or 4)
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        row, column = np.argwhere(pixels[..., 3] < 255)[0]
        raise UserError(f"{path}: transparent pixel at row {row}, column {column}: a mask's colours must be opaque")
    weights = np.array([1 << 16, 1 << 8, 1], np.int32)
    codes = pixels[..., :3] @ weights  # (H, W)
    indices = np.full(codes.shape, -1, np.int16)
    for index, colour in palette.items():
        indices[codes == colour @ weights] = index
    if indices.min() < 0:
        row, column = np.argwhere(indices < 0)[0]
        colour = [int(value) for value in pixels[row, column, :3]]
        raise UserError(
            f"{path}: colour {colour} at row {row}, column {column} is not in data.palette, which has "
            f"{len(palette)} colours. Add it there, for its class or for `ignore`"
        )
    return indices
