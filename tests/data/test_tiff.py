"""TIFF files: the samples that the tags state are the channels that come out, in small files and in large ones."""

import io
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.data.images import read_image
from detseg.data.windows import TiffReader
from detseg.errors import UserError

SCALES = {np.uint8: 1, np.uint16: 257}


def bands(count, height=45, width=61):
    """Smooth enough to be packed, and other values in each band."""
    rows, columns = np.mgrid[:height, :width]
    values = [(3 + band) * (rows // 4) + (29 - band) * (columns // 5) + 17 * band for band in range(count)]
    return np.stack(values, axis=-1).astype(np.uint8)


def read_by_windows(path, channels, value_range=None):
    with TiffReader(path, channels, value_range) as reader:
        height, width, _ = reader.shape
        top = [reader.read(0, 0, 20, 33), reader.read(0, 33, 20, width - 33)]
        return np.concatenate([np.concatenate(top, axis=1), reader.read(20, 0, height - 20, width)])


def assert_read(path, channels, expected):
    """By the whole and by windows."""
    for read in (read_image, read_by_windows):
        actual = read(path, channels)
        assert actual.dtype == np.uint8
        assert actual.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(actual, expected)


def assert_refused(path, channels, *parts):
    for read in (read_image, read_by_windows):
        with pytest.raises(UserError) as error:
            read(path, channels)
        for part in parts:
            assert part in str(error.value)


@pytest.mark.parametrize("compression", [None, "zlib", "lzma", "lzw"])
@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize(
    ("count", "photometric"),
    [(2, "minisblack"), *((n, kind) for n in (3, 4, 5, 8, 13) for kind in ("minisblack", "rgb"))],
)
def test_every_band_comes_back(tmp_path, count, photometric, planes, dtype, compression):
    path, expected = tmp_path / "a.tif", bands(count)
    stored = expected.astype(dtype) * SCALES[dtype]
    write(path, stored, compression, photometric=photometric, planarconfig=planes)
    assert_read(path, count, expected)
    if count == 3:
        assert_read(path, 4, np.dstack([expected, np.full(expected.shape[:2], 255, np.uint8)]))
    elif count == 4:
        assert_read(path, 3, expected[..., :3])
    else:
        for wanted in (1, 3, 4):
            assert_refused(path, wanted, f"a.tif: {count} channels, expected 1 (grey), 3 (RGB) or 4", f"is {wanted}")
    assert_refused(path, 7, f"a.tif: {count} channels, expected exactly 7")


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("form", [{"tile": (16, 32)}, {"tile": (16, 32), "predictor": True}, {"predictor": True}])
def test_tiles_predictors_and_byte_orders_change_nothing(tmp_path, form, byteorder):
    expected = bands(5)
    options = {"photometric": "minisblack", "planarconfig": "contig", "byteorder": byteorder, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", expected.astype(np.uint16) * 257, **options, **form)
    assert_read(tmp_path / "a.tif", 5, expected)


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_the_fourth_band_is_that_of_the_file_whatever_its_kind(tmp_path, kind, compression, dtype):
    expected = bands(4)
    stored = expected.astype(dtype) * SCALES[dtype]
    write(tmp_path / "a.tif", stored, compression, photometric="rgb", planarconfig="contig", extrasamples=[kind])
    assert_read(tmp_path / "a.tif", 4, expected)
    assert_read(tmp_path / "a.tif", 3, expected[..., :3])


@pytest.mark.parametrize("dtype", SCALES)
def test_a_second_band_is_alpha_only_where_the_file_says_so(tmp_path, dtype):
    pair = bands(2)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", pair.astype(dtype) * SCALES[dtype], extrasamples=["unassalpha"], **options)
    assert_read(tmp_path / "a.tif", 4, pair[..., [0, 0, 0, 1]])
    assert_read(tmp_path / "a.tif", 3, pair[..., [0, 0, 0]])
    assert_read(tmp_path / "a.tif", 2, pair)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_samples_that_only_a_decoder_of_whole_files_has_are_checked_by_their_number(tmp_path):
    """JPEG within TIFF: Pillow has RGB, and passes over a fourth band."""
    rgb = Image.fromarray(np.ascontiguousarray(bands(3)))
    rgb.save(tmp_path / "rgb.tif", compression="jpeg", quality=95)
    assert np.abs(read_image(tmp_path / "rgb.tif").astype(int) - bands(3)).max() < 40
    four = Image.merge("RGBX", [Image.fromarray(np.ascontiguousarray(bands(4)[..., i])) for i in range(4)])
    four.save(tmp_path / "four.tif", compression="jpeg", quality=95)
    assert read_image(tmp_path / "four.tif", 3).shape == (45, 61, 3)
    assert_refused(tmp_path / "four.tif", 4, "four.tif: packed by JPEG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("dtype", "count"), [(np.uint8, 8), (np.uint16, 1), (np.uint16, 3)])
def test_the_orientation_tag_is_applied(tmp_path, dtype, count, orientation):
    stored = bands(count)
    tag = [("Orientation", "H", 1, orientation, True)]
    options = {"photometric": "minisblack", "planarconfig": "contig", "extratags": tag}
    tifffile.imwrite(tmp_path / "a.tif", stored.astype(dtype).squeeze() * SCALES[dtype], **options)
    upright = [
        *(stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.swapaxes(0, 1), np.rot90(stored, -1)),
        *(np.rot90(stored, 2).swapaxes(0, 1), np.rot90(stored)),
    ][orientation - 1]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", count), upright)
    if orientation > 1:
        with pytest.raises(UserError, match="Save it upright"):
            read_by_windows(tmp_path / "a.tif", count)


def test_kinds_of_pixels_are_read_alike_by_windows(tmp_path):
    grey, four = bands(1)[..., 0], bands(4)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "white16.tif", grey.astype(np.uint16) * 257, photometric="miniswhite")
    for name in ("white", "white16"):
        assert_read(tmp_path / f"{name}.tif", 1, 255 - grey[..., None])
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", grey, photometric="palette", colormap=palette.T.astype(np.uint16) * 257)
    assert_read(tmp_path / "p.tif", 3, palette[grey])
    tifffile.imwrite(tmp_path / "cmyk.tif", four, photometric="separated")
    with Image.open(tmp_path / "cmyk.tif") as image:
        assert_read(tmp_path / "cmyk.tif", 3, np.asarray(image.convert("RGB")))


def test_a_pyramid_is_its_full_size(tmp_path):
    image = bands(8, 64, 64)
    options = {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(image, **options)
        file.write(image[::2, ::2], subfiletype=1, **options)
    assert_read(tmp_path / "a.tif", 8, image)


def test_values_are_scaled_alike_by_windows(tmp_path):
    stored = (bands(8).astype(np.uint16) * 16).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig", compression="zlib")
    expected = np.rint(stored * (255 / 4095)).astype(np.uint8)
    for read in (read_image, read_by_windows):
        np.testing.assert_array_equal(read(tmp_path / "a.tif", 8, (0, 4095)), expected)
        with pytest.raises(UserError, match=r"a.tif: the pixel value \d+ is outside of data.value_range \[0, 100\]"):
            read(tmp_path / "a.tif", 8, (0, 100))


def test_damaged_lzw_is_refused(tmp_path):
    write(tmp_path / "a.tif", bands(5), "lzw", photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[0].dataoffsets[1]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start : start + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(data)
    assert_refused(tmp_path / "a.tif", 5, "a.tif: corrupt: tile or strip 1")


def test_too_large_an_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", bands(5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 45 * 61 // 2 - 1)
    with pytest.raises(UserError, match="the image is too large: 45x61"):
        read_image(tmp_path / "a.tif", 5)


def test_deep_floats_with_a_predictor_are_read(tmp_path):
    """OpenCV has the floating-point predictor, which tifffile wants a package for."""
    values = bands(3).astype(np.float32) / 255
    for compression in (5, 8):
        options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, 3]
        assert cv2.imwrite(str(tmp_path / "a.tif"), values, options)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), bands(3)[..., ::-1])


def write(path, pixels, compression, **options):
    """As tifffile.imwrite, and by LZW too, for which that wants a package."""
    if options["planarconfig"] == "separate":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    if compression != "lzw":
        tifffile.imwrite(path, pixels, compression=compression, **options)
        return
    planes = pixels if options["planarconfig"] == "separate" else [pixels]
    strips = [lzw(plane[row : row + 16].tobytes()) for plane in planes for row in range(0, 45, 16)]
    shape = {"shape": pixels.shape, "dtype": pixels.dtype, "rowsperstrip": 16}
    tifffile.imwrite(path, iter(strips), compression="zlib", **shape, **options)  # bytes are written as they are
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)


def lzw(data):
    """Bytes, packed by Pillow as a grey image of one row."""
    file = io.BytesIO()
    Image.frombytes("L", (len(data), 1), data).save(file, "TIFF", compression="tiff_lzw")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        (offset,), (count,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    return file.getvalue()[offset : offset + count]
