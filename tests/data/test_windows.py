"""Large TIFF files: windows equal the whole image, in little memory; what can't be read is named."""

import logging
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.data import pixels as pixel_values
from detseg.data import windows
from detseg.data.images import read_image, read_label_map
from detseg.data.palette import voc_palette
from detseg.data.windows import TiffReader, write_label_tiff
from detseg.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    pixel_values.say_once.cache_clear()


def pixels(*shape, dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape)
    return values.astype(dtype)


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


WINDOWS = [(0, 0, 150, 170), (0, 0, 1, 1), (149, 169, 1, 1), (60, 40, 70, 99), (15, 130, 20, 40), (128, 0, 22, 170)]
FORMS = {
    "one strip": {"rowsperstrip": 150},
    "strips": {"rowsperstrip": 16},
    "tiles": {"tile": (64, 32)},
    "deflate strips": {"rowsperstrip": 7, "compression": "zlib"},
    "deflate tiles": {"tile": (32, 64), "compression": "zlib"},
    "deflate tiles with predictor": {"tile": (32, 64), "compression": "zlib", "predictor": True},
    "one deflate strip": {"rowsperstrip": 150, "compression": "zlib"},
    "big-endian": {"byteorder": ">"},
    "big-endian tiles": {"byteorder": ">", "tile": (32, 32), "compression": "zlib"},
    "BigTIFF": {"bigtiff": True, "tile": (32, 32)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_windows_are_those_of_the_whole_image(tmp_path, form, channels):
    image = pixels(150, 170, channels)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image[..., 0] if channels == 1 else image, **FORMS[form])
    for wanted in (1, 3, 4):
        expected = read_image(path, wanted)
        with TiffReader(path, wanted) as reader:
            assert reader.shape == (150, 170, wanted)
            for row, column, height, width in WINDOWS:
                window = reader.read(row, column, height, width)
                assert window.dtype == np.uint8
                np.testing.assert_array_equal(window, expected[row : row + height, column : column + width])


@pytest.mark.parametrize("form", ["one strip", "tiles", "deflate tiles", "deflate strips", "big-endian tiles"])
def test_channels_in_planes_of_their_own_are_put_together(tmp_path, form):
    planes = pixels(3, 150, 170)
    options = FORMS[form]
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", **options)
    with TiffReader(tmp_path / "a.tif") as reader:
        for row, column, height, width in WINDOWS:
            expected = planes[:, row : row + height, column : column + width].transpose(1, 2, 0)
            np.testing.assert_array_equal(reader.read(row, column, height, width), expected)


def test_packbits_needs_no_package(tmp_path):
    image = np.repeat(pixels(64, 16, 3), 4, axis=1)
    Image.fromarray(image).save(tmp_path / "a.tif", compression="packbits")
    with TiffReader(tmp_path / "a.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64), image)


@pytest.mark.parametrize("form", ["one strip", "deflate tiles", "big-endian tiles"])
@pytest.mark.parametrize("shape", [(150, 170), (150, 170, 3)])
def test_16_bits_and_floats_are_scaled_as_in_read_image(tmp_path, form, shape, caplog):
    deep = pixels(*shape, dtype=np.uint16)
    for name, values in (("deep", deep), ("float", (deep / 65535).astype(np.float32))):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, **FORMS[form])
        with caplog.at_level(logging.WARNING, logger="detseg"), TiffReader(tmp_path / f"{name}.tif", 3) as reader:
            window = reader.read(60, 40, 70, 99)
        expected = np.rint(deep / 257).astype(np.uint8)[60:130, 40:139]
        np.testing.assert_array_equal(window, expected if deep.ndim == 3 else expected[..., None].repeat(3, axis=2))
    said = [record.getMessage() for record in caplog.records]
    assert sum("16-bit" in message for message in said) == 1
    assert sum("float" in message for message in said) == 1
    assert sum("grey" in message for message in said) == (deep.ndim == 2)


def test_only_tiles_under_a_window_are_decoded_and_some_are_kept(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels(256, 256), tile=(32, 32), compression="zlib")
    monkeypatch.setattr(windows, "_CACHE_BYTES", 6 * 32 * 32)
    decoded = []
    decode = TiffReader._decode
    monkeypatch.setattr(TiffReader, "_decode", lambda self, *place: decoded.append(place) or decode(self, *place))
    with TiffReader(tmp_path / "a.tif", 1) as reader:
        reader.read(40, 70, 60, 50)
        assert decoded == [(0, down, across) for down in (1, 2, 3) for across in (2, 3)]
        reader.read(60, 70, 10, 30)
        assert len(decoded) == 6
        reader.read(0, 0, 1, 1)
        reader.read(99, 70, 1, 1)
        assert len(decoded) == 8, "the oldest has made place"


def test_strips_too_large_to_keep_are_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(windows, "_CACHE_BYTES", 1000)
    tifffile.imwrite(tmp_path / "plain.tif", pixels(150, 170), rowsperstrip=150)
    tifffile.imwrite(tmp_path / "packed.tif", pixels(150, 170), rowsperstrip=150, compression="zlib")
    TiffReader(tmp_path / "plain.tif", 1).close()
    assert not caplog.records
    TiffReader(tmp_path / "packed.tif", 1).close()
    assert "strips of 150x170 pixels are decoded whole" in caplog.text


def test_tiles_left_out_of_a_sparse_file_are_empty(tmp_path):
    tiles = iter([np.full((16, 16), 7, np.uint8), None, None, np.full((16, 16), 9, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib")
    with TiffReader(tmp_path / "a.tif", 1) as reader:
        np.testing.assert_array_equal(reader.read(15, 15, 2, 2)[..., 0], [[7, 0], [0, 9]])


def test_copies_of_reduced_resolution_are_no_pages(tmp_path):
    image = pixels(64, 64)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(image, tile=(16, 16))
        file.write(image[::2, ::2], tile=(16, 16), subfiletype=1)
    with TiffReader(tmp_path / "pyramid.tif", 1) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64)[..., 0], image)


# ----- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
@pytest.mark.parametrize(("compression", "name"), [("jpeg", "JPEG")])
def test_codecs_that_are_not_there_are_named(tmp_path, compression, name):
    Image.fromarray(pixels(64, 64, 3)).save(tmp_path / "a.tif", compression=compression)
    refused(lambda: TiffReader(tmp_path / "a.tif"), f"a.tif: packed by {name} (", "pip install imagecodecs, or save it")


def test_codecs_that_nothing_has_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(64, 64))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(32908)
    refused(
        lambda: TiffReader(tmp_path / "a.tif"), "a.tif: packed by PIXARFILM (TIFF compression 32908)", "save it unc"
    )


def test_kinds_of_pixels_that_tifffile_does_not_decode_are_refused(tmp_path):
    subsampled = [(530, "H", 2, (2, 2), True)]  # YCbCrSubSampling, without JPEG
    tifffile.imwrite(tmp_path / "a.tif", pixels(64, 64, 3), photometric="rgb", extratags=subsampled)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    refused(lambda: TiffReader(tmp_path / "a.tif"), "a.tif: cannot be decoded", "subsampling", "save it uncompressed")


def test_several_pages_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(3, 20, 20), photometric="minisblack")
    refused(lambda: TiffReader(tmp_path / "a.tif"), "a.tif", "3 pages", "single image")


