"""Images that are too large for memory: TIFF files read and written by windows.

Values, channels and pages are treated as `detseg.data.images.read_image` treats them.
"""

import functools
import logging
import os
import zlib
from pathlib import Path

import numpy as np
import tifffile

from detseg.data.images import Header, as_uint8, say_conversions, with_channels
from detseg.data.tiff_codecs import codec_refusal
from detseg.errors import UserError
from detseg.files import written_whole

_log = logging.getLogger("detseg")
_CACHE_BYTES = 2**27  # of decoded tiles or strips
_TILE = 256  # pixels, of written files
_CLASSIC_BYTES = 2**32 - 2**25  # what a TIFF with offsets of 32 bits holds, less 32 MB for what isn't pixels


class TiffReader:
    """A TIFF image as a source of windows; only the tiles or strips under a window are decoded.

    path:      file with one image (copies of reduced resolution don't count): grey, RGB or RGBA, of 8 or 16 bits or
               float in 0..1, in tiles or strips, uncompressed, deflate, or what the package imagecodecs decodes.
    channels:  1, 3 or 4, as in `read_image`.
    shape:     (H, W, channels).
    Raises UserError for any other file, here or when a window is read.
    """

    def __init__(self, path, channels=3):
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._page = _single_page(self.path, self._file)
            _check_page(self.path, self._page)
        except UserError:
            self.close()
            raise
        page = self._page
        self._channels = channels
        self.shape = (page.imagelength, page.imagewidth, channels)
        is_grey = page.samplesperpixel == 1
        header = Header("TIFF", "L" if is_grey else "RGB", 1, page.samplesperpixel == 4, page.dtype.itemsize > 1)
        say_conversions(header, channels)
        # Height and width of a tile or strip, and how many there are below and beside each other.
        self._segment = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self._segment = tuple(min(pair) for pair in zip(self._segment, self.shape, strict=False))
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self._decode_cached = self._cache()

    def _cache(self):
        size = self._segment[0] * self._segment[1] * self._page.samplesperpixel // self._planes
        size *= self._page.dtype.itemsize
        if size > _CACHE_BYTES and not self._page.is_memmappable:
            _log.warning(
                "%s: its %s of %dx%d pixels are decoded whole, %d MB each; save it in small tiles to use less memory",
                *(self.path, "tiles" if self._page.is_tiled else "strips", *self._segment, size // 10**6),
            )
        return functools.lru_cache(maxsize=max(1, _CACHE_BYTES // size))(self._decode)

    def read(self, row, column, height, width):
        """uint8 (height, width, channels): the window from (row, column) on, which must lie in the image."""
        read = self._read_mapped if self._page.is_memmappable else self._read_segments
        pixels = read(slice(row, row + height), slice(column, column + width))  # (height, width, file's channels)
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        return with_channels(as_uint8(self.path, pixels), self._channels)

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _read_mapped(self, rows, columns):
        """From pixels that lie in the file row by row. The map lives for one window, or the file would fill memory."""
        pixels = self._page.asarray(out="memmap", squeeze=False)[:, 0]  # (planes, H, W, channels of a plane)
        window = np.ascontiguousarray(pixels[:, rows, columns])
        window = window.astype(window.dtype.newbyteorder("="), copy=False)
        return window.transpose(1, 2, 0, 3).reshape(*window.shape[1:3], -1)

    def _read_segments(self, rows, columns):
        height, width = self._segment
        window = np.zeros(
            (rows.stop - rows.start, columns.stop - columns.start, self._page.samplesperpixel), self._page.dtype
        )
        for plane in range(self._planes):
            channels = slice(plane, plane + 1) if self._planes > 1 else slice(None)
            for down in range(rows.start // height, -(-rows.stop // height)):
                for across in range(columns.start // width, -(-columns.stop // width)):
                    segment = self._decode_cached(plane, down, across)
                    top, left = max(rows.start, down * height), max(columns.start, across * width)
                    part = segment[top - down * height : rows.stop - down * height, left - across * width :]
                    part = part[:, : columns.stop - left]
                    target = window[top - rows.start :, left - columns.start :, channels]
                    target[: part.shape[0], : part.shape[1]] = part
        return window

    def _decode(self, plane, down, across):
        """(height, width, channels of a plane) of a tile or strip; at the end of the image it may be smaller."""
        page = self._page
        count_down, count_across = (
            -(-total // part) for total, part in zip(self.shape[:2], self._segment, strict=True)
        )
        index = (plane * count_down + down) * count_across + across
        handle = page.parent.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index]) or None  # None: left out of a sparse file
        try:
            pixels, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        except (ValueError, RuntimeError, zlib.error) as error:
            raise UserError(f"{self.path}: corrupt: tile or strip {index} can't be decoded: {error}") from error
        return np.full(shape, page.nodata, page.dtype)[0] if pixels is None else pixels[0]


def write_label_tiff(path, shape, bands, palette=None):
    """Writes a label map row by row as a deflate TIFF in tiles, a BigTIFF where it needs to be; whole or not at all.

    shape:    (H, W).
    bands:    iterable of uint8 (h, W), from the top down, with H rows in all.
    palette:  uint8 (256, 3) RGB in which viewers show the classes, or None: grey.
    Memory: one band and a row of tiles.
    """
    height, width = shape
    grid = {"tile": (_TILE, _TILE), "shape": (height, width), "dtype": np.uint8}
    colours = {"photometric": "minisblack"}
    if palette is not None:
        colours = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
    with written_whole(path) as temporary:
        tifffile.imwrite(
            temporary,
            _tiles(bands, width),
            **grid,
            **colours,
            compression="zlib",
            bigtiff=height * width > _CLASSIC_BYTES,
            metadata=None,
            maxworkers=1,  # more would draw many bands ahead
        )


def _tiles(bands, width):
    """Tiles (256, 256), row by row, of bands of rows; beyond the image they are 0."""
    rest = np.zeros((0, width), np.uint8)
    for band in bands:
        rest = np.concatenate([rest, band])
        whole = len(rest) // _TILE * _TILE
        for start in range(0, whole, _TILE):
            yield from _row_of_tiles(rest[start : start + _TILE])
        rest = rest[whole:]
    if len(rest):
        yield from _row_of_tiles(rest)


def _row_of_tiles(rows):
    height, width = rows.shape
    rows = np.pad(rows, [(0, _TILE - height), (0, -width % _TILE)])
    return (rows[:, start : start + _TILE] for start in range(0, width, _TILE))


# ----- what is refused -----------------------------------------------------------------------------------------------


def _open(path):
    try:
        return tifffile.TiffFile(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except OSError as error:
        raise UserError(f"{path}: the image file cannot be read: {error.strerror}") from error
    except tifffile.TiffFileError as error:
        raise UserError(f"{path}: not a TIFF file, or a corrupt one: {error}") from error


def _single_page(path, file):
    pages = [page for page in file.pages if not page.is_reduced]
    if len(pages) != 1:
        raise UserError(f"{path}: {len(pages)} pages or frames in one file, expected a single image. Split it up")
    return pages[0]


def _check_page(path, page):
    _check_codec(path, page)
    photometric = tifffile.PHOTOMETRIC(page.photometric).name
    is_jpeg_colour = photometric == "YCBCR" and page.compression == tifffile.COMPRESSION.JPEG  # decoded to RGB
    if photometric not in ("MINISBLACK", "RGB") and not is_jpeg_colour:
        raise UserError(f"{path}: pixels of kind {photometric}, expected grey (MINISBLACK) or RGB. Convert it")
    if page.bitspersample not in (8, 16, 32, 64):
        raise UserError(f"{path}: {page.bitspersample} bits a channel, expected 8 or 16 unsigned, or float in 0..1")
    if page.samplesperpixel not in (1, 3, 4):
        raise UserError(f"{path}: {page.samplesperpixel} channels, expected 1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    if page.imagedepth > 1:
        raise UserError(f"{path}: a volume of {page.imagedepth} planes, expected a single image. Split it up")
    if page.tags.valueof("Orientation", default=1) != 1:
        raise UserError(f"{path}: an image that is turned by its orientation tag. Save it upright")
    end = max(offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    size = os.path.getsize(path)
    if end > size:
        raise UserError(f"{path}: truncated: the file ends after {size} bytes, its pixels after {end}")


def _check_codec(path, page):
    try:
        page.decode(None, 0)
    except (ValueError, NotImplementedError) as error:
        is_installable = "imagecodecs" in str(error)
        advice = "pip install imagecodecs, or " if is_installable else ""
        if "COMPRESSION" not in str(error):  # tifffile's name for codecs; it may be a predictor or the bits a channel
            raise UserError(f"{path}: cannot be decoded: {error}: {advice}save it uncompressed") from error
        reason = "which needs a package that isn't installed" if is_installable else "which tifffile can't decode"
        raise codec_refusal(path, int(page.compression), reason, advice) from error
