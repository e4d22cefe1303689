import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.detection.boxes import (
    box_area,
    ciou,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
    giou,
    iou,
    pairwise_coverage,
    pairwise_iou,
)

COORDINATES, SIZES = st.floats(-500, 2000, width=32), st.floats(1, 1000, width=32)
BOXES = st.tuples(COORDINATES, COORDINATES, SIZES, SIZES).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
PLAIN = {}
WEIGHTED = {"means": (0.1, 0, -0.2, 0), "deviations": (0.1, 0.1, 0.2, 0.2)}
DEGENERATE = np.array(
    [[5, 5, 5, 5], [0, 0, 0, 10], [0, 0, 10, 0], [8, 8, 2, 2], [0, 0, 0, 0], [0, 0, 10, 10], [0, 0, 1e4, 1e-3]],
    "float32",
)


def gradients(function, *arrays):
    tensors = [tf.constant(array, tf.float32) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return value.numpy(), [gradient.numpy() for gradient in tape.gradient(value, tensors)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(BOXES, BOXES), min_size=1, max_size=20), st.sampled_from([PLAIN, WEIGHTED]))
def test_decoding_undoes_encoding_within_the_clamp(pairs, normalisation):
    boxes, proposals = np.array(pairs, "float32").transpose(1, 0, 2)
    ratios = (boxes[:, 2:] - boxes[:, :2]) / (proposals[:, 2:] - proposals[:, :2])
    within = (ratios < 1000 / 16).all(1)
    decoded = decode_boxes(encode_boxes(boxes, proposals, **normalisation), proposals, **normalisation)
    np.testing.assert_allclose(np.array(decoded)[within], boxes[within], rtol=0, atol=5e-3)  # pixels, of up to 3000


BY_HAND = {"xyxy": [10, 20, 40, 60], "xywh": [10, 20, 30, 40], "cxcywh": [25, 40, 30, 40], "yxyx": [20, 10, 60, 40]}


@pytest.mark.parametrize("source", BY_HAND)
@pytest.mark.parametrize("target", BY_HAND)
def test_formats_of_a_box_by_hand(source, target):
    expected = np.array([BY_HAND[target], BY_HAND[target]])
    given = np.array([BY_HAND[source]] * 2)
    for boxes in (
        given.tolist(),
        given.astype("uint8"),
        given.astype("float64"),
        np.asfortranarray(given),
        given[::-1],
    ):
        converted = convert_boxes(boxes, source, target)
        assert isinstance(converted, np.ndarray)
        assert converted.dtype == (np.float32 if getattr(boxes, "dtype", None) == "uint8" else np.float64)
        np.testing.assert_array_equal(converted, expected)
    tensor = convert_boxes(tf.constant(given), source, target)
    assert tensor.dtype == "float32"
    np.testing.assert_array_equal(tensor, expected)
    assert convert_boxes(np.zeros((0, 4)), source, target).shape == (0, 4)


def test_unknown_formats_and_what_is_no_box_are_refused():
    with pytest.raises(ValueError, match="'ltrb': expected one of xyxy, xywh, cxcywh, yxyx"):
        convert_boxes([[0, 0, 1, 1]], "xyxy", "ltrb")
    with pytest.raises(ValueError, match=r"shape \(1, 3\): expected \(..., 4\), xywh"):
        convert_boxes([[0, 0, 1]], "xywh", "xyxy")
    with pytest.raises(ValueError, match=r"shape \(2, 5\): expected \(..., 4\), x1 y1 x2 y2"):
        pairwise_iou(np.zeros((2, 5)), np.zeros((1, 4)))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float64"])
def test_overlaps_are_the_same_of_lists_and_of_every_dtype_and_memory_order(dtype):
    a, b = [[2, 2, 12, 22], [0, 0, 3, 3]], [[4, 2, 14, 22]]
    expected = np.array(pairwise_iou(np.array(a, "float32"), np.array(b, "float32")))
    assert expected[0, 0] == pytest.approx(8 / 12)
    for order in ("C", "F"):
        np.testing.assert_array_equal(pairwise_iou(np.array(a, dtype, order=order), np.array(b, dtype)), expected)
    np.testing.assert_array_equal(pairwise_iou(a, b), expected)
    np.testing.assert_array_equal(pairwise_iou(np.array(a, dtype).T.copy().T, b), expected)


