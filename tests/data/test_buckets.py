"""Shapes of batches, and batches of objects."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config.data import SidesResize
from detseg.data.augment import resized_size
from detseg.data.buckets import bucket_for, bucket_groups, describe_buckets, object_arrays, object_batch, shape_buckets
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError

SIDES = SidesResize(shorter=800, longer=1333)
BUCKETS = ((64, 64), (64, 96), (96, 64), (96, 96))

sides = st.integers(1, 3000)


def test_the_shapes_of_the_usual_limits_by_hand():
    # 800 is 25 * 32, 1333 rounds up to 1344 = 42 * 32, the middle of both, 1072, to 1088 = 34 * 32
    assert shape_buckets(SIDES, None) == (
        *((800, 800), (800, 1088), (1088, 800)),
        *((800, 1344), (1344, 800), (1344, 1344)),
    )


def test_shapes_that_are_the_same_are_one():
    assert shape_buckets(SidesResize(shorter=320, longer=320), None) == ((320, 320),)
    assert shape_buckets(SidesResize(shorter=320, longer=330), None) == ((320, 320), (320, 352), (352, 320), (352, 352))


def test_where_all_images_get_one_size_there_is_one_shape():
    assert shape_buckets((250, 320), None) == ((256, 320),)
    assert shape_buckets(None, (300, 300)) == shape_buckets(SIDES, (300, 300)) == ((320, 320),)
    assert shape_buckets((250, 320), None, largest_scale=1.2) == ((320, 384),)  # 300 x 384


def test_without_resize_the_images_own_sides_are_the_limits():
    sizes = [(100, 200), (180, 120), (90, 90)]
    assert shape_buckets(None, None, sizes) == shape_buckets(SidesResize(shorter=120, longer=200), None)


@given(sides, sides, sides, sides, st.floats(1, 2))
@settings(deadline=None)
def test_every_resized_image_fits_a_shape_that_is_short_on_one_side(height, width, a, b, scale):
    resize = SidesResize(shorter=min(a, b), longer=max(a, b))
    size = [round(side * scale) for side in resized_size(resize, height, width)]
    buckets = shape_buckets(resize, None, largest_scale=scale)
    assert 1 <= len(buckets) <= 6
    assert all(side % 32 == 0 for bucket in buckets for side in bucket)
    areas = [height * width for height, width in buckets]
    assert areas == sorted(areas)
    smallest = bucket_for([size], buckets)
    assert smallest[0] >= size[0]
    assert smallest[1] >= size[1]
    assert min(smallest) == buckets[0][0]
    assert bucket_for([size, size[::-1]], buckets)


def test_a_batch_gets_the_smallest_shape_that_holds_all_of_it():
    assert bucket_for([(64, 64), (10, 20)], BUCKETS) == (64, 64)
    assert bucket_for([(64, 64), (10, 65)], BUCKETS) == (64, 96)
    assert bucket_for([(64, 90), (90, 64)], BUCKETS) == (96, 96)


def test_images_that_no_shape_holds_are_named_with_their_sizes():
    with pytest.raises(UserError, match=r"^big: 97x20 pixels: fits none of the shapes .* 64x64, 64x96, 96x64, 96x96"):
        bucket_for([(10, 10), (97, 20)], BUCKETS, ["small", "big"])
    with pytest.raises(UserError, match=r"^a: 64x96 pixels, b: 96x64 pixels"):
        bucket_for([(64, 96), (96, 64)], BUCKETS[:3], ["a", "b"])


def test_groups_are_the_smallest_shapes_of_the_resized_images():
    sizes = [(480, 640), (640, 480), (500, 500), (400, 800), (480, 640)]
    buckets = shape_buckets(SIDES, None)
    assert [buckets[i] for i in bucket_groups(sizes, SIDES, buckets)] == [
        *((800, 1088), (1088, 800), (800, 800), (800, 1344), (800, 1088))
    ]
    assert bucket_groups(sizes, None, ((320, 320),)).tolist() == [0] * 5  # cropped: the images' own sizes don't count


def test_the_line_for_the_log_tells_the_shapes_that_batches_can_have():
    buckets = shape_buckets(SIDES, None)
    groups = bucket_groups([(480, 640)] * 3 + [(640, 480)], SIDES, buckets)
    assert describe_buckets(buckets, groups, batch_size=2) == (
        "batches have up to 3 shapes (height x width): 800x1088 (75.0% of the images), 1088x800 (25.0% of the images), "
        "1344x1344 (mixed batches only)"
    )
    assert describe_buckets(buckets, groups, batch_size=1).startswith("batches have up to 2 shapes")
    assert describe_buckets(buckets, groups[:3], batch_size=2) == "batches have one shape (height x width): 800x1088"
    assert describe_buckets(buckets, None, batch_size=2).startswith("batches have up to 6 shapes")


# ----- batches -------------------------------------------------------------------------------------------------------


def random_item(rng, name, channels=3):
    """What `object_arrays` gives for an image in which each pixel of the last channel tells its place."""
    height, width = rng.integers(1, 97, 2)
    height, width = (min(height, 64), width) if rng.random() < 0.5 else (height, min(width, 64))
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    count = int(rng.integers(0, 6))
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(count, 4).astype(np.float32)
    return name, image, boxes, rng.integers(0, 9, count), rng.random(count) < 0.3, None, None


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 3, 4]), st.integers(5, 7))
@settings(max_examples=60, deadline=None)
def test_images_and_objects_stay_as_they_are_and_the_rest_is_padding(seed, count, channels, max_objects):
    rng = np.random.default_rng(seed)
    items = [random_item(rng, f"image{i}", channels) for i in range(count)]
    images, truth = object_batch(items, BUCKETS, max_objects)
    assert images.dtype == np.uint8
    assert images.shape[1:3] in BUCKETS
    assert {name: (array.shape, array.dtype) for name, array in truth.items()} == {
        "boxes": ((count, max_objects, 4), np.float32),
        "labels": ((count, max_objects), np.int32),
        "is_crowd": ((count, max_objects), bool),
        "image_sizes": ((count, 2), np.float32),
    }
    fill = {1: [117], 3: [124, 116, 104], 4: [117] * 4}[channels]
    for i, (_, image, boxes, labels, is_crowd, _, _) in enumerate(items):
        height, width = truth["image_sizes"][i].astype(int)
        np.testing.assert_array_equal(images[i, :height, :width], image)
        assert (images[i, height:] == fill).all()
        assert (images[i, :, width:] == fill).all()
        n = len(boxes)
        np.testing.assert_array_equal(truth["boxes"][i, :n], boxes)
        np.testing.assert_array_equal(truth["labels"][i, :n], labels)
        np.testing.assert_array_equal(truth["is_crowd"][i, :n], is_crowd)
        assert (truth["labels"][i, n:] == -1).all()
        assert (truth["boxes"][i, n:] == 0).all()
        assert not truth["is_crowd"][i, n:].any()


def test_what_is_seen_in_a_box_of_the_sample_is_seen_in_the_box_of_the_batch():
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:20, 5:30] = 255
    flags = np.zeros(1, bool)
    objects = Objects(np.array([[5, 10, 30, 20]], np.float32), np.array([2]), flags, flags, np.array([250.0]))
    sample = Sample(image, "white", Path("white.png"), objects=objects)
    images, truth = object_batch([object_arrays(sample)], BUCKETS, 3)
    x1, y1, x2, y2 = truth["boxes"][0, 0].astype(int)
    assert (images[0, y1:y2, x1:x2] == 255).all()
    assert (images[0] == 255).all(axis=-1).sum() == 250


def test_batches_without_any_object_are_padding_only():
    item = (
        "empty",
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, int),
        np.zeros(0, bool),
        *(None, None),
    )
    _, truth = object_batch([item, item], BUCKETS, 1)
    assert truth["labels"].tolist() == [[-1], [-1]]


def test_more_objects_than_there_is_room_for_are_refused_with_image_and_count():
    item = random_item(np.random.default_rng(0), "few")
    crowded = ("cells.png", np.zeros((8, 8, 3), np.uint8), np.zeros((7, 4)), np.zeros(7, int), np.zeros(7, bool))
    crowded += (None, None)
    batch = partial(object_batch, buckets=BUCKETS, max_objects=6)
    with pytest.raises(UserError, match=r"^cells.png: it has 7 objects, but model.max_objects leaves room for 6\. Set"):
        batch([item, crowded])


def test_masks_are_kept_cropped_and_cost_three_kilobytes_an_object():
    """200 objects of an image of 800 x 1344: 0.6 MB in a batch, where whole masks would take 215."""
    masks = np.zeros((2, 40, 50), np.uint8)
    masks[0, 10:20, 5:30] = masks[1, 30:, 40:45] = 1
    boxes = np.array([[5, 10, 30, 20], [40, 30, 50, 40]], np.float32)
    sample = Sample(np.zeros((40, 50, 3), np.uint8), objects=Objects(boxes, [0, 0], masks=masks))
    _, truth = object_batch([object_arrays(sample, mask_size=56)], BUCKETS, 200)
    assert truth["masks"].shape == (1, 200, 56, 56)
    assert truth["masks"].nbytes < 0.7e6
    assert (truth["masks"][0, 0] == 255).all()
    np.testing.assert_array_equal(truth["masks"][0, 1], np.repeat([[255] * 28 + [0] * 28], 56, axis=0))
    assert not truth["masks"][0, 2:].any()
