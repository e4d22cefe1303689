"""Pascal VOC's segmentation layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.data.classes import VOC_CLASSES
from detseg.data.readers.voc import VOCSegmentation
from detseg.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
LABELS = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)


def shared(name):
    path = SHARED / "datasets" / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture
def root(tmp_path):
    """Two images, a.jpg and b.c.png, in train; b.c alone in val."""
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / folder).mkdir(parents=True)
    pixels = np.full((2, 3, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages/a.jpg", quality=100)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages/b.c.png")
    for name in ("a", "b.c"):
        mask = Image.fromarray(LABELS)
        mask.putpalette(bytes(range(256)) * 3)
        mask.save(tmp_path / f"SegmentationClass/{name}.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("b.c\na\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b.c")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return tmp_path


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def test_samples_come_in_the_lists_order_with_indices_and_names(root):
    dataset = VOCSegmentation(root, "train")
    assert len(dataset) == 2
    assert dataset.names == ["b.c", "a"]
    assert dataset.image_paths == [root / "JPEGImages/b.c.png", root / "JPEGImages/a.jpg"]
    assert dataset.classes == ("background", "cat", "dog")
    assert (dataset.split, dataset.ignore_label, dataset.channels) == ("train", 255, 3)
    sample = dataset[0]
    assert (sample.name, sample.path) == ("b.c", root / "JPEGImages/b.c.png")
    assert sample.image.tolist() == [[[200, 100, 50]] * 3] * 2
    np.testing.assert_array_equal(sample.label_map, LABELS)
    assert dataset.labels_source(1) == str(root / "SegmentationClass/a.png")


def test_jpg_comes_before_the_other_suffixes(root):
    Image.new("RGB", (9, 9)).save(root / "JPEGImages/a.png")
    assert VOCSegmentation(root, "train").image_paths[1] == root / "JPEGImages/a.jpg"


def test_selected_classes_map_the_labels_and_keep_the_ignore_label(root):
    dataset = VOCSegmentation(root, "val", classes=["dog"])
    assert dataset.classes == ("background", "dog")
    assert dataset[0].label_map.tolist() == [[0, 0, 1], [255, 1, 0]]
    merged = VOCSegmentation(root, "val", classes={"cat": "pet", "dog": "pet"})
    assert merged.classes == ("background", "pet")
    assert merged[0].label_map.tolist() == [[0, 1, 1], [255, 1, 1]]


def test_without_classes_txt_the_built_in_names_are_taken_when_asked_for(root):
    (root / "classes.txt").unlink()
    assert VOCSegmentation(root, "train", classes="voc").classes == VOC_CLASSES
    refused(lambda: VOCSegmentation(root, "train"), "classes.txt: no such file", "'voc'")


def test_names_may_lie_in_subfolders(root):
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / "night").mkdir()
        (root / folder / f"a.{suffix}").rename(root / folder / f"night/a.{suffix}")
    (root / "ImageSets/Segmentation/train.txt").write_text("night/a\n")
    dataset = VOCSegmentation(root, "train")
    assert dataset[0].name == "night/a"
    assert dataset.image_paths == [root / "JPEGImages/night/a.jpg"]


def test_missing_folders_and_lists_are_refused_with_what_is_there(root):
    refused(lambda: VOCSegmentation(root / "VOC", "train"), "VOC: no such folder (data.root)", "JPEGImages")
    refused(lambda: VOCSegmentation("no-such-root", "train"), "no-such-root", "working directory", str(Path.cwd()))
    refused(
        lambda: VOCSegmentation(root, "trainval", "train"), "trainval.txt: no such list", "data.train", "train, val"
    )
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    (root / "JPEGImages").rmdir()
    refused(lambda: VOCSegmentation(root, "train"), "JPEGImages: no such folder")


def test_empty_splits_and_names_listed_twice_are_refused(root):
    split_list = root / "ImageSets/Segmentation/train.txt"
    split_list.write_text("\n\n")
    refused(lambda: VOCSegmentation(root, "train"), "train.txt: the split is empty", "data.train")
    split_list.write_text("a\nb.c\na\n")
    refused(lambda: VOCSegmentation(root, "train"), "train.txt: 1 name (a) listed more than once")


def test_names_without_image_or_mask_are_counted_and_shown(root):
    split_list = root / "ImageSets/Segmentation/train.txt"
    split_list.write_text("a\n" + "".join(f"x{i}\n" for i in range(7)))
    refused(
        lambda: VOCSegmentation(root, "train"),
        f"JPEGImages: no file for 7 names (x0, x1, x2, x3, x4, ...) in {split_list}; expected NAME.jpg",
    )
    split_list.write_text("a\n")
    (root / "SegmentationClass/a.png").rename(root / "SegmentationClass/a.jpg")
    refused(
        lambda: VOCSegmentation(root, "train"), f"SegmentationClass: no file for 1 name (a) in {split_list}", "NAME.png"
    )


def test_a_mask_of_another_size_names_both_files_and_sizes(root):
    Image.fromarray(LABELS.T.copy()).save(root / "SegmentationClass/a.png")
    refused(lambda: VOCSegmentation(root, "train")[1], "a.png: 3x2", "a.jpg is 2x3")


def test_labels_beyond_classes_txt_are_refused(root):
    (root / "classes.txt").write_text("background\ncat\n")
    refused(lambda: VOCSegmentation(root, "train")[0], "b.c.png: label 2 at row 0, column 2", "2 classes (0..1)")


def test_camvid_and_isbi_are_read():
    camvid = VOCSegmentation(shared("camvid"), "val")
    assert len(camvid) == 101
    assert camvid.classes[-1] == "Bicyclist"
    sample = camvid[0]
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.label_map)) <= {*range(11), 255}
    isbi = VOCSegmentation(shared("isbi"), "train", channels=1)
    assert isbi[0].image.shape == (512, 512, 1)
    assert np.unique(isbi[0].label_map).tolist() == [0, 1]
