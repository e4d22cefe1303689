"""The scan of a split and its cache."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.data.images import read_image, read_label_map
from detseg.data.readers.coco import CocoDetection, CocoSegmentation
from detseg.data.readers.folder import FolderSegmentation
from detseg.data.readers.voc import VOCSegmentation
from detseg.data.scan import median_frequency_weights, scan_split
from detseg.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "../shared"


@pytest.fixture
def root(tmp_path):
    """Three images: labels 0 and 1; 0 and ignore; 1 only. Class c never occurs."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    masks = {
        "a": [[0, 0, 1], [0, 0, 1]],
        "b": [[0, 255, 255], [0, 255, 0]],
        "c": [[1, 1], [1, 1], [1, 1], [1, 1]],
    }
    for name, labels in masks.items():
        labels = np.array(labels, np.uint8)
        Image.fromarray(labels).save(tmp_path / f"masks/{name}.png")
        Image.new("RGB", labels.shape[::-1], (90, 9, 9)).save(tmp_path / f"images/{name}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """The number of files read by datasets so far, as a list of paths."""
    paths = []

    def spied(function):
        return lambda path, *arguments: paths.append(path) or function(path, *arguments)

    monkeypatch.setattr("detseg.data.readers.base.read_image", spied(read_image))
    monkeypatch.setattr("detseg.data.readers.base.read_label_map", spied(read_label_map))
    return paths


def opened(root, **data):
    return FolderSegmentation(root, "images", "masks", **data)


def scan(root, **data):
    return scan_split(opened(root, **data), "segmentation", root / "cache", progress=False)


def test_pixels_are_counted_by_hand(root):
    result = scan(root)
    assert result.image_sizes == ((2, 3), (2, 3), (4, 2))
    assert result.class_pixels.tolist() == [4 + 3, 2 + 8, 0]
    assert result.class_image_pixels.tolist() == [6 + 3, 6 + 8, 0]
    assert result.class_presence.tolist() == [[True, True, False], [True, False, False], [False, True, False]]
    assert result.ignored_pixels == 3


def test_median_frequency_weights_by_hand(root):
    frequency = np.array([7 / 9, 10 / 14])
    weights = median_frequency_weights(scan(root))
    np.testing.assert_allclose(weights, [*(np.median(frequency) / frequency), 0], rtol=1e-12)


def test_classes_that_never_occur_are_said_also_from_the_cache(root, caplog):
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="detseg"):
            scan(root)
        assert [record.getMessage() for record in caplog.records] == ["split 'train': no pixel of class c."]


def test_black_and_white_masks_are_recognised(root, caplog):
    (root / "classes.txt").write_text("background\ncell\n")
    for name in "abc":
        with Image.open(root / f"masks/{name}.png") as mask:
            labels = np.where(np.array(mask) > 0, 255, 0).astype(np.uint8)
        Image.fromarray(labels).save(root / f"masks/{name}.png")
    with caplog.at_level(logging.WARNING, logger="detseg"):
        scan(root)
    assert "black and white" in caplog.text
    assert "cell" in caplog.text


def test_a_second_scan_reads_no_image(root, reads):
    first = scan(root)
    assert len(reads) == len(set(reads)) == 6
    second = scan(root)
    assert len(reads) == 6
    assert second.image_sizes == first.image_sizes
    assert second.ignored_pixels == first.ignored_pixels
    for field, dtype in {"class_pixels": np.int64, "class_image_pixels": np.int64, "class_presence": bool}.items():
        np.testing.assert_array_equal(getattr(second, field), getattr(first, field))
        assert getattr(second, field).dtype == getattr(first, field).dtype == dtype


def test_a_changed_file_is_noticed(root, reads):
    scan(root)
    path = root / "masks/a.png"
    status = path.stat()
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"a\.png: label 9"):
        scan(root)
    assert len(reads) >= 12


@pytest.mark.parametrize(
    "change",
    [
        {"ignore_label": 254},
        {"channels": 1},
        {"classes": ["b", "a", "c"]},
        {"palette": {0: (0, 0, 0), 1: (1, 1, 1), 2: (2, 2, 2)}},
    ],
)
def test_changed_settings_are_noticed(root, reads, change):
    with Image.open(root / "masks/b.png") as mask:
        labels = np.array(mask)
    labels[labels == 255] = 0
    Image.fromarray(labels).save(root / "masks/b.png")
    scan(root)
    scan(root, **change)
    assert len(reads) == 12


def damaged(path, **changes):
    """The bytes of a cache with some of its arrays changed."""
    with np.load(path) as arrays:
        np.savez(path.with_name("changed.npz"), **{**arrays, **changes})
    return path.with_name("changed.npz").read_bytes()


def test_a_damaged_cache_is_read_over(root, reads):
    expected = scan(root)
    (cached,) = (root / "cache/scans").iterdir()
    whole = cached.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    objects = np.array([None] * 3)
    for count, damage in enumerate(
        (
            *(b"", b"{", b'{"image_sizes": []}', whole[:-40], whole[: len(whole) // 2], bytes(flipped)),
            damaged(cached, class_pixels=np.array([1])),
            damaged(cached, class_pixels=expected.class_pixels.astype(float)),
            damaged(cached, class_pixels=objects),
            damaged(cached, image_sizes=np.zeros((2, 2), np.int64)),
        ),
        start=2,
    ):
        cached.write_bytes(damage)
        np.testing.assert_array_equal(scan(root).class_pixels, expected.class_pixels)
        assert len(reads) == 6 * count
    scan(root)
    assert len(reads) == 6 * count


def test_a_cache_that_cannot_be_written_is_no_error(root):
    (root / "cache").write_text("a file where the folder should be")
    assert scan(root).ignored_pixels == 3


def test_the_caches_place_follows_the_environment(root, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DETSEG_CACHE", raising=False)
    scan_split(opened(root), "segmentation", progress=False)
    assert len(list((tmp_path / "xdg/detseg/scans").iterdir())) == 1
    monkeypatch.setenv("DETSEG_CACHE", str(tmp_path / "own"))
    scan_split(opened(root), "segmentation", progress=False)
    assert len(list((tmp_path / "own/scans").iterdir())) == 1


def test_all_problems_are_reported_together_and_not_cached(root):
    (root / "images/a.png").write_bytes(b"")
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(root / "masks/a.png")
    Image.new("RGB", (5, 5)).save(root / "images/b.png")
    for _ in range(2):
        with pytest.raises(UserError) as error:
            scan(root)
        message = str(error.value)
        assert message.startswith("split 'train': 3 problems in 3 images:")
        assert "images/a.png: the image file is empty (0 bytes)" in message
        assert "masks/a.png: label 7 at row 0, column 0" in message
        assert "masks/b.png: 2x3" in message
        assert "b.png is 5x5" in message


def test_twenty_problems_are_shown_and_the_rest_counted(root):
    for i in range(23):
        Image.new("RGB", (2, 2)).save(root / f"images/x{i:02d}.png")
        Image.fromarray(np.full((2, 2), 8, np.uint8)).save(root / f"masks/x{i:02d}.png")
    with pytest.raises(UserError, match="23 problems in 26 images") as error:
        scan(root)
    assert str(error.value).count("label 8") == 20
    assert str(error.value).endswith("... and 3 more")


def test_a_broken_jpeg_stream_that_cv2_fills_in_is_found(root):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(root / "images/c.jpg", quality=90)
    (root / "images/c.png").unlink()
    Image.fromarray(np.ones((200, 200), np.uint8)).save(root / "masks/c.png")
    assert scan(root).image_sizes[2] == (200, 200)
    data = bytearray((root / "images/c.jpg").read_bytes())
    data[10_000:14_000] = b"\xff\xc4" * 2_000
    (root / "images/c.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"c\.jpg: corrupt"):
        scan(root)


def test_a_png_with_a_wrong_checksum_is_found(root):
    path = root / "images/c.png"
    data = bytearray(path.read_bytes())
    data[data.index(b"IEND") - 5] ^= 0xFF  # the last byte of the pixel data's checksum
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"c\.png: corrupt"):
        scan(root)


# ---- samples with objects -----------------------------------------------------------------------------------------


def write_coco(root, *annotations):
    images = [{"id": k, "file_name": f"{name}.png", "height": 20, "width": 30} for k, name in enumerate("abc")]
    for image in images:
        Image.new("RGB", (30, 20)).save(root / "images" / image["file_name"])
    categories = [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 9, "name": "cow"}]
    content = {"images": images, "categories": categories, "annotations": list(annotations)}
    (root / "instances.json").write_text(json.dumps(content))


def in_coco(identifier, image, category, **more):
    box = {"bbox": [2, 3, 9, 8], "segmentation": [[2, 3, 11, 3, 11, 11, 2, 11]]}
    return {"id": identifier, "image_id": image, "category_id": category, **box, **more}


@pytest.fixture
def objects_root(root):
    write_coco(root, in_coco(1, 0, 1), in_coco(2, 0, 1), in_coco(3, 2, 4), in_coco(4, 2, 1, iscrowd=1))
    return root


def scan_objects(root, **data):
    dataset = CocoDetection(root, "instances.json", "images", **data)
    return scan_split(dataset, "detection", root / "cache", progress=False)


def test_objects_are_counted_by_hand_and_cached(objects_root, caplog, monkeypatch):
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="detseg"):
            scan = scan_objects(objects_root)
        assert scan.image_sizes == ((20, 30),) * 3
        assert scan.class_objects.tolist() == [2, 1, 0]
        assert scan.class_presence.tolist() == [[True, False, False], [False] * 3, [False, True, False]]
        assert scan.object_counts.tolist() == [2, 0, 2]
        assert scan.maskless == 0
        assert [record.getMessage() for record in caplog.records] == ["split 'train': no object of class cow."]
        monkeypatch.setattr(CocoDetection, "__getitem__", None)  # the second time nothing is read


def test_other_settings_of_objects_are_another_scan(objects_root):
    assert scan_objects(objects_root).class_objects.tolist() == [2, 1, 0]
    assert scan_objects(objects_root, classes=["dog"]).class_objects.tolist() == [1]
    assert scan_objects(objects_root, classes={"dog": "cat"}).class_objects.tolist() == [3, 0]
    assert scan_objects(objects_root, classes={"cow": "cat"}).class_objects.tolist() == [2, 1]


def test_problems_of_images_and_masks_of_objects_are_reported_together(objects_root):
    write_coco(objects_root, in_coco(1, 0, 1, segmentation={"size": [9, 9], "counts": [81]}), in_coco(2, 2, 4))
    Image.new("RGB", (30, 21)).save(objects_root / "images/b.png")
    (objects_root / "images/c.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        scan_objects(objects_root, masks=True)
    message = str(error.value)
    assert message.startswith("split 'train': 3 problems in 3 images:")
    assert "annotations[0] (id 1, image a.png): field segmentation: its size is [9, 9]" in message
    assert "b.png is 21x30" in message
    assert "c.png: the image file is empty" in message


def test_tiff_of_a_codec_that_is_not_there_is_a_problem_of_its_split(root):
    """Not a black image."""
    (root / "images/a.png").unlink()
    tifffile.imwrite(root / "images/a.tif", np.full((2, 3, 3), 77, np.uint8))
    with tifffile.TiffFile(root / "images/a.tif", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(34712)
    with pytest.raises(UserError, match="split 'train': 1 problem in 3 images") as error:
        scan(root)
    assert "images/a.tif: packed by JPEG2000 (TIFF compression 34712)" in str(error.value)


def test_masks_without_a_pixel_are_counted(objects_root, caplog):
    write_coco(objects_root, in_coco(1, 0, 1, segmentation=[[2.1, 3.1, 2.2, 3.1, 2.2, 3.2]]), in_coco(2, 2, 4))
    with caplog.at_level(logging.WARNING, logger="detseg"):
        assert scan_objects(objects_root, masks=True).maskless == 1
    assert "1 of 2 objects have masks without a pixel" in caplog.text


def test_shared_data_sets_have_no_problems(tmp_path):
    root = SHARED / "datasets"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    camvid = scan_split(VOCSegmentation(root / "camvid", "val"), "segmentation", tmp_path, progress=False)
    assert set(camvid.image_sizes) == {(360, 480)}
    share = camvid.class_pixels / (101 * 360 * 480)
    np.testing.assert_allclose(share[[0, 3, 10]], [0.09177, 0.28953, 0.02217], atol=5e-6)  # the data set's README
    np.testing.assert_allclose(camvid.ignored_pixels / (101 * 360 * 480), 0.01703, atol=5e-6)
    isbi = scan_split(VOCSegmentation(root / "isbi", "val", channels=1), "segmentation", tmp_path, progress=False)
    np.testing.assert_allclose(isbi.class_pixels[1] / isbi.class_pixels.sum(), 0.8035, atol=5e-5)
    coco = CocoSegmentation(root / "coco_tiny", "annotations/instances_train2017.json", "images/train2017")
    assert len(scan_split(coco, "segmentation", tmp_path, progress=False).image_sizes) == 80
    bccd = CocoDetection(root / "bccd", "instances_val.json", "JPEGImages", "val")
    scan = scan_split(bccd, "detection", tmp_path, progress=False)
    assert scan.class_objects.tolist() == [967, 87, 83]
    assert scan.object_counts.max() <= 30
    assert set(scan.image_sizes) == {(480, 640)}
