"""What every loss promises, over the cases of loss_reference.py; then what each promises by itself."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_reference import CASES, CLASS_WEIGHTS, LABELS, LOGITS, reference

from detseg.errors import UserError
from detseg.segmentation.losses import (
    FUNCTIONS,
    SegmentationLoss,
    cross_entropy,
    dice,
    focal,
    lovasz_softmax,
    ohem,
    tversky,
)
from detseg.tasks import SegmentationTask

EVERY_CASE = pytest.mark.parametrize("case", CASES)
WEIGHTED_OR_NOT = pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS], ids=["plain", "weighted"])


def loss_of(case, class_weights=None, ignore_label=255):
    name, options = CASES[case]
    return SegmentationLoss([{"name": name, "class_weights": class_weights, **options}], ignore_label)


def differentiate(loss, labels, logits):
    """Value of a loss and its gradient in the logits, as tensors."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value, tape.gradient(value, logits)


def logits_of(labels, scale, classes=4):
    """Logits that predict these labels; class 0 where they are ignored."""
    return (scale * np.eye(classes)[np.where(labels == 255, 0, labels)]).astype("float32")


@EVERY_CASE
@WEIGHTED_OR_NOT
def test_loss_equals_the_reference(case, class_weights):
    name, options = CASES[case]
    expected = reference(name, LABELS, LOGITS, class_weights, **options)
    assert float(loss_of(case, class_weights)(LABELS, LOGITS)) == pytest.approx(expected, rel=2e-6)


@EVERY_CASE
@WEIGHTED_OR_NOT
def test_gradient_is_the_derivative_of_the_reference(case, class_weights):
    name, options = CASES[case]
    gradient = differentiate(loss_of(case, class_weights), LABELS, LOGITS)[1].numpy()
    for direction in np.random.default_rng(1).normal(size=(4, *LOGITS.shape)):
        ahead, behind = (
            reference(name, LABELS, LOGITS + step * direction, class_weights, **options) for step in (1e-5, -1e-5)
        )
        assert (gradient * direction).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4, abs=1e-6)


@EVERY_CASE
@WEIGHTED_OR_NOT
def test_an_all_ignored_batch_has_loss_and_gradient_zero(case, class_weights):
    value, gradient = differentiate(loss_of(case, class_weights), np.full_like(LABELS, 255), LOGITS)
    assert value == 0
    assert (gradient.numpy() == 0).all()


@EVERY_CASE
def test_an_all_ignored_image_changes_nothing(case):
    assert (LABELS[2] == 255).all()
    value, gradient = differentiate(loss_of(case), LABELS, LOGITS)
    expected, expected_gradient = differentiate(loss_of(case), LABELS[:2], LOGITS[:2])
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient[:2], expected_gradient, atol=1e-7)


@EVERY_CASE
def test_ignored_pixels_change_nothing_whatever_their_logits_and_have_gradient_zero(case):
    changed = LOGITS.copy()
    changed[LABELS == 255] = np.random.default_rng(2).normal(size=(np.sum(LABELS == 255), 4)) * 1e4
    value, gradient = differentiate(loss_of(case), LABELS, changed)
    assert float(value) == pytest.approx(float(loss_of(case)(LABELS, LOGITS)), rel=1e-6)
    assert (gradient.numpy()[LABELS == 255] == 0).all()
    assert np.abs(gradient.numpy()[LABELS != 255]).sum() > 0


@EVERY_CASE
def test_ignore_label_inside_the_class_range_is_ignored(case):
    name, options = CASES[case]
    labels = np.where(LABELS == 255, 1, LABELS)
    expected = reference(name, labels, LOGITS, ignore_label=1, **options)
    assert float(loss_of(case, ignore_label=1)(labels, LOGITS)) == pytest.approx(expected, rel=2e-6)


@EVERY_CASE
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_half_precision_logits_give_a_finite_float32_loss_and_a_finite_gradient(case, dtype):
    signs = np.sign(np.random.default_rng(3).normal(size=LOGITS.shape))
    for logits in (6e4 * signs, logits_of(LABELS, 6e4), logits_of(LABELS, -6e4), 0 * signs):
        value, gradient = differentiate(loss_of(case).call, LABELS, tf.cast(logits, dtype))
        assert value.dtype == "float32"
        assert np.isfinite(value)
        assert np.isfinite(tf.cast(gradient, "float32")).all()


