"""Augmentation carries proposals along as it does the boxes of objects."""

from dataclasses import replace

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
    ScaleJitter,
)
from detseg.data.augment import create_augmentation
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError

TRANSFORMS = {
    "crop": RandomCrop(size=(48, 64)),
    "object crop": ObjectCrop(size=(120, 70), min_visibility=0.5),
    "flip": Flip(direction="both"),
    "turn": Rotate90(probability=1.0),
    "resize": Resize(height=50, width=70),
    "scale": ScaleJitter(low=0.4, high=1.7),
    "elastic": Elastic(grid=3, sigma=6.0),
    "colour": ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
    "albumentations": Albumentations(name="Affine", arguments={"p": 1.0, "rotate": [20, 40]}),
    "pixels": Albumentations(name="GaussNoise", arguments={"p": 1.0}),
}


def sample(seed, count):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 70, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(2, 26, (count, 2))], axis=1).astype(np.float32)
    objects = Objects(boxes, np.arange(count))
    return Sample(rng.integers(0, 256, (96, 112, 3), np.uint8), "a", objects=objects, proposals=boxes)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_proposals_follow_each_change_of_the_image_as_boxes_do(name, seed, count):
    changed = create_augmentation([TRANSFORMS[name]], 255)(sample(seed, count), np.random.default_rng(seed))
    assert np.array_equal(changed.proposals, changed.objects.boxes)
    assert changed.proposals.dtype == np.float32


@pytest.mark.parametrize("name", TRANSFORMS)
def test_proposals_without_objects_and_objects_without_proposals_pass(name):
    whole = sample(3, 5)
    for part in (
        replace(whole, objects=None),
        replace(whole, proposals=None),
        replace(whole, proposals=whole.proposals[:0]),
    ):
        changed = create_augmentation([TRANSFORMS[name]], 255)(part, np.random.default_rng(1))
        assert (changed.objects is None) == (part.objects is None)
        assert (changed.proposals is None) == (part.proposals is None)


@pytest.mark.parametrize("name", ["crop", "albumentations", "elastic"])
def test_objects_with_masks_and_proposals_keep_apart(name):
    base = sample(5, 4)
    masks = np.zeros((4, 96, 112), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, base.objects.boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    objects = replace(base.objects, masks=masks)
    augment = create_augmentation([TRANSFORMS[name]], 255)
    changed = augment(replace(base, objects=objects), np.random.default_rng(2))
    alone = augment(replace(base, objects=None), np.random.default_rng(2))
    assert np.array_equal(changed.proposals, alone.proposals)
    assert len(changed.objects.masks) == len(changed.objects.boxes)


@pytest.mark.parametrize("wrong", [np.zeros((3, 5)), np.zeros(4), np.array([["a"] * 4])])
def test_what_are_no_boxes_are_refused(wrong):
    with pytest.raises(UserError, match=r"^Sample: proposals .*expected \(P, 4\): x1 y1 x2 y2"):
        Sample(np.zeros((9, 9, 3), np.uint8), proposals=wrong)


def test_tables_and_whole_numbers_are_converted():
    made = Sample(np.zeros((9, 9, 3), np.uint8), proposals=[[0, 0, 4, 5]])
    assert made.proposals.dtype == np.float32
    assert made.proposals.flags.c_contiguous
