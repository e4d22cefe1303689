"""Losses of boxes and the focal loss, against NumPy in float64."""

import numpy as np
import pytest
import tensorflow as tf

from detseg.detection.losses import BOX_LOSSES, box_losses, sigmoid_focal_losses

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(rng, count):
    corners = rng.uniform(0, 50, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], -1).astype("float32")


def gradient(function, values):
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        losses = function(values)
    return np.array(tape.gradient(losses, values))


def centres_and_sizes(boxes):
    boxes = boxes.astype("float64")
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
@pytest.mark.parametrize("name", ["smooth_l1", "l1"])
def test_losses_of_deltas_by_the_papers_formulas(name, beta):
    rng = np.random.default_rng(0)
    proposals, boxes = random_boxes(rng, 50), random_boxes(rng, 50)
    deltas = rng.normal(size=(50, 4)).astype("float32")
    (centres, sizes), (true_centres, true_sizes) = centres_and_sizes(proposals), centres_and_sizes(boxes)
    true = np.concatenate([(true_centres - centres) / sizes, np.log(true_sizes / sizes)], -1) / DEVIATIONS
    deltas[:25] = (true + rng.uniform(-0.1, 0.1, (50, 4)))[:25]  # some on the round part
    errors = np.abs(deltas - true)
    if name == "smooth_l1":
        errors = np.where(errors < beta, errors**2 / (2 * beta), errors - beta / 2)
    losses = box_losses(name, deltas, proposals, boxes, DEVIATIONS, beta)
    np.testing.assert_allclose(losses, errors.sum(-1), rtol=1e-4, atol=1e-5)


def test_overlap_losses_of_hits_neighbours_and_far_boxes_by_hand():
    proposals = np.array([[0, 0, 10, 10]] * 3, "float32")
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [30, 0, 40, 10]], "float32")
    nothing = np.zeros((3, 4), "float32")  # moves no proposal
    np.testing.assert_allclose(box_losses("giou", nothing, proposals, boxes), [0, 1, 1.5], atol=1e-6)
    # squared distance of the centres over the squared diagonal of both: 100 / (400 + 100), 900 / (1600 + 100)
    np.testing.assert_allclose(box_losses("ciou", nothing, proposals, boxes), [0, 1.2, 1 + 9 / 17], atol=1e-6)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_the_right_deltas_have_no_loss_and_smooth_ones_no_gradient(name):
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 20)
    for deviations in ((1, 1, 1, 1), DEVIATIONS):
        shift = np.array([5, -5, 5, -5], "float32")  # of a box of the same size
        (centres, sizes) = centres_and_sizes(boxes)
        deltas = np.concatenate([shift[:2] / -sizes, 0 * sizes], -1) / deviations
        shifted = np.concatenate([centres - sizes / 2 + shift[:2], centres + sizes / 2 + shift[:2]], -1)
        deltas, shifted = deltas.astype("float32"), shifted.astype("float32")
        losses = box_losses(name, deltas, shifted, boxes, deviations)
        np.testing.assert_allclose(losses, 0, atol=1e-4)
        if name == "smooth_l1":
            slopes = gradient(lambda x: box_losses(name, x, shifted, boxes, deviations), deltas)  # noqa: B023
            np.testing.assert_allclose(slopes, 0, atol=1e-3)


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_padding_of_size_zero_and_huge_deltas_give_finite_losses_and_gradients(name, dtype):
    nothing = np.zeros(4, "float32")
    some = np.array([3, 4, 10, 12], "float32")
    deltas = np.array([[0, 0, 0, 0], [1, -2, 3, 4], [-3, 5, -6e4, 6e4]], dtype)
    for proposals, boxes in ((nothing, nothing), (some, nothing), (nothing, some), (some, some)):
        proposals, boxes = np.tile(proposals, (3, 1)), np.tile(boxes, (3, 1))
        losses = box_losses(name, deltas, proposals, boxes, DEVIATIONS)
        assert losses.dtype == "float32"
        assert np.isfinite(losses).all()
        assert np.isfinite(gradient(lambda x: box_losses(name, x, proposals, boxes, DEVIATIONS), deltas)).all()  # noqa: B023


def test_an_unknown_box_loss_is_refused():
    with pytest.raises(ValueError, match="'l2': expected one of smooth_l1, l1, giou, ciou"):
        box_losses("l2", *[np.zeros((1, 4), "float32")] * 3)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.5), (0.5, 0.0), (0.25, 1.5)])
def test_focal_loss_and_its_gradient_by_the_papers_formulas(alpha, gamma):
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=(40, 7)) * 4).astype("float32")
    is_true = rng.random((40, 7)) < 0.3
    y = np.where(is_true, 1, -1)
    p = 1 / (1 + np.exp(-y * logits.astype("float64")))
    weights = np.where(is_true, alpha, 1 - alpha)
    np.testing.assert_allclose(
        sigmoid_focal_losses(logits, is_true, alpha, gamma),
        -weights * (1 - p) ** gamma * np.log(p),
        rtol=1e-4,
        atol=1e-6,
    )
    slopes = weights * y * (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)  # the paper's appendix B
    factors = rng.normal(size=(40, 7)).astype("float32")
    found = gradient(lambda x: sigmoid_focal_losses(x, is_true, alpha, gamma) * factors, logits)
    np.testing.assert_allclose(found, slopes * factors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_certain_answers_is_finite(dtype, gamma):
    logits = tf.constant([6e4, -6e4, 30.0, -30.0, 0.0], dtype)
    for is_true in (True, False):
        sign = 1 if is_true else -1
        weight = 0.25 if is_true else 0.75
        losses = sigmoid_focal_losses(logits, np.full(5, is_true), 0.25, gamma)
        assert losses.dtype == "float32"
        wrong = np.maximum(-sign * np.array(tf.cast(logits, "float32")), 0)  # -log p_t, but for that of 0
        np.testing.assert_allclose(losses[:4], weight * wrong[:4], rtol=1e-5, atol=1e-6)
        slopes = gradient(lambda x: sigmoid_focal_losses(x, np.full(5, is_true), 0.25, gamma), logits)  # noqa: B023
        expected = -sign * weight * (wrong[:4] > 0)
        np.testing.assert_allclose(slopes[:4].astype("float32"), expected, atol=1e-6 if gamma else 1e-3)


def test_easy_background_loses_a_hundred_times_less_than_by_cross_entropy():
    # "an example classified with p_t = 0.9 would have 100x lower loss": section 3.2, gamma 2
    logits = np.log([[9.0]]).astype("float32")
    focal, plain = (sigmoid_focal_losses(-logits, np.zeros((1, 1), bool), 0.25, gamma) for gamma in (2.0, 0.0))
    np.testing.assert_allclose(plain / focal, 100, rtol=1e-4)
