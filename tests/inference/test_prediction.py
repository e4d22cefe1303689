import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import detseg
from detseg import predict_files as files
from detseg.errors import UserError
from detseg.predict_files import find_images, predict_files


@pytest.fixture(scope="module")
def predictor(trained_run):
    return detseg.load(trained_run)


@pytest.fixture
def picture(shapes_root):
    return np.array(Image.open(shapes_root / "JPEGImages" / "shapes_test_0001.jpg"))


@pytest.mark.parametrize("size", [(192, 192), (33, 190), (1, 1), (31, 257)])
def test_every_image_size_gives_a_mask_of_its_size(predictor, picture, size):
    image = cv2.resize(picture, size[::-1])
    prediction = predictor.predict(image, probabilities=True)
    assert prediction.label_map.shape == size
    assert prediction.label_map.dtype == np.uint8
    assert prediction.probabilities.shape == (*size, 6)
    np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(prediction.probabilities.argmax(-1), prediction.label_map)


def test_probabilities_come_only_when_asked_for_and_change_no_label(predictor, picture):
    plain = predictor.predict(picture)
    assert plain.probabilities is None
    np.testing.assert_array_equal(plain.label_map, predictor.predict(picture, probabilities=True).label_map)


def test_a_path_is_read_as_an_image(predictor, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    expected = predictor.predict(picture).label_map
    np.testing.assert_array_equal(predictor.predict(tmp_path / "a.png").label_map, expected)


def test_grey_rgba_and_16_bit_files_are_predicted(predictor, picture, tmp_path):
    grey = picture[..., 1]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "sixteen.png"), grey.astype(np.uint16) * 257)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    expected = predictor.predict(np.repeat(grey[..., None], 3, -1)).label_map
    np.testing.assert_array_equal(predictor.predict(tmp_path / "grey.png").label_map, expected)
    np.testing.assert_array_equal(predictor.predict(tmp_path / "sixteen.png").label_map, expected)
    np.testing.assert_array_equal(
        predictor.predict(tmp_path / "alpha.png").label_map, predictor.predict(picture).label_map
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_pil_image_is_what_its_file_is(predictor, picture, tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(picture[..., 1].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(picture).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    np.testing.assert_array_equal(predictor.predict(image).image, predictor.predict(path).image)


def test_arrays_of_12_bits_are_scaled_by_the_value_range_as_files_are(trained_run, picture, tmp_path):
    predictor = detseg.load(trained_run, ["data.value_range=[0, 4095]"])
    twelve = picture.astype(np.uint16) * 16
    np.save(tmp_path / "a.npy", twelve)
    np.save(tmp_path / "big_endian.npy", twelve.astype(">u2"))
    expected = predictor.predict(tmp_path / "a.npy").image
    np.testing.assert_array_equal(predictor.predict(twelve).image, expected)
    np.testing.assert_array_equal(predictor.predict(tmp_path / "big_endian.npy").image, expected)
    np.testing.assert_array_equal(predictor.predict(picture).image, picture)  # what is uint8 is an image already


def test_exif_rotation_is_applied(predictor, picture, tmp_path):
    image = Image.fromarray(picture[:, :100])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    label_map = predictor.predict(tmp_path / "turned.png").label_map
    assert label_map.shape == (100, 192)
    np.testing.assert_array_equal(label_map, predictor.predict(np.rot90(picture[:, :100], -1).copy()).label_map)


@pytest.mark.parametrize("resize", ["[96, 64]", "{shorter: 96, longer: 300}"])
def test_data_resize_is_mapped_back_to_the_original_size(trained_run, picture, resize):
    predictor = detseg.load(trained_run, [f"data.resize={resize}"])
    prediction = predictor.predict(picture[:, :150], probabilities=True)
    assert prediction.label_map.shape == (192, 150)
    np.testing.assert_array_equal(prediction.probabilities.argmax(-1), prediction.label_map)


@pytest.mark.parametrize(
    "image",
    [
        *(np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8), np.zeros((0, 4, 3), np.uint8)),
        *(np.zeros((4, 4, 3)), 3, None, Image.new("RGB", (0, 4))),
    ],
)
def test_arrays_of_another_form_are_refused(predictor, image):
    with pytest.raises(UserError, match=r"expected a path, a PIL image or uint8 \(height, width, 3\)"):
        predictor.predict(image)


def test_files_folders_and_patterns_are_found_once_each(tmp_path):
    for name in ("a.jpg", "b.PNG", "c.txt"):
        (tmp_path / name).touch()
    folder = [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    assert find_images([tmp_path]) == folder
    assert find_images([tmp_path / "a.jpg", tmp_path]) == folder
    assert find_images([tmp_path / "*.jpg"]) == folder[:1]
    assert find_images(tmp_path) == find_images(str(tmp_path)) == folder


def test_inputs_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_images([tmp_path / "x.jpg"])
    with pytest.raises(UserError, match="no images"):
        find_images([tmp_path])


def test_results_never_overwrite_images_or_each_other(predictor, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a.png").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"would overwrite the image .*a\.png"):
        predict_files(predictor, [inputs], inputs)
    (inputs / "a.jpg").touch()
    with pytest.raises(UserError, match="two folders"):
        predict_files(predictor, [inputs], tmp_path / "out")
    (inputs / "a.jpg").rename(inputs / "a_overlay.jpg")
    with pytest.raises(UserError, match="two folders"):
        predict_files(predictor, [inputs / "a_overlay.jpg", inputs / "a.png"], tmp_path / "out")
    assert (inputs / "a.png").read_bytes() == b"precious"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="can't be made a folder"):
        predict_files(predictor, [inputs / "a.png"], inputs / "a_overlay.jpg")


def test_files_that_predict_did_not_write_are_never_replaced(predictor, picture, tmp_path):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), picture)
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.png").write_bytes(b"a mask drawn by hand")
    with pytest.raises(UserError, match=r"a\.png is there already, and not written by predict.*--overwrite"):
        predict_files(predictor, [image], output)
    assert (output / "a.png").read_bytes() == b"a mask drawn by hand"
    assert not (output / "a_overlay.png").exists()
    predict_files(predictor, [image], output, overwrite=True)
    predict_files(predictor, [image], output)  # its own
    (output / "a.png").write_bytes(b"corrected by hand")
    with pytest.raises(UserError, match="changed since"):
        predict_files(predictor, [image], output)


def test_images_of_a_list_are_predicted_as_each_by_itself(predictor, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    small = np.ascontiguousarray(picture[:100, :80])
    images = [picture, small, tmp_path / "a.png", Image.fromarray(picture[:, ::-1]), small[::-1]]
    found = predictor.predict(images, probabilities=True)
    assert len(found) == 5
    for image, prediction in zip(images, found, strict=True):
        alone = predictor.predict(image, probabilities=True)
        np.testing.assert_allclose(prediction.probabilities, alone.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found[0].label_map, found[2].label_map)
    assert predictor.predict([]) == []


def test_a_prediction_draws_itself_and_becomes_coco_entries(predictor, picture):
    from pycocotools import mask as rle

    prediction = predictor.predict(picture)
    assert prediction.classes == predictor.classes
    assert prediction.draw().shape[0] == 192
    entries = prediction.to_coco(image_id=7, file_name="a.jpg")
    areas = np.bincount(prediction.label_map.ravel())
    for entry in entries:
        assert (entry["image_id"], entry["file_name"]) == (7, "a.jpg")
        assert rle.area(entry["segmentation"]) == areas[entry["category_id"] - 1]


def test_tiles_of_a_resized_image_are_averaged_and_mapped_back(trained_run, picture):
    """--tile with data.resize and --tta: as without, where the image fits into one tile but for its mirrored border."""
    overrides = ["data.resize=[128, 128]", "tta={scales: [1.0], flip: horizontal}"]
    predictor = detseg.load(trained_run, overrides)
    whole, tiled = (predictor.predict(picture, probabilities=True, tta=True, tile=tile) for tile in (None, "auto"))
    assert tiled.probabilities.shape == whole.probabilities.shape == (192, 192, 6)
    np.testing.assert_array_equal(tiled.label_map, tiled.probabilities.argmax(-1))
    assert np.mean(tiled.label_map == whole.label_map) > 0.8


def test_large_tiff_is_read_and_written_by_windows(predictor, picture, tmp_path, monkeypatch):
    image = np.tile(picture, (2, 3, 1))[:333, :512]
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(64, 64), compression="zlib")
    expected = predictor.predict(image, tile="auto").label_map
    monkeypatch.setattr(files, "WINDOWED_PIXELS", 100_000)
    predict_files(predictor, [tmp_path / "large.tif"], tmp_path / "out", tile="auto")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "large.tif"), expected)
    assert cv2.imread(str(tmp_path / "out" / "large_overlay.png")).shape[0] == 333
    with pytest.raises(UserError, match=r"large\.tif: too large to be held in memory, as --tta would need"):
        predict_files(predictor, [tmp_path / "large.tif"], tmp_path / "out", tta=True, tile="auto")


