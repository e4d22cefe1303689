"""TIFF files: what they say of their image, which may be too large for memory and is read and written by windows.

The tags decide how many channels an image has, never what a decoder makes of them.
"""

import contextlib
import functools
import io
import itertools
import logging
import math
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from detseg.data.pixels import as_image, check_channels, say_conversions
from detseg.errors import UserError
from detseg.files import written_whole

_log = logging.getLogger("detseg")
_CACHE_BYTES = 2**27  # of decoded tiles or strips
_TILE = 256  # pixels, of written files
_CLASSIC_BYTES = 2**32 - 2**25  # what a TIFF with offsets of 32 bits holds, less 32 MB for what isn't pixels
WHITE, GREY, COLOUR, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # values of the tag PhotometricInterpretation
_MODES = {WHITE: "L", GREY: "L", COLOUR: "RGB", PALETTE: "P", CMYK: "CMYK", YCBCR: "YCbCr", 8: "LAB"}  # Pillow's
# Numbers of the tag Compression that libtiff unpacks within OpenCV: none, CCITT (2, 3, 4 and 32771), LZW, JPEG, deflate
# (8 and 32946), NeXT, PackBits, ThunderScan and SGILog (both).
_OPENCV_CODECS = frozenset({1, 2, 3, 4, 5, 7, 8, 32766, 32771, 32773, 32809, 32946, 34676, 34677})
_BYTE_CODECS = frozenset({5, 34925, 50000})  # LZW, LZMA, ZSTD: Pillow has them, and they know nothing of pixels