def test_other_values_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "signed.tif", np.full((9, 9), -5, np.int16))
    tifffile.imwrite(tmp_path / "float.tif", np.full((9, 9), 1.5, np.float32))
    tifffile.imwrite(tmp_path / "bits.tif", np.ones((9, 9), bool), photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", pixels(9, 9, 2), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "cielab.tif", pixels(9, 9, 3), photometric="cielab")
    tifffile.imwrite(tmp_path / "turned.tif", pixels(9, 9), extratags=[("Orientation", "H", 1, 6, True)])
    read = lambda name: TiffReader(tmp_path / name, 1).read(0, 0, 9, 9)  # noqa: E731
    refused(lambda: read("signed.tif"), "signed.tif", "int16", "expected 8 or 16 bits unsigned")
    refused(lambda: read("float.tif"), "float.tif", "1.5", "expected 0..1")
    refused(lambda: read("bits.tif"), "bits.tif", "1 bits a channel")
    refused(lambda: read("two.tif"), "two.tif", "2 channels, expected 1 (grey)")
    refused(lambda: read("cielab.tif"), "cielab.tif", "CIELAB", "expected grey")
    refused(lambda: read("turned.tif"), "turned.tif", "Save it upright")


def test_broken_files_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "whole.tif", pixels(64, 64), tile=(32, 32), compression="zlib")
    data = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:-100])
    with tifffile.TiffFile(tmp_path / "whole.tif") as file:
        start = file.pages[0].dataoffsets[3]
    (tmp_path / "bad.tif").write_bytes(data[:start] + bytes(50) + data[start + 50 :])
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.tif").write_bytes(b"")
    refused(lambda: TiffReader(tmp_path / "cut.tif"), "cut.tif", "truncated")
    refused(lambda: TiffReader(tmp_path / "text.tif"), "text.tif", "not a TIFF file")
    refused(lambda: TiffReader(tmp_path / "empty.tif"), "empty.tif", "not a TIFF file")
    refused(lambda: TiffReader(tmp_path / "none.tif"), "none.tif: no such image file")
    refused(lambda: TiffReader(tmp_path), "cannot be read")
    with TiffReader(tmp_path / "bad.tif", 1) as reader:
        reader.read(0, 0, 32, 64)
        refused(lambda: reader.read(0, 0, 64, 64), "bad.tif", "tile or strip 3")