def test_one_view_at_scale_one_is_the_plain_prediction(trained_run, picture):
    predictor = detseg.load(trained_run, ["tta={scales: [1.0], flip: none}"])
    plain, averaged = (predictor.predict(picture, probabilities=True, tta=tta) for tta in (False, True))
    np.testing.assert_array_equal(averaged.label_map, plain.label_map)
    np.testing.assert_allclose(averaged.probabilities, plain.probabilities, atol=1e-6)


def test_averaged_probabilities_are_the_mean_over_scales_and_mirror_images(trained_run, picture):
    predictor = detseg.load(trained_run, ["tta.scales=[1.0, 1.5]"])
    larger = cv2.resize(picture, (288, 288), interpolation=cv2.INTER_LINEAR)
    expected = []
    for view in (picture, larger):
        for step in (1, -1):
            scores = predictor.predict(np.ascontiguousarray(view[:, ::step]), probabilities=True).probabilities
            expected.append(cv2.resize(scores, (192, 192), interpolation=cv2.INTER_LINEAR)[:, ::step])
    prediction = predictor.predict(picture, probabilities=True, tta=True)
    np.testing.assert_allclose(prediction.probabilities, np.mean(expected, axis=0), atol=1e-5)
    np.testing.assert_array_equal(prediction.label_map, prediction.probabilities.argmax(-1))