class TiffReader(contextlib.AbstractContextManager):
    """A TIFF image as a source of windows; only the tiles or strips under a window are decoded.

    path:         of the file: one image in tiles or strips, uncompressed, deflate, LZW, or what the package imagecodecs
                  decodes; upright.
    channels, value_range: as in `read_image`, which reads its TIFF files by this class.
    data:         bytes of the whole file where they are read already; then it may lie turned, as `orientation` says,
                  1..8 as EXIF numbers it.
    Raises UserError for any other file, here or when a window is read; Undecodable where tifffile can't decode it.
    """

    def __init__(self, path, channels=3, value_range=None, data=None):
        self.path, self._channels, self._value_range = Path(path), channels, value_range
        self._file = open_tiff(path, data)
        try:
            self._open(image_page(path, self._file), is_whole=data is not None)
        except BaseException:
            self.close()
            raise

    def _open(self, page, is_whole):
        size = page.imagelength, page.imagewidth
        if is_whole and math.prod(size) > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow refuses other files
            raise UserError(f"{self.path}: the image is too large: {size[0]}x{size[1]}. Cut it into tiles")
        self._page, self.shape = page, (*size, self._channels)
        self._has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)
        channels = 3 if page.photometric in (PALETTE, CMYK) else page.samplesperpixel
        check_channels(self.path, channels, self._channels, self._has_alpha)
        mode = "RGB" if page.photometric == GREY and channels > 2 else _MODES.get(page.photometric, "RGB")
        say_conversions(mode, self._has_alpha or page.samplesperpixel == 4, self._channels)
        self.orientation = page.tags.valueof("Orientation", default=1)
        if not is_whole and self.orientation != 1:
            raise UserError(f"{self.path}: an image that is turned by its orientation tag. Save it upright")
        if is_whole and _is_slow(page):
            raise Undecodable(f"{self.path}: corrupt: neither OpenCV nor Pillow can decode it", page)
        self._is_mapped = page.is_memmappable
        self._codec = _take_codec(page)
        _check_page(self.path, page)
        segment = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self._segment = tuple(np.minimum(segment, size).tolist())
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        count = math.prod(self._segment) * page.samplesperpixel // self._planes * page.dtype.itemsize  # bytes
        if count > _CACHE_BYTES and not self._is_mapped and not is_whole:
            _log.warning(
                "%s: its %s of %dx%d pixels are decoded whole, %d MB each; save it in small tiles to use less memory",
                *(self.path, "tiles" if page.is_tiled else "strips", *self._segment, count // 10**6),
            )
        self._decode_cached = functools.lru_cache(maxsize=max(1, _CACHE_BYTES // count))(self._decode)

    def read(self, row, column, height, width):
        """uint8 (height, width, channels): the window from (row, column) on, which must lie in the image."""
        read = self._read_mapped if self._is_mapped else self._read_segments
        pixels = _as_colours(read(slice(row, row + height), slice(column, column + width)), self._page)
        return as_image(self.path, pixels, self._channels, self._value_range, self._has_alpha)

    def close(self):
        self._file.close()

    def __exit__(self, *error):
        self.close()

    def _read_mapped(self, rows, columns):
        """From pixels that lie in the file row by row. The map lives for one window, or the file would fill memory."""
        pixels = self._page.asarray(out="memmap", squeeze=False)[:, 0]  # (planes, H, W, channels of a plane)
        window = np.ascontiguousarray(pixels[:, rows, columns])
        window = window.astype(window.dtype.newbyteorder("="), copy=False)
        return window.transpose(1, 2, 0, 3).reshape(*window.shape[1:3], -1)

    def _read_segments(self, rows, columns):
        def parts(pixels, side):  # the segments along an axis that hold these pixels, and where in each they lie
            for k in range(pixels.start // side, -(-pixels.stop // side)):
                yield k, slice(max(pixels.start - k * side, 0), pixels.stop - k * side)

        height, width = self._segment
        grid = [
            [
                [self._decode_cached(plane, down, across)[inside_rows, inside_columns] for plane in range(self._planes)]
                for across, inside_columns in parts(columns, width)
            ]
            for down, inside_rows in parts(rows, height)
        ]
        return np.block(grid).astype(self._page.dtype, copy=False)  # by rows, columns and channels

    def _decode(self, plane, down, across):
        """(height, width, channels of a plane) of a tile or strip; at the end of the image it may be smaller."""
        page = self._page
        (height, width, _), (segment_height, segment_width) = self.shape, self._segment
        count_down, count_across = -(-height // segment_height), -(-width // segment_width)
        index = (plane * count_down + down) * count_across + across
        handle = page.parent.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index]) or None  # None: left out of a sparse file
        try:
            if data and self._codec is not None:
                _, _, shape = page.decode(None, index)
                data = _unpacked(data, self._codec, math.prod(shape) * page.dtype.itemsize)
            pixels, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        except (ValueError, RuntimeError, OSError, zlib.error, Image.DecompressionBombError) as error:
            raise UserError(f"{self.path}: corrupt: tile or strip {index} can't be decoded: {error}") from error
        return np.full(shape, page.nodata, page.dtype)[0] if pixels is None else pixels[0]


def write_label_tiff(path, shape, bands, palette=None):
    """Writes a label map row by row as a deflate TIFF in tiles, a BigTIFF where it needs to be; whole or not at all.

    bands:    iterable of uint8 (h, W), from the top down, with H rows in all; one is in memory, and a row of tiles.
    palette:  uint8 (256, 3) RGB in which viewers show the classes, or None: grey.
    """
    height, width = shape
    colours = {"photometric": "minisblack"}
    if palette is not None:
        colours = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    grid = {"tile": (_TILE, _TILE), "shape": shape, "dtype": np.uint8, "bigtiff": height * width > _CLASSIC_BYTES}
    # With more than one worker many bands would be drawn ahead.
    packing = {"compression": "zlib", "metadata": None, "maxworkers": 1}
    with written_whole(path) as temporary:
        tifffile.imwrite(temporary, _tiles(bands, width), **grid, **colours, **packing)


def _tiles(bands, width):
    """Tiles (256, 256), row by row, of bands of rows; beyond the image they are 0."""
    rest, below = np.zeros((0, width), np.uint8), np.zeros((_TILE - 1, width), np.uint8)
    for band in itertools.chain(bands, [below]):
        rest = np.concatenate([rest, band])
        while len(rest) >= _TILE:
            rows, rest = np.pad(rest[:_TILE], [(0, 0), (0, -width % _TILE)]), rest[_TILE:]
            yield from (rows[:, start : start + _TILE] for start in range(0, width, _TILE))


class Undecodable(UserError):
    """A page that tifffile can't decode, `page`. Other decoders may have it, whole and without windows."""

    def __init__(self, message, page):
        super().__init__(message)
        self.page = page


def open_tiff(path, data=None):
    """The TiffFile of a path, or of the bytes that were read from it; UserError if it is none."""
    try:
        return tifffile.TiffFile(path if data is None else io.BytesIO(data))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except OSError as error:
        raise UserError(f"{path}: the image file cannot be read: {error.strerror}") from error
    except Exception as error:  # beside TiffFileError, broken files raise whatever they like
        raise UserError(f"{path}: not a TIFF file, or a corrupt one: {error}") from error


def image_page(path, file):
    """The page of a TiffFile that holds its image; copies of reduced resolution don't count."""
    try:
        pages = [page for page in file.pages if not page.is_reduced]
        count, page = len(pages), pages[0]
        end = max(offset + length for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True))
    except Exception as error:  # broken files raise whatever they like
        raise UserError(f"{path}: a corrupt TIFF file: {error}") from error
    if count != 1:
        raise UserError(f"{path}: {count} pages or frames in one file, expected a single image. Split it up")
    if page.imagedepth > 1:
        raise UserError(f"{path}: a volume of {page.imagedepth} planes, expected a single image. Split it up")
    if end > file.filehandle.size:
        raise UserError(f"{path}: truncated: the file ends after {file.filehandle.size} bytes, its pixels after {end}")
    return page


def _is_slow(page):
    """Whether tifffile takes ten times as long as libtiff, for LZW and PackBits, and grey or RGB is all there is."""
    form = (page.photometric, page.samplesperpixel, page.planarconfig)
    is_plain = form in ((GREY, 1, 1), (COLOUR, 3, 1)) and page.dtype in (np.uint8, np.uint16, np.float32)
    return page.compression in (5, 32773) and is_plain and page.bitspersample == 8 * page.dtype.itemsize


def _check_page(path, page):
    """Undecodable unless tifffile decodes the page into grey, RGB, or what `_as_colours` makes of it."""
    try:
        page.decode(None, 0)
    except (ValueError, NotImplementedError) as error:
        is_installable = "imagecodecs" in str(error)
        advice = "pip install imagecodecs, or " if is_installable else ""
        if "COMPRESSION" in str(error):  # tifffile's name for codecs; else it is a predictor or the bits a channel
            reason = "which needs a package that isn't installed" if is_installable else "which tifffile can't decode"
            raise Undecodable(_codec_refusal(path, page, reason, advice), page) from error
        raise Undecodable(f"{path}: cannot be decoded: {error}: {advice}save it uncompressed", page) from error
    form = (page.samplesperpixel, page.bitspersample, page.dtype.kind)
    forms = {PALETTE: [(1, 8, "u")], CMYK: [(4, 8, "u")], WHITE: [(1, 8, "u"), (1, 16, "u")]}
    is_jpeg_colour = page.photometric == YCBCR and page.compression == tifffile.COMPRESSION.JPEG  # decoded to RGB
    if page.photometric not in (GREY, COLOUR) and form not in forms.get(page.photometric, ()) and not is_jpeg_colour:
        kind = f"{page.samplesperpixel} channels of kind {tifffile.PHOTOMETRIC(page.photometric).name}"
        raise Undecodable(f"{path}: {kind}, expected grey (MINISBLACK) or RGB. Convert it", page)
    if page.bitspersample not in (8, 16, 32, 64):
        expected = "8 or 16 unsigned, or float in 0..1"
        raise Undecodable(f"{path}: {page.bitspersample} bits a channel, expected {expected}", page)


def _as_colours(pixels, page):
    """Samples (H, W, n) as the page's image: RGB of palettes and CMYK, grey that grows with the light."""
    if page.photometric == WHITE:
        return np.iinfo(pixels.dtype).max - pixels
    if page.photometric == PALETTE:
        return (np.asarray(page.colormap) >> 8).astype(np.uint8).T[pixels[..., 0]]
    if page.photometric == CMYK:
        return np.asarray(Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))
    return pixels


def _take_codec(page):
    """The compression of a page that `_unpacked` takes off, so that tifffile doesn't have to; None: there is none."""
    codec = page.compression
    if codec not in _BYTE_CODECS or page.fillorder != 1 or find_spec("imagecodecs") is not None:
        return None
    page.compression = 1  # for tifffile, which does the rest
    return codec


def _unpacked(packed, codec, size):
    """The `size` bytes in a tile or strip that one of these has packed, by way of a grey TIFF of one row."""
    tags = {256: size, 257: 1, 258: 8, 259: codec, 262: GREY, 273: 122, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with Image.open(io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed)) as image:
        return image.tobytes()


def decode_whole(path, data, page, channels, value_range):
    """An Undecodable page upright, (H, W, C), by OpenCV or Pillow; None unless they have all of the file's samples."""
    samples = page.samplesperpixel
    try:
        if page.bitspersample > 8:
            check_opencv_codec(path, page)
            is_plain = page.photometric == (GREY if samples == 1 else COLOUR) and page.planarconfig == 1
            is_stretched = page.bitspersample not in (16, 32, 64)  # OpenCV makes 16 bits of 10, 12 and 14
            if not is_plain or (is_stretched and value_range is not None):
                return None
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # None if it can't
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]  # from BGR
            return pixels[..., order] if len(order) == samples else None
        with Image.open(io.BytesIO(data)) as image:
            bands, has_alpha = len(image.getbands()), image.has_transparency_data
            is_without_fourth = samples == 4 and bands == 3 and channels in (1, 3)
            if 1 in page.extrasamples or (bands != samples and not is_without_fourth):  # 1: Pillow divides by the alpha
                return None
            return np.array(ImageOps.exif_transpose(image).convert("RGBA" if has_alpha else "RGB"))
    except UserError:
        raise
    except Exception:  # the decoders raise whatever they like on broken files
        return None


def check_opencv_codec(path, page):
    """UserError if OpenCV can't unpack a page: it makes black images of some, and tells stderr only."""
    if page.compression not in _OPENCV_CODECS:
        raise UserError(_codec_refusal(path, page, "which neither OpenCV nor Pillow can decode"))


def _codec_refusal(path, page, reason, advice=""):
    number = int(page.compression)
    name = {codec.value: codec.name for codec in tifffile.COMPRESSION}.get(number, "an unknown codec")
    packed = f"{path}: packed by {name} (TIFF compression {number})"
    return f"{packed}, {reason}: {advice}save it uncompressed or with deflate"