@pytest.mark.parametrize("case", [case for case in CASES if "smoothed" not in case])
@WEIGHTED_OR_NOT
def test_a_perfect_prediction_has_loss_near_zero(case, class_weights):
    value, gradient = differentiate(loss_of(case, class_weights), LABELS, logits_of(LABELS, 50))
    assert abs(float(value)) < 1e-5
    assert np.abs(gradient).max() < 1e-5


@EVERY_CASE
def test_a_graph_for_any_batch_and_image_size_gives_the_eager_loss(case):
    loss = loss_of(case, CLASS_WEIGHTS)
    signature = [tf.TensorSpec([None] * 3, tf.uint8), tf.TensorSpec([None, None, None, 4], tf.float32)]
    graph = tf.function(lambda labels, logits: differentiate(loss, labels, logits), signature)
    for size in (4, 2):
        value, gradient = graph(LABELS[:size, :size], LOGITS[:size, :size])
        expected, expected_gradient = differentiate(loss, LABELS[:size, :size], LOGITS[:size, :size])
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


LOSSES_ON_JAX = """
import sys
import jax, keras, numpy as np
from detseg.segmentation.losses import SegmentationLoss
from loss_reference import CASES, CLASS_WEIGHTS, LABELS, LOGITS

assert keras.backend.backend() == "jax"
results = {}
for case, (name, options) in CASES.items():
    loss = SegmentationLoss([{"name": name, "class_weights": CLASS_WEIGHTS, **options}])
    step = jax.jit(jax.value_and_grad(lambda logits, labels: loss(labels, logits)))
    results[f"{case} value"], results[f"{case} gradient"] = step(LOGITS, LABELS)
    value, gradient = step(LOGITS, np.full_like(LABELS, 255))
    assert value == 0 and (gradient == 0).all(), case
np.savez(sys.argv[1], **results)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_losses_compiled_by_jax_equal_those_of_tensorflow(tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    file = tmp_path / "jax.npz"
    subprocess.run([sys.executable, "-c", LOSSES_ON_JAX, str(file)], env=environment, check=True)
    results = np.load(file)
    for case in CASES:
        value, gradient = differentiate(loss_of(case, CLASS_WEIGHTS), LABELS, LOGITS)
        assert float(results[f"{case} value"]) == pytest.approx(float(value), rel=1e-6)
        np.testing.assert_allclose(results[f"{case} gradient"], gradient, atol=1e-7)


# In a config


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_config_without_options_makes_the_loss_with_its_defaults(name, quick_config):
    task = SegmentationTask(quick_config(f"loss=[{{name: {name}, weight: 2}}]", "data.ignore_label=7"), "abcd")
    assert task.create_loss().get_config() == SegmentationLoss([{"name": name, "weight": 2}], 7).get_config()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_class_weights_that_do_not_fit_the_classes_are_refused(name, quick_config):
    config = quick_config(f"loss=[{{name: cross_entropy}}, {{name: {name}, class_weights: [1, 2]}}]")
    with pytest.raises(UserError, match=r"loss\.1\.class_weights: 2 weights, but the data has 3 classes: a, b, c"):
        SegmentationTask(config, "abc").create_loss()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_median_frequency_is_for_every_loss(name, quick_config):
    task = SegmentationTask(quick_config(f"loss=[{{name: {name}, class_weights: median_frequency}}]"), "ab")
    assert task.create_loss({"a": 0.5, "b": 3.0}).losses[0].class_weights == (0.5, 3.0)
    with pytest.raises(UserError, match=r"loss\.0\.class_weights: median_frequency is counted on a training split"):
        SegmentationLoss([{"name": name, "class_weights": "median_frequency"}])


def test_weighted_sum_adds_its_losses_times_their_weights_also_when_restored():
    losses = [loss_of(case, CLASS_WEIGHTS) for case in CASES]
    weights = np.linspace(0.5, 2, len(losses)).tolist()
    expected = sum(weight * float(loss(LABELS, LOGITS)) for loss, weight in zip(losses, weights, strict=True))
    weighted = [
        loss.losses[0].model_copy(update={"weight": weight}) for loss, weight in zip(losses, weights, strict=True)
    ]
    loss = SegmentationLoss(weighted)
    assert float(loss(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-6)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert float(restored(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-6)


def test_a_compiled_model_comes_back_from_its_file_with_its_loss(tmp_path):
    model = keras.Sequential([keras.Input((4, 5, 4)), keras.layers.Conv2D(4, 1)])
    losses = [{"name": name, "class_weights": CLASS_WEIGHTS, **options} for name, options in CASES.values()]
    model.compile(optimizer="sgd", loss=SegmentationLoss([*losses, {"name": "ohem", "weight": 2.0}]))
    expected = model.evaluate(LOGITS, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == model.loss.get_config()
    assert loaded.evaluate(LOGITS, LABELS, verbose=0) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_training_step_in_mixed_float16_is_not_lost_to_its_loss_scale(name):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((4, 5, 3)),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(4, 1),
            keras.layers.Activation("linear", dtype="float32"),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=SegmentationLoss([{"name": name}]))
    before = model.get_weights()
    loss = model.train_on_batch(np.random.default_rng(4).normal(size=(3, 4, 5, 3)).astype("float32"), LABELS)
    assert np.isfinite(loss)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


# Each by itself


def test_cross_entropy_of_two_pixels_by_hand():
    logits = np.log(np.array([[[[0.25, 0.75], [0.5, 0.5]]]], "float32"))
    assert float(cross_entropy(np.array([[[1, 0]]]), logits)) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)


def test_pixel_weights_add_to_the_class_weights_by_hand():
    labels, logits = np.array([[[0, 1, 255]]]), np.zeros((1, 1, 3, 2), "float32")  # each pixel costs log 2
    targets = np.stack([labels, [[[0.0, 4.0, 9.0]]]], axis=-1).astype("float32")
    assert float(loss_of("cross_entropy")(targets, logits)) == pytest.approx((1 + 1 + 4) / 2 * np.log(2))
    weighted = float(loss_of("cross_entropy", (1, 3))(targets, logits))
    assert weighted == pytest.approx((1 + 3 + 4) / 4 * np.log(2))
    _, gradient = differentiate(loss_of("cross_entropy"), targets, logits)
    assert not np.array(gradient)[0, 0, 2].any()


@EVERY_CASE
def test_pixel_weights_of_zero_change_no_loss(case):
    targets = np.stack([LABELS, np.zeros(LABELS.shape)], axis=-1).astype("float32")
    loss = loss_of(case)
    assert float(loss(targets, LOGITS)) == pytest.approx(float(loss(LABELS, LOGITS)))


def test_an_all_ignored_batch_leaves_the_weights_as_they_are():
    model = keras.Sequential([keras.Input((4, 5, 4)), keras.layers.Conv2D(3, 1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss_of("cross_entropy", (1, 2, 3)))
    before = model.get_weights()
    assert model.train_on_batch(LOGITS, np.full_like(LABELS, 255)) == 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_focal_loss_without_focus_is_cross_entropy():
    expected = float(cross_entropy(LABELS, LOGITS, class_weights=CLASS_WEIGHTS))
    assert float(focal(LABELS, LOGITS, class_weights=CLASS_WEIGHTS, gamma=0.0)) == pytest.approx(expected, rel=1e-6)


def test_focal_loss_of_an_easy_pixel_by_hand():
    logits = np.log(np.array([[[[0.1, 0.9]]]], "float32"))
    assert float(focal(np.array([[[1]]]), logits)) == pytest.approx(-(0.1**2) * np.log(0.9), rel=1e-5)


def test_ohem_that_keeps_all_is_cross_entropy():
    expected = pytest.approx(float(cross_entropy(LABELS, LOGITS)), rel=1e-6)
    assert float(ohem(LABELS, LOGITS, threshold=1.0)) == expected
    assert float(ohem(LABELS, LOGITS, threshold=0.001, min_kept_fraction=1.0)) == expected


@pytest.mark.parametrize(
    ("threshold", "min_kept_fraction", "kept"),
    [(0.7, 0.0, [0.6]), (0.9, 0.0, [0.6, 0.8]), (0.7, 0.5, [0.6, 0.8]), (0.7, 0.51, [0.6, 0.8, 0.92]), (0.1, 0, [0.6])],
)
def test_ohem_of_four_pixels_by_hand(threshold, min_kept_fraction, kept):
    right = np.array([0.92, 0.6, 0.8, 0.95])
    logits = np.log(np.stack([1 - right, right], -1))[None, None].astype("float32")
    loss = ohem(np.ones((1, 1, 4), "uint8"), logits, threshold=threshold, min_kept_fraction=min_kept_fraction)
    assert float(loss) == pytest.approx(-np.log(kept).mean(), rel=1e-5)


def test_dice_of_two_pixels_by_hand():
    logits = np.log(np.array([[[[0.25, 0.75], [0.5, 0.5]]]], "float32"))
    expected = 1 - (2 * 0.5 / (0.75 + 1) + 2 * 0.75 / (1.25 + 1)) / 2
    assert float(dice(np.array([[[1, 0]]]), logits)) == pytest.approx(expected)


def test_tversky_of_equal_halves_is_dice_and_of_ones_is_jaccard():
    equal = float(tversky(LABELS, LOGITS, alpha=0.5, beta=0.5))
    assert equal == pytest.approx(float(dice(LABELS, LOGITS)), rel=1e-6)
    prediction = np.random.default_rng(5).integers(0, 3, LABELS.shape)
    jaccard = float(tversky(LABELS, logits_of(prediction, 100), alpha=1.0, beta=1.0))
    assert jaccard == pytest.approx(1 - mean_iou(LABELS, prediction, 3), rel=1e-6)


def test_tversky_weighs_false_positives_by_alpha_and_false_negatives_by_beta():
    labels = np.array([[[1, 1, 0, 0, 0]]], "uint8")
    prediction = np.array([[[1, 0, 1, 1, 0]]])  # of class 1: one hit, one miss, two false alarms
    loss = tversky(labels, logits_of(prediction, 100, classes=2), class_weights=(0, 1), alpha=0.1, beta=0.9)
    assert float(loss) == pytest.approx(1 - 1 / (1 + 0.1 * 2 + 0.9 * 1))


def test_lovasz_softmax_of_hard_predictions_is_one_minus_miou():
    prediction = np.random.default_rng(5).integers(0, 3, LABELS.shape)
    loss = float(lovasz_softmax(LABELS, logits_of(prediction, 100)))
    assert loss == pytest.approx(1 - mean_iou(LABELS, prediction, 3), rel=1e-6)


def mean_iou(labels, prediction, classes):
    valid = labels != 255
    ious = []
    for c in range(classes):
        there, found = (labels == c) & valid, (prediction == c) & valid
        ious.append((there & found).sum() / (there | found).sum())
    return np.mean(ious)


def test_lovasz_softmax_has_exact_gradients_for_a_small_class_in_a_large_image():
    """Where the steps of the Jaccard loss, 1e-11 and up, are far below float32's resolution of the loss itself."""
    count = 300_000
    rng = np.random.default_rng(6)
    labels = np.zeros(count, "uint8")
    labels[:3] = 1
    scores = rng.permutation(np.linspace(-4, 4, count)).astype("float32")  # logit of class 1 over class 0
    logits = np.stack([np.zeros_like(scores), scores], -1).reshape(1, 500, 600, 2)
    gradient = differentiate(lovasz_softmax, labels.reshape(1, 500, 600), logits)[1].numpy().reshape(-1, 2)[:, 1]

    p = 1 / (1 + np.exp(-scores.astype("float64")))
    errors = np.abs(labels - p)  # of both classes
    order = np.argsort(-errors)
    steps = np.zeros(count)
    for c in (0, 1):
        there = (labels == c)[order].astype("float64")
        jaccard = 1 - (there.sum() - there.cumsum()) / (there.sum() + (1 - there).cumsum())
        steps[order] += np.diff(jaccard, prepend=0) / 2  # the mean over two classes
    expected = np.where(labels == 1, -1, 1) * steps * p * (1 - p)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)
