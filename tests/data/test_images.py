"""Image and mask files: what is read, what is said, what is refused."""

import logging
import struct
import zlib
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from detseg.data import pixels
from detseg.data.images import check_size, read_image, read_label_map
from detseg.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    pixels.say_once.cache_clear()


def picture(height=24, width=32, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def smooth_picture(height=240, width=320):
    rows, columns = np.mgrid[:height, :width]
    texture = np.random.default_rng(0).integers(0, 60, (height, width))
    return np.stack([rows % 200, columns % 200, (rows + columns) % 190], axis=2).astype(np.uint8) + texture[
        ..., None
    ].astype(np.uint8)


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def write_grey_png(path, values, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write."""
    rows = b"".join(
        b"\0"
        + bytes(int("".join(f"{v:0{bits}b}" for v in row[i : i + 8 // bits]), 2) for i in range(0, len(row), 8 // bits))
        for row in values
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


# ---- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_rgb_comes_back_exactly_in_rgb_order(tmp_path, suffix):
    path, expected = tmp_path / f"a.{suffix}", picture()
    Image.fromarray(expected).save(path, **({"lossless": True} if suffix == "webp" else {}))
    actual = read_image(path)
    assert actual.dtype == np.uint8
    assert actual.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(actual, expected)


def test_jpeg_is_read_in_rgb_order(tmp_path):
    Image.new("RGB", (16, 16), (250, 128, 5)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (250, 128, 5)).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    upright = np.zeros((16, 48, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:] = 250, 120  # tells all eight orientations apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(upright).save(path, exif=exif, quality=95)
    expected = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright),
    }[orientation]
    actual = read_image(path)
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).max() < 20


def test_one_channel_of_rgb_is_its_luminance(tmp_path):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    actual = read_image(tmp_path / "a.png", channels=1)
    assert actual.shape == (24, 32, 1)
    assert np.abs(actual[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_is_repeated_and_exact_for_every_channel_count(tmp_path, suffix, channels):
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    actual = read_image(tmp_path / f"a.{suffix}", channels)
    assert actual.shape == (24, 32, channels)
    for channel in range(min(channels, 3)):
        np.testing.assert_array_equal(actual[..., channel], grey)
    if channels == 4:
        assert (actual[..., 3] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_is_dropped_or_kept_and_never_multiplied_in(tmp_path, suffix):
    pixels = picture(channels=4)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", 3), pixels[..., :3])
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", 4), pixels)


def test_palette_images_are_read_as_their_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image.putpalette([9, 8, 7, 200, 100, 50])
    for suffix in ("png", "gif", "bmp"):
        image.save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}").tolist() == [
            [[9, 8, 7], [200, 100, 50]],
            [[200, 100, 50], [9, 8, 7]],
        ]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_sixteen_bits_are_divided_by_257_and_rounded(tmp_path, suffix, shape):
    deep = np.random.default_rng(1).integers(0, 65536, shape).astype(np.uint16)
    deep.flat[:4] = 0, 128, 129, 65535
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep)
    expected = np.rint(deep / 257).astype(np.uint8)
    expected = expected[..., ::-1] if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_float_tiff_of_0_to_1_is_scaled_to_255(tmp_path, shape, dtype):
    values = np.random.default_rng(1).random(shape).astype(dtype)
    values.flat[:2] = 0, 1
    assert cv2.imwrite(str(tmp_path / "a.tif"), values)
    expected = np.rint(values * 255).astype(np.uint8)
    expected = expected[..., ::-1] if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


def test_sixteen_bit_alpha_is_kept_and_turned(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (5, 7, 4)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), deep)
    expected = np.rint(deep / 257).astype(np.uint8)[..., [2, 1, 0, 3]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), expected[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), np.rot90(expected, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), np.rot90(expected[..., :3], -1))


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_float_outside_0_to_1_is_refused(tmp_path, value):
    assert cv2.imwrite(str(tmp_path / "a.tif"), np.full((4, 4), value, np.float32))
    refused(lambda: read_image(tmp_path / "a.tif"), "a.tif", "float image", "expected 0..1")


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_signed_integers_are_refused(tmp_path, shape):
    assert cv2.imwrite(str(tmp_path / "a.tif"), np.full(shape, -5, np.int16))
    refused(lambda: read_image(tmp_path / "a.tif"), "a.tif", "int16", "expected 8 or 16 bits unsigned")


def test_a_conversion_is_said_once_a_kind(tmp_path, caplog):
    Image.fromarray(picture()[..., 0]).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4, 3), 9, np.uint16))
    Image.fromarray(picture(channels=4)).save(tmp_path / "alpha.png")
    Image.fromarray(picture()).save(tmp_path / "plain.png")
    with caplog.at_level(logging.INFO, logger="detseg"):
        for _ in range(3):
            read_image(tmp_path / "plain.png")
        assert not caplog.records
        for name in ("grey", "deep", "alpha") * 3:
            read_image(tmp_path / f"{name}.png")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "grey" in said[0]
    assert "16-bit" in said[1]
    assert "alpha" in said[2]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    Image.fromarray(smooth_picture()).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: int(len(data) * kept)])
    refused(lambda: read_image(tmp_path / f"cut.{suffix}"), f"cut.{suffix}", "truncated")


def test_truncated_jpeg_is_refused_in_spite_of_its_thumbnails_end_marker(tmp_path):
    Image.fromarray(smooth_picture()).save(tmp_path / "whole.jpg")
    Image.new("RGB", (16, 16)).save(tmp_path / "thumbnail.jpg")
    data, thumbnail = (tmp_path / "whole.jpg").read_bytes(), (tmp_path / "thumbnail.jpg").read_bytes()
    application = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + application + data[2:]
    (tmp_path / "whole.jpg").write_bytes(whole + b"\0\0trailing")
    assert read_image(tmp_path / "whole.jpg").shape == (240, 320, 3)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_image(tmp_path / "cut.jpg"), "cut.jpg", "truncated")


def test_files_that_are_no_images_are_refused(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200) + b"IEND\xae\x42\x60\x82")
    refused(lambda: read_image(tmp_path / "empty.jpg"), "empty.jpg", "empty (0 bytes)", "Replace the file")
    refused(lambda: read_image(tmp_path / "text.jpg"), "text.jpg", "not an image", "Expected JPEG")
    refused(lambda: read_image(tmp_path / "noise.png"), "noise.png", "corrupt")
    refused(lambda: read_image(tmp_path / "folder.jpg"), "folder.jpg", "a folder")
    refused(lambda: read_image(tmp_path / "none.jpg"), "none.jpg", "no such image file")


def test_several_pages_are_refused(tmp_path):
    page = Image.fromarray(picture())
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    refused(lambda: read_image(tmp_path / "a.tif"), "a.tif", "3 pages", "single image")


def test_several_pages_of_a_kind_that_pillow_does_not_know_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 24, 32, 3), np.float32), photometric="rgb")
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "a.tif")
    refused(lambda: read_image(tmp_path / "a.tif"), "a.tif", "3 pages", "single image")


def write_tiff_that_says(path, compression, pixels):
    """A TIFF whose tag Compression is another than that of its pixels."""
    tifffile.imwrite(path, pixels)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags["Compression"].valueoffset
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = struct.pack("<H", compression)
    path.write_bytes(data)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("compression", "name"),
    [
        (34712, "JPEG2000"),
        (33003, "APERIO_JP2000_YCBC"),
        (33005, "APERIO_JP2000_RGB"),
        (50002, "JPEGXL"),
        (32908, "PIXARFILM"),
        (34887, "LERC"),
        (50001, "WEBP"),
        (12345, "an unknown codec"),
    ],
)
def test_tiff_of_a_codec_that_is_not_there_is_refused_by_its_name(tmp_path, compression, name, dtype):
    """OpenCV makes a black image of some of them."""
    path = tmp_path / "a.tif"
    write_tiff_that_says(path, compression, np.full((20, 30, 3), 77, dtype))
    expected = ("a.tif: packed by", name, f"(TIFF compression {compression})", "save it uncompressed or with deflate")
    refused(lambda: read_image(path), *expected)
    refused(lambda: read_label_map(path, 100), *expected)


def test_tiff_of_every_codec_that_opencv_writes_is_read(tmp_path):
    for compression in (1, 5, 8, 32773, 32946):
        for dtype, scale in ((np.uint8, 1), (np.uint16, 257)):
            path, values = tmp_path / f"{compression}.tif", picture().astype(dtype) * scale
            assert cv2.imwrite(str(path), values[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
            np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II+\0"])
@pytest.mark.parametrize("rest", [b"", bytes(4), bytes(100), b"\xff" * 100, b"\x08\0\0\0\x01\0" + b"\7" * 12], ids=len)
def test_broken_tiff_headers_are_refused(tmp_path, start, rest):
    (tmp_path / "a.tif").write_bytes(start + rest)
    refused(lambda: read_image(tmp_path / "a.tif"), "a.tif")
    refused(lambda: read_label_map(tmp_path / "a.tif", 4), "a.tif")


def test_channels_that_a_file_does_not_have_are_refused_with_both_numbers(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    refused(
        lambda: read_image(tmp_path / "a.png", channels=2), "a.png: 3 channels, expected exactly 2", "data.channels"
    )
    refused(
        lambda: read_image(tmp_path / "a.png", channels=8), "a.png: 3 channels, expected exactly 8", "data.channels"
    )
    Image.fromarray(picture()[..., 0]).save(tmp_path / "a.jpg")
    refused(lambda: read_image(tmp_path / "a.jpg", channels=2), "a.jpg: 1 channels, expected exactly 2")


def test_grey_and_alpha_are_two_channels_or_converted(tmp_path):
    pair = picture(channels=2)
    Image.merge("LA", [Image.fromarray(pair[..., i].copy()) for i in (0, 1)]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 2), pair)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3), pair[..., [0, 0, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), pair[..., [0, 0, 0, 1]])


# ---- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_files_are_read_as_they_are(tmp_path, channels, order):
    expected = picture(channels=channels)
    np.save(tmp_path / "a.npy", np.asarray(expected, order=order))
    actual = read_image(tmp_path / "a.npy", channels)
    assert actual.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(actual, expected)


def test_array_files_of_two_axes_are_grey(tmp_path):
    np.save(tmp_path / "a.npy", picture()[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), picture()[..., [0, 0, 0]])


def test_array_files_that_are_no_images_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(9, np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 4), np.uint8))
    np.save(tmp_path / "planes.npy", np.zeros((8, 24, 32), np.uint8))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "planes.npy").read_bytes()[:-1])
    refused(lambda: read_image(tmp_path / "objects.npy"), "objects.npy: cannot be read as an array")
    refused(lambda: read_image(tmp_path / "cut.npy", 8), "cut.npy: cannot be read as an array")
    refused(lambda: read_image(tmp_path / "flat.npy"), "flat.npy: an array of shape (9,)", "(height, width, channels)")
    refused(lambda: read_image(tmp_path / "none.npy"), "none.npy: an array of shape (0, 4)")
    refused(lambda: read_image(tmp_path / "planes.npy", 8), "planes.npy: 32 channels, expected exactly 8")
    refused(lambda: read_image(tmp_path / "text.npy", 1), "text.npy: pixel values of type <U1")


# ---- value range --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value_range", "values", "expected"),
    [
        (np.uint16, (0, 4095), [0, 1, 8, 9, 2047, 2048, 4094, 4095], [0, 0, 0, 1, 127, 128, 255, 255]),
        (np.int16, (-1000, 1000), [-1000, -1, 0, 1000], [0, 127, 128, 255]),
        (np.float32, (0.5, 1.5), [0.5, 1.0, 1.25, 1.5], [0, 128, 191, 255]),
        (np.float64, (-1.0, 0.0), [-1.0, -0.5, -0.25, 0.0], [0, 128, 191, 255]),
        (np.uint8, (50, 101), [50, 51, 100, 101], [0, 5, 250, 255]),
        (np.uint16, (0, 65535), [0, 128, 129, 65535], [0, 0, 1, 255]),
    ],
)
def test_values_are_scaled_from_their_range_and_rounded(tmp_path, dtype, value_range, values, expected):
    array = np.array([values], dtype)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array)
    for name in ("a.npy", "a.tif"):
        assert read_image(tmp_path / name, 1, value_range)[..., 0].tolist() == [expected]


def test_files_of_8_and_16_bits_have_a_value_range_too(tmp_path):
    Image.fromarray(np.full((4, 4, 3), (0, 50, 100), np.uint8)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4), 2048, np.uint16))
    assert read_image(tmp_path / "a.png", 3, (0, 100))[0, 0].tolist() == [0, 128, 255]
    assert read_image(tmp_path / "deep.png", 3, (0, 4095))[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint16, 4096), (np.int16, -1), (np.float32, np.nan), (np.float32, np.inf), (np.uint8, 9)]
)
def test_values_outside_of_their_range_are_refused_and_named(tmp_path, dtype, value):
    array = np.zeros((4, 4, 8), dtype)
    array[1, 2, 3] = value
    value_range = (0, 8) if dtype is np.uint8 else (0, 4095)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    refused(
        lambda: read_image(tmp_path / "a.tif", 8, value_range),
        f"a.tif: the pixel value {value:g} is outside of data.value_range [0, {value_range[1]}]",
    )


def test_a_dropped_alpha_channel_needs_no_value_range(tmp_path):
    Image.fromarray(np.full((4, 4, 4), (0, 50, 100, 255), np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 3, (0, 100))[0, 0].tolist() == [0, 128, 255]
    refused(lambda: read_image(tmp_path / "a.png", 4, (0, 100)), "255 is outside")


# ---- label maps ---------------------------------------------------------------------------------------------------

LABELS = np.array([[0, 1, 2, 255], [3, 3, 0, 255]], np.uint8)
PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (1, 2, 3), 255: (255, 255, 255)}


def coloured(labels):
    return np.array([[PALETTE[int(label)] for label in row] for row in labels], np.uint8)


def test_palette_png_is_read_as_indices_whatever_its_colours(tmp_path):
    image = Image.fromarray(LABELS)
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(tmp_path / "a.png")
    actual = read_label_map(tmp_path / "a.png", 4)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, LABELS)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_is_read_as_indices(tmp_path, suffix):
    Image.fromarray(LABELS).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_label_map(tmp_path / f"a.{suffix}", 4), LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_png_of_few_bits_is_read_as_indices_not_as_brightness(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 16)).tolist()
    write_grey_png(tmp_path / "a.png", values, bits)
    assert read_label_map(tmp_path / "a.png", 2**bits).tolist() == values


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_png_of_few_bits_is_read_as_indices(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 16)).astype(np.uint8)
    image = Image.fromarray(values)
    image.putpalette([7, 7, 7] * 2**bits)
    image.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png", 2**bits), values)


def test_sixteen_bit_grey_is_accepted_where_its_values_fit(tmp_path):
    cv2.imwrite(str(tmp_path / "fits.png"), LABELS.astype(np.uint16))
    np.testing.assert_array_equal(read_label_map(tmp_path / "fits.png", 4), LABELS)
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 1], [0, 258]], np.uint16))
    refused(lambda: read_label_map(tmp_path / "deep.png", 4), "deep.png: label 258 at row 1, column 1")


def test_label_out_of_range_names_value_place_and_classes(tmp_path):
    labels = np.zeros((20, 50), np.uint8)
    labels[12, 40] = 27
    Image.fromarray(labels).save(tmp_path / "a.png")
    refused(
        lambda: read_label_map(tmp_path / "a.png", 21),
        "a.png: label 27 at row 12, column 40, but the dataset has 21 classes (0..20) and ignore label 255. "
        "Is this a colour palette?",
    )


@pytest.mark.parametrize(("mode", "count"), [("RGB", 3), ("RGBA", 4)])
def test_colour_mask_is_read_with_a_declared_palette_only(tmp_path, mode, count):
    pixels = np.dstack([coloured(LABELS), np.full(LABELS.shape, 255, np.uint8)])[..., :count]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png", 4, palette=PALETTE), LABELS)
    refused(lambda: read_label_map(tmp_path / "a.png", 4), "a.png", mode, "colour mask", "Declare data.palette")


@pytest.mark.parametrize("mode", ["P", "L"])
def test_with_a_palette_colours_count_however_they_are_stored(tmp_path, mode):
    grey = {0: (0, 0, 0), 1: (255, 255, 255)}
    mask = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    mask.convert("RGB").quantize(2).save(tmp_path / "a.png") if mode == "P" else mask.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png", 2, palette=grey), [[0, 1], [1, 0]])


def test_colour_outside_the_palette_is_named_with_its_place(tmp_path):
    pixels = coloured(LABELS)
    pixels[1, 2] = 10, 20, 30
    Image.fromarray(pixels).save(tmp_path / "a.png")
    refused(lambda: read_label_map(tmp_path / "a.png", 4, palette=PALETTE), "a.png", "[10, 20, 30]", "row 1, column 2")
    transparent = np.dstack([coloured(LABELS), np.full(LABELS.shape, 254, np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "b.png")
    refused(lambda: read_label_map(tmp_path / "b.png", 4, palette=PALETTE), "b.png", "transparent", "row 0, column 0")


def test_lossy_empty_truncated_and_missing_masks_are_refused(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "a.jpg")
    refused(lambda: read_label_map(tmp_path / "a.jpg", 4), "a.jpg", "JPEG mask", "index PNG")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(lambda: read_label_map(tmp_path / "empty.png", 4), "empty.png", "mask file is empty (0 bytes)")
    Image.fromarray(picture(200, 200)[..., 0]).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-500])
    refused(lambda: read_label_map(tmp_path / "cut.png", 256), "cut.png", "truncated")
    (tmp_path / "text.png").write_text("no mask")
    refused(lambda: read_label_map(tmp_path / "text.png", 4), "text.png", "cannot be read as a mask")
    refused(lambda: read_label_map(tmp_path / "none.png", 4), "none.png", "no such mask file")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    refused(lambda: read_label_map(tmp_path / "float.tif", 4), "float.tif", "'F'", "class indices")


def test_sizes_that_differ_name_both_files_and_sizes():
    check_size((4, 6), "a.jpg", (4, 6), "a.png")
    refused(
        lambda: check_size((4, 6), "a.jpg", (6, 4), "a.png"),
        *("a.png: 6x4", "a.jpg is 4x6"),
    )