def test_averaging_commutes_with_mirroring(predictor, picture):
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    seen, seen_mirrored = (
        predictor.predict(image, probabilities=True, tta=True).probabilities for image in (picture, mirrored)
    )
    np.testing.assert_allclose(seen_mirrored[:, ::-1], seen, atol=1e-5)


def test_averaging_over_the_8_symmetries_commutes_with_each_of_them(trained_run, picture):
    """Two scales, and an image that isn't square: turned views have the other size."""
    predictor = detseg.load(trained_run, ["tta={scales: [1.0, 0.5], flip: dihedral}"])
    picture = picture[:160]
    seen = predictor.predict(picture, probabilities=True, tta=True).probabilities
    for turns, step in ((1, 1), (2, -1), (3, 1)):
        turned = np.ascontiguousarray(np.rot90(picture, turns)[:, ::step])
        again = predictor.predict(turned, probabilities=True, tta=True).probabilities
        np.testing.assert_allclose(np.rot90(again[:, ::step], -turns), seen, atol=1e-5)


def test_a_scale_that_leaves_less_than_the_stride_is_refused(trained_run, picture):
    predictor = detseg.load(trained_run, ["tta.scales=[0.1]"])
    with pytest.raises(UserError, match=r"tta\.scales: 0\.1 makes an image of 192x192 pixels 19x19.* stride of 32"):
        predictor.predict(picture, tta=True)
