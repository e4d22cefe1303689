"""Folders of images and masks."""

import numpy as np
import pytest
from PIL import Image

from detseg.data.readers.folder import FolderSegmentation
from detseg.errors import UserError

LABELS = np.array([[0, 1], [1, 255]], np.uint8)


@pytest.fixture
def root(tmp_path):
    for folder in ("pictures", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("b", "a"):
        Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / f"pictures/{name}.png")
        Image.fromarray(LABELS).save(tmp_path / f"labels/{name}.png")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    return tmp_path


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def test_pairs_have_equal_stems_and_come_sorted(root):
    dataset = FolderSegmentation(root, "pictures", "labels", "val")
    assert dataset.names == ["a", "b"]
    assert dataset.split == "val"
    assert dataset.classes == ("ground", "tree")
    assert dataset[0].image.tolist() == [[[10, 20, 30]] * 2] * 2
    np.testing.assert_array_equal(dataset[1].label_map, LABELS)


def test_other_and_hidden_files_do_not_count(root):
    (root / "pictures/Thumbs.db").write_bytes(b"x")
    (root / "labels/.a.png").write_bytes(b"x")
    assert len(FolderSegmentation(root, "pictures", "labels")) == 2


def test_colour_masks_are_read_with_the_declared_palette(root):
    colours = np.array([[[0, 0, 0], [0, 255, 0]], [[0, 255, 0], [9, 9, 9]]], np.uint8)
    for name in ("a", "b"):
        Image.fromarray(colours).save(root / f"labels/{name}.png")
    palette = {"ground": [0, 0, 0], "tree": [0, 255, 0], "ignore": [9, 9, 9]}
    dataset = FolderSegmentation(root, "pictures", "labels", palette=palette, classes=["tree", "ground"])
    assert dataset[0].label_map.tolist() == [[1, 0], [0, 255]]
    refused(lambda: FolderSegmentation(root, "pictures", "labels")[0], "a.png", "Declare data.palette")
    refused(
        lambda: FolderSegmentation(root, "pictures", "labels", palette={"bush": [0, 0, 0]}),
        *("data.palette: 'bush' is neither", "It has: ground, tree"),
    )


def test_images_without_mask_and_masks_without_image_are_counted_and_shown(root):
    for i in range(6):
        Image.new("RGB", (2, 2)).save(root / f"pictures/x{i}.jpg")
    refused(
        lambda: FolderSegmentation(root, "pictures", "labels"),
        *("labels: 6 images (x0, x1, x2, x3, x4, ...)", "without a mask", "same stem"),
    )
    for i in range(6):
        (root / f"pictures/x{i}.jpg").unlink()
    (root / "pictures/b.png").unlink()
    refused(lambda: FolderSegmentation(root, "pictures", "labels"), "pictures: 1 mask (b)", "without an image")


def test_two_files_with_one_stem_are_refused(root):
    Image.new("RGB", (2, 2)).save(root / "pictures/a.jpg")
    refused(lambda: FolderSegmentation(root, "pictures", "labels"), "pictures: a.jpg and a.png share a stem")


def test_missing_and_empty_folders_name_the_field_and_what_is_there(root):
    refused(
        lambda: FolderSegmentation(root, "images", "labels"), "images: no such folder (data.train.images)", "pictures"
    )
    (root / "none").mkdir()
    (root / "none/notes.txt").write_text("x")
    refused(
        lambda: FolderSegmentation(root, "pictures", "none", "test"),
        *("none: no image files (data.test.masks)", "notes.txt", ".png"),
    )
    refused(lambda: FolderSegmentation(root, "classes.txt", "labels"), "classes.txt: a file, expected a folder")
