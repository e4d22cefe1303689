"""Images beside PNGs of object numbers."""

import numpy as np
import pytest
from PIL import Image

from detseg.data.readers.folder import InstanceFolder
from detseg.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two images: one with objects 2 (a cat) and 700 (a dog), one without objects."""
    for folder in ("images", "ids", "masks"):
        (tmp_path / folder).mkdir()
    ids, classes = np.zeros((2, 10, 12), np.uint16), np.zeros((2, 10, 12), np.uint8)
    ids[0, 1:4, 2:7], classes[0, 1:4, 2:7] = 700, 2
    ids[0, 5:9, 8:10], classes[0, 5:9, 8:10] = 2, 1
    write(tmp_path, ids, classes)
    for name in "ab":
        Image.new("RGB", (12, 10)).save(tmp_path / f"images/{name}.jpg")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return tmp_path


def write(root, ids, classes):
    for name, numbers, indices in zip("ab", ids, classes, strict=True):
        Image.fromarray(numbers).save(root / f"ids/{name}.png")
        Image.fromarray(indices).save(root / f"masks/{name}.png")


def read(root):
    return [np.stack([np.array(Image.open(root / folder / f"{n}.png")) for n in "ab"]) for folder in ("ids", "masks")]


def opened(root, masks="masks", **data):
    return InstanceFolder(root, "images", "ids", masks, **data)


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def test_objects_are_the_numbers_with_the_class_of_their_pixels(root):
    dataset = opened(root)
    objects = dataset[0].objects
    assert objects.boxes.tolist() == [[8, 5, 10, 9], [2, 1, 7, 4]]
    assert objects.boxes.dtype == np.float32
    assert objects.labels.tolist() == [0, 1]
    assert objects.areas.tolist() == [8, 15]
    np.testing.assert_array_equal(objects.masks, read(root)[0][0] == np.array([2, 700])[:, None, None])
    assert (dataset.classes, dataset.category_ids, dataset.image_ids) == (("cat", "dog"), (1, 2), ["a", "b"])


def test_an_image_without_objects_has_arrays_of_none(root):
    objects = opened(root)[1].objects
    assert (len(objects), objects.boxes.shape, objects.masks.shape) == (0, (0, 4), (0, 10, 12))


def test_a_single_class_needs_no_masks(root):
    (root / "classes.txt").write_text("background\ncell\n")
    dataset = opened(root, masks=None)
    assert dataset.classes == ("cell",)
    assert dataset[0].objects.labels.tolist() == [0, 0]
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    refused(lambda: opened(root, masks=None), "data.train.masks: missing", "2 classes of objects")


def test_ignored_pixels_belong_to_no_object(root):
    ids, classes = read(root)
    classes[0, 1] = 255
    classes[0, 5:9] = 255
    write(root, ids, classes)
    objects = opened(root)[0].objects
    assert objects.boxes.tolist() == [[2, 2, 7, 4]]
    assert objects.labels.tolist() == [1]


def test_selected_classes_leave_the_other_objects_out(root):
    dataset = opened(root, classes=["dog"])
    assert dataset.classes == ("dog",)
    assert dataset[0].objects.boxes.tolist() == [[2, 1, 7, 4]]


def test_objects_on_the_background_or_on_two_classes_are_refused(root):
    ids, classes = read(root)
    classes[0, 1, 2] = 1
    write(root, ids, classes)
    refused(lambda: opened(root)[0], "ids/a.png: object 700 lies on more than one class of", "indices 1 and 2")
    classes[0, 1:4, 2:7] = 0
    write(root, ids, classes)
    refused(lambda: opened(root)[0], "ids/a.png: object 700 lies on the background of", "masks/a.png")


def test_files_without_counterpart_and_of_other_sizes_are_refused(root):
    Image.new("RGB", (10, 12)).save(root / "images/a.jpg")
    refused(lambda: opened(root)[0], "ids/a.png: 10x12", "a.jpg is 12x10")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "masks/a.png")
    refused(lambda: opened(root)[0], "masks/a.png: 3x3", "ids/a.png is 10x12")
    Image.new("RGB", (12, 10)).save(root / "ids/b.png")
    refused(lambda: opened(root)[1], "ids/b.png: an RGB mask, expected object numbers")
    (root / "ids/b.png").unlink()
    refused(lambda: opened(root), "ids: 1 image (b) of")
