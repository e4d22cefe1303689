"""The mask head's truth: objects' masks cropped to their boxes, read in regions, and pasted back."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from pycocotools import mask as rle

from detseg.data.masks import boxes_of_masks, crop_masks, decode_masks, encode_segmentation
from detseg.detection.mask_head import CROP_SIZE, create_mask_head, mask_losses, mask_targets, masks_of
from detseg.inference.paste import paste_masks

SIZE = (120, 160)


def iou(mask, other):
    return (mask & other).sum() / max(1, (mask | other).sum())


def targets_of(mask, box, region, size=28):
    crops = crop_masks(mask[None], box[None], CROP_SIZE)
    arguments = (crops[None], box[None, None].astype("float32"), np.zeros((1, 1), "int32"), region[None, None])
    return ops.convert_to_numpy(mask_targets(*map(ops.convert_to_tensor, arguments), size))[0, 0]


def blob(seed, corners=12):
    """A star-shaped polygon somewhere in the image: x, y, x, y, ..."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.6, 1.0, corners) * rng.uniform(14, 50)
    centre = rng.uniform((50, 50), (110, 70))
    return (centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).clip(0, (160, 120))


@pytest.mark.parametrize("seed", range(20))
def test_polygons_cropped_to_their_box_and_pasted_back_are_the_polygons(seed):
    mask = decode_masks([encode_segmentation([blob(seed).ravel().tolist()], SIZE)], SIZE)[0]
    points = blob(seed)
    box = np.concatenate([points.min(0), points.max(0)]).astype("float32")
    (code,) = paste_masks(targets_of(mask, box, box)[None], box[None], SIZE)
    assert iou(rle.decode(code), mask) > 0.94


@pytest.mark.parametrize("seed", range(20))
def test_bitmaps_cropped_to_their_box_and_pasted_back_are_the_bitmaps(seed):
    mask = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(mask, [np.rint(blob(seed, 20)).astype(np.int32)], 1)
    box = boxes_of_masks(mask[None])[0]
    (code,) = paste_masks(targets_of(mask, box, box)[None], box[None], SIZE)
    assert iou(rle.decode(code), mask) > 0.95


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_crops_cells_hold_the_mask_of_its_box(seed):
    """Their sum is the mask's area within the box, and a cell's share never leaves 0..255."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((20, 30)) < 0.5).astype(np.uint8)
    x, y = np.sort(rng.uniform(0, 30, 2)), np.sort(rng.uniform(0, 20, 2))
    box = np.array([x[0], y[0], x[1] + 1e-3, y[1] + 1e-3]).clip(0, [30, 20, 30, 20])
    (crop,) = crop_masks(mask[None], box[None], 16)
    columns = np.clip(np.minimum(box[2], np.arange(1, 31)) - np.maximum(box[0], np.arange(30)), 0, 1)
    rows = np.clip(np.minimum(box[3], np.arange(1, 21)) - np.maximum(box[1], np.arange(20)), 0, 1)
    expected = (rows[:, None] * columns * mask).sum() / (rows.sum() * columns.sum())
    assert crop.mean() / 255 == pytest.approx(expected, abs=2e-3)


def test_cells_as_large_as_pixels_are_the_pixels():
    mask = np.eye(8, dtype=np.uint8)
    crops = crop_masks(mask[None], np.array([[0, 0, 8, 8]], np.float32), 8)
    np.testing.assert_array_equal(crops[0], 255 * mask)


def test_a_region_sees_the_part_of_the_mask_that_lies_in_it():
    """The left half of a full mask's box, and a region twice as large: hand-worked."""
    mask = np.ones((40, 40), np.uint8)
    box = np.array([10, 10, 30, 30], np.float32)
    assert targets_of(mask, box, np.array([10, 10, 20, 30], np.float32), 4).all()
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1  # from 0 to 40, of which the box is the middle
    np.testing.assert_array_equal(targets_of(mask, box, np.array([0, 0, 40, 40], np.float32), 4), expected)


def test_regions_of_padding_have_finite_targets():
    target = targets_of(np.ones((8, 8), np.uint8), np.array([0, 0, 8, 8], np.float32), np.zeros(4, np.float32))
    assert np.isfinite(target).all()


def test_each_region_has_the_mask_of_its_class():
    logits = np.arange(2 * 3 * 3 * 4, dtype="float32").reshape(2, 3, 3, 4)
    chosen = ops.convert_to_numpy(masks_of(ops.convert_to_tensor(logits), np.array([3, 1])))
    np.testing.assert_array_equal(chosen, np.stack([logits[0, ..., 3], logits[1, ..., 1]]))


def test_masks_are_twice_as_large_as_the_features():
    head = create_mask_head(8, 14, 5, channels=6, convolutions=2)
    assert head.output_shape == (None, 28, 28, 5)
    assert [layer.name for layer in head.layers if layer.weights] == [
        *("mask_conv1", "mask_conv2", "mask_upsample", "mask_logits"),
    ]


def test_the_loss_is_the_mean_log_loss_of_the_pixels():
    logits, targets = np.array([[[0.0, 2.0], [-1.0, 3.0]]]), np.array([[[1.0, 1.0], [0.0, 0.0]]])
    expected = np.mean([np.log(2), np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(3))])
    found = ops.convert_to_numpy(mask_losses(ops.convert_to_tensor(logits, "float32"), targets.astype("float32")))
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
