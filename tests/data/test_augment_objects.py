"""Augmentation presets carry objects along."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config.augmentation import (
    Albumentations,
    ColorJitter,
    Elastic,
    Flip,
    ObjectCrop,
    RandomCrop,
    Resize,
    Rotate90,
)
from detseg.config.augmentation import ScaleJitter as Scale
from detseg.data.augment import create_augmentation
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError

HEIGHT, WIDTH = 96, 128
COLOURS = np.array([[250, 30, 30], [30, 250, 30], [30, 30, 250]], np.uint8)  # of the labels
GREY = 90


def painted(boxes, labels, with_masks):
    """Rectangles in the colours of their labels, apart from each other, on grey."""
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), np.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        image[y1:y2, x1:x2] = COLOURS[label]
        mask[y1:y2, x1:x2] = 1
    count, boxes = len(boxes), np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(count, bool)
    areas = masks.sum(axis=(1, 2), dtype=np.float64)
    objects = Objects(boxes, np.array(labels, np.int64), flags, flags, areas, masks if with_masks else None)
    return Sample(image, "painted", Path("painted.png"), objects=objects)


def random_sample(rng, with_masks, most=3):
    """One rectangle at most of each label, each in a column of its own."""
    labels = rng.permutation(3)[: rng.integers(0, most + 1)]
    boxes = []
    for label in labels:
        x1, y1 = 42 * label + rng.integers(0, 15), rng.integers(0, 60)
        boxes.append([x1, y1, x1 + rng.integers(12, 26), y1 + rng.integers(12, 36)])
    return painted(boxes, labels, with_masks)


def augment(items, sample, seed=0):
    return create_augmentation(items, 255)(sample, np.random.default_rng(seed))


def seen_boxes(image):
    """{label: box around the pixels of its colour}."""
    boxes = {}
    for label, colour in enumerate(COLOURS):
        rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 100).all(axis=-1))
        if len(rows):
            boxes[label] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return boxes


def check_boxes_lie_on_what_is_seen(sample, tolerance):
    objects, (height, width) = sample.objects, sample.image.shape[:2]
    seen = seen_boxes(sample.image)
    for box, label in zip(objects.boxes, objects.labels.tolist(), strict=True):
        assert (box[:2] >= 0).all()
        assert (box[2:] > box[:2]).all()
        assert (box[2:] <= [width, height]).all()
        if (box[2:] - box[:2]).min() > 2 * tolerance + 1:
            np.testing.assert_allclose(box, seen[label], atol=tolerance)
    if objects.masks is not None:
        for mask, label in zip(objects.masks, objects.labels, strict=True):
            inside = sample.image[mask > 0].astype(int)
            assert (np.abs(inside - COLOURS[label]) < 130).all(axis=-1).mean() > 0.7


PRESETS = {
    "scale_jitter": (Scale(low=0.5, high=2.0), 1.1),
    "random_crop": (ObjectCrop(size=(70, 80)), 0),
    "random_crop_pads": (ObjectCrop(size=(150, 100), min_visibility=0.3), 0),
    "random_crop_of_segmentation": (RandomCrop(size=(60, 140)), 0),
    "flip": (Flip(direction="both"), 0),
    "rotate90": (Rotate90(probability=1.0), 0),
    "resize": (Resize(height=64, width=180), 1.1),
    "albumentations_flip": (Albumentations(name="HorizontalFlip", arguments={"p": 1.0}), 1e-3),
    "albumentations_crop": (Albumentations(name="RandomCrop", arguments={"height": 50, "width": 60}), 1e-3),
    "albumentations_transpose": (Albumentations(name="Transpose", arguments={"p": 1.0}), 1e-3),
}


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("name", PRESETS)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_boxes_and_masks_move_with_the_image(name, with_masks, seed):
    item, tolerance = PRESETS[name]
    sample = random_sample(np.random.default_rng(seed), with_masks)
    check_boxes_lie_on_what_is_seen(augment([item], sample, seed), tolerance)


@pytest.mark.parametrize("with_masks", [False, True])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_boxes_and_masks_move_with_an_elastic_image(with_masks, seed):
    sample = painted([[52, 36, 80, 64]], [1], with_masks)  # its mirrored copies don't come in
    check_boxes_lie_on_what_is_seen(augment([Elastic(sigma=4.0)], sample, seed), 2.0)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_whole_chain_gives_well_formed_objects_and_depends_on_the_seed_only(seed, with_masks):
    chain = create_augmentation(
        [
            Scale(low=0.3, high=2.0),
            Elastic(sigma=8.0),
            Rotate90(probability=0.75),
            Albumentations(name="Affine", arguments={"rotate": [-30, 30], "scale": [0.7, 1.3], "p": 1.0}),
            ObjectCrop(size=(60, 60)),
            Flip(direction="both"),
            ColorJitter(brightness=0.2),
            Resize(height=48, width=52),
        ],
        255,
    )
    sample = random_sample(np.random.default_rng(seed), with_masks)
    first, second = (chain(sample, np.random.default_rng(seed)) for _ in range(2))
    assert first.image.shape == (48, 52, 3)
    boxes = first.objects.boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [52, 48]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert set(first.objects.labels) <= set(sample.objects.labels)
    assert first.objects.labels.dtype == np.int64
    if with_masks:
        assert first.objects.masks.shape == (len(boxes), 48, 52)
        assert first.objects.masks.any(axis=(1, 2)).all()
    for name in ("boxes", "labels", "areas"):
        np.testing.assert_array_equal(getattr(first.objects, name), getattr(second.objects, name))


def test_the_input_objects_are_left_alone():
    sample = random_sample(np.random.default_rng(5), with_masks=True)
    before = {name: getattr(sample.objects, name).copy() for name in ("boxes", "labels", "areas", "masks")}
    for item, _ in PRESETS.values():
        augment([item], sample, 1)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(sample.objects, name), array)


def test_crops_obey_the_configs_visibility():
    sample, found = painted([[10, 10, 30, 30]], [0], with_masks=False), {}
    for min_visibility in (0.0, 0.5, 1.0):
        shares = []
        for seed in range(100):
            item = ObjectCrop(size=(70, 90), min_visibility=min_visibility)
            boxes = augment([item], sample, seed).objects.boxes
            shares += ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / 400).tolist()
        assert min(shares) >= min_visibility
        found[min_visibility] = len(shares)
    assert found[0.0] > found[0.5] > found[1.0] > 0


def test_colours_and_noise_leave_objects_as_they_are():
    sample = painted([[10, 10, 30, 30]], [0], with_masks=True)
    for item in (ColorJitter(brightness=0.3), Albumentations(name="GaussNoise", arguments={"p": 1.0})):
        result = augment([item], sample)
        assert result.objects is sample.objects
        assert not np.array_equal(result.image, sample.image)


@pytest.mark.parametrize("with_masks", [False, True])
def test_rotated_boxes_enclose_the_object(with_masks):
    item = Albumentations(name="Affine", arguments={"rotate": [20, 20], "p": 1.0})
    result = augment([item], painted([[52, 36, 80, 64]], [2], with_masks))
    (box,), seen = result.objects.boxes, seen_boxes(result.image)[2]
    np.testing.assert_allclose(box, seen, atol=2.5)


@pytest.mark.parametrize("with_masks", [False, True])
def test_objects_that_albumentations_doubles_by_reflection_are_doubled(with_masks):
    arguments = {"min_height": HEIGHT, "min_width": WIDTH + 80, "border_mode": 4, "position": "top_left", "p": 1.0}
    item = Albumentations(name="PadIfNeeded", arguments=arguments)
    result = augment([item], painted([[100, 20, 120, 50]], [1], with_masks))
    expected = [[100, 20, 120, 50], [136, 20, 156, 50]]
    np.testing.assert_allclose(sorted(result.objects.boxes.tolist()), expected, atol=1.01)
    assert result.objects.labels.tolist() == [1, 1]
    assert result.objects.labels.dtype == np.int64


def test_a_transform_that_needs_what_the_sample_has_not_is_refused():
    sample = painted([[10, 10, 30, 30]], [0], with_masks=False)
    with pytest.raises(UserError, match=r"MaskDropout: painted: .*mask"):
        augment([Albumentations(name="MaskDropout", arguments={"p": 1.0})], sample)


def test_label_maps_and_objects_move_together():
    sample = painted([[10, 20, 40, 60]], [1], with_masks=True)
    sample = replace(sample, label_map=sample.objects.masks[0])
    items = [Scale(low=0.8, high=1.2), RandomCrop(size=(80, 80)), Rotate90(probability=1.0), Flip(direction="both")]
    for seed in range(10):
        result = augment(items, sample, seed)
        for mask in result.objects.masks:
            np.testing.assert_array_equal(mask, result.label_map == 1)