# ----- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (300, 700), (513, 255)])
@pytest.mark.parametrize("rows", [1, 100, 256, 1000])
def test_written_bands_are_read_back(tmp_path, shape, rows):
    labels = pixels(*shape) % 5
    bands = (labels[row : row + rows] for row in range(0, len(labels), rows))
    write_label_tiff(tmp_path / "a.tif", shape, bands, voc_palette())
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.tif", 5), labels)
    assert Image.open(tmp_path / "a.tif").convert("RGB").getpixel((0, 0)) == tuple(voc_palette()[labels[0, 0]])
    write_label_tiff(tmp_path / "b.tif", shape, [labels])
    with TiffReader(tmp_path / "b.tif", 1) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, *shape)[..., 0], labels)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tile == (256, 256)
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert not file.is_bigtiff


def test_bands_are_drawn_as_they_are_written(tmp_path):
    """Not all first: the file has grown before the last band is asked for."""
    noise = pixels(256, 256 * 40)
    seen = []

    def bands():
        for _ in range(20):
            yield noise
            (temporary,) = tmp_path.glob(".*a.tif")
            seen.append(temporary.stat().st_size)

    write_label_tiff(tmp_path / "a.tif", (20 * 256, 256 * 40), bands())
    assert seen[-1] > 15 * noise.size
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tif"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def bands():
        yield np.zeros((256, 300), np.uint8)
        raise UserError("the image broke off")

    (tmp_path / "a.tif").write_text("old")
    refused(lambda: write_label_tiff(tmp_path / "a.tif", (600, 300), bands()), "the image broke off")
    assert (tmp_path / "a.tif").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_more_than_4_gb_are_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_CLASSIC_BYTES", 9999)
    write_label_tiff(tmp_path / "a.tif", (100, 100), [np.zeros((100, 100), np.uint8)])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff


def test_big_endian_pixels_are_read(tmp_path):
    image = np.random.default_rng(0).integers(0, 2**16, (20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "big.tif", image, byteorder=">")
    with TiffReader(tmp_path / "big.tif", 1) as reader:
        np.testing.assert_array_equal(reader.read(3, 4, 10, 12), read_image(tmp_path / "big.tif", 1)[3:13, 4:16])