def test_encoding_by_hand():
    targets = encode_boxes([[10, 20, 30, 60]], [[0, 0, 10, 20]])
    np.testing.assert_allclose(targets, [[(20 - 5) / 10, (40 - 10) / 20, np.log(2), np.log(2)]], rtol=1e-6)
    weighted = encode_boxes([[10, 20, 30, 60]], [[0, 0, 10, 20]], deviations=(0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(weighted, np.array(targets) * [10, 10, 5, 5], rtol=1e-6)


def test_a_decoded_box_grows_to_1000_pixels_from_16_at_most():
    decoded = np.array(decode_boxes([[0.0, 0.0, 50.0, 4.2]], [[0, 0, 16, 16]]))
    np.testing.assert_allclose(decoded, [[8 - 500, 8 - 500, 8 + 500, 8 + 500]], rtol=1e-5)


def test_deltas_of_each_class_move_the_same_proposals():
    rng = np.random.default_rng(0)
    deltas, proposals = rng.normal(size=(2, 5, 3, 4)).astype("float32"), np.array([[[0, 0, 10, 20]] * 5] * 2)
    decoded = decode_boxes(deltas, proposals[:, :, None])
    assert decoded.shape == (2, 5, 3, 4)
    np.testing.assert_allclose(decoded[:, :, 1], decode_boxes(deltas[:, :, 1], proposals), rtol=1e-6)


def test_targets_of_padding_are_finite():
    assert np.isfinite(encode_boxes(np.zeros((2, 4)), [[0, 0, 0, 0], [10, 10, 20, 20]])).all()


def test_overlaps_of_two_boxes_by_hand():
    a, b = [[0, 0, 2, 2]], [[1, 1, 4, 3]]  # intersection 1, union 9, hull 12
    assert float(iou(a, b)[0]) == pytest.approx(1 / 9)
    assert float(giou(a, b)[0]) == pytest.approx(1 / 9 - 3 / 12)
    v = 4 / np.pi**2 * (np.arctan(3 / 2) - np.arctan(1)) ** 2
    expected = 1 / 9 - (1.5**2 + 1**2) / (4**2 + 3**2) - v * v / (1 - 1 / 9 + v)
    assert float(ciou(a, b)[0]) == pytest.approx(expected)
    assert float(pairwise_coverage(a, b)[0, 0]) == pytest.approx(1 / 4)
    assert float(pairwise_coverage(b, a)[0, 0]) == pytest.approx(1 / 6)


def test_pairwise_iou_is_iou_of_each_with_each_and_one_on_the_diagonal():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (2, 6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (2, 6, 2))], -1).astype("float32")
    pairs = np.array(pairwise_iou(boxes, boxes[:, :4]))
    assert pairs.shape == (2, 6, 4)
    np.testing.assert_allclose(pairs, iou(boxes[:, :, None], boxes[:, None, :4]))
    np.testing.assert_allclose(pairs[:, range(4), range(4)], 1)
    np.testing.assert_allclose(ciou(boxes, boxes), 1, atol=1e-6)
    np.testing.assert_allclose(giou(boxes, boxes), 1, atol=1e-6)


@pytest.mark.parametrize("overlap", [iou, giou, ciou, pairwise_iou, pairwise_coverage])
def test_degenerate_boxes_have_finite_overlaps_and_gradients(overlap):
    value, slopes = gradients(overlap, DEGENERATE[:, None], DEGENERATE[None])
    assert np.isfinite(value).all()
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("overlap", [giou, ciou])
def test_losses_pull_boxes_that_do_not_touch_together(overlap):
    _, (slope, _) = gradients(overlap, [[0, 0, 2, 2]], [[5, 0, 7, 2]])
    assert slope[0, 2] > 0  # a larger x2 is better


def test_boxes_are_clipped_to_their_own_image():
    boxes = [[[-3, 5, 30, 30]], [[40, -9, 50, -1]]]
    clipped = np.array(clip_boxes(boxes, [[20, 10], [30, 45]]))
    np.testing.assert_array_equal(clipped, [[[0, 5, 10, 20]], [[40, 0, 45, 0]]])
    np.testing.assert_array_equal(clip_boxes(np.array(boxes)[:, :, None], [[20, 10], [30, 45]])[:, :, 0], clipped)
    np.testing.assert_array_equal(box_area(clipped), [[150], [0]])


def test_half_precision_boxes_are_computed_in_float32_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = tf.constant([[0, 0, 300, 200]], tf.bfloat16)
    for result in (iou(half, half), giou(half, half), ciou(half, half), encode_boxes(half, half)):
        assert result.dtype == "float32"
    assert float(box_area(half)[0]) == 60000
