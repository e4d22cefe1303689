import keras
import numpy as np
import pytest
from keras import ops

from detseg.segmentation.losses import CrossEntropy, WeightedSum, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 5, 3)).astype("float32") * 3
LABELS = RNG.integers(0, 3, size=(2, 4, 5)).astype("uint8")
LABELS[0, 0] = 255


def reference(labels, logits, class_weights=None, label_smoothing=0.0, ignore_label=255):
    """Cross-entropy pixel by pixel in float64."""
    total = weight_sum = 0.0
    for label, values in zip(labels.ravel(), logits.reshape(-1, logits.shape[-1]).astype("float64"), strict=True):
        if label == ignore_label:
            continue
        log_probabilities = values - values.max() - np.log(np.exp(values - values.max()).sum())
        target = np.full(len(values), label_smoothing / len(values))
        target[label] += 1 - label_smoothing
        weight = 1.0 if class_weights is None else class_weights[label]
        total -= weight * (target * log_probabilities).sum()
        weight_sum += weight
    return total / weight_sum


@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 0.0)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_numpy_reference(class_weights, label_smoothing):
    loss = float(cross_entropy(LABELS, LOGITS, 255, class_weights, label_smoothing))
    assert loss == pytest.approx(reference(LABELS, LOGITS, class_weights, label_smoothing), rel=1e-5)


def test_cross_entropy_of_two_pixels_by_hand():
    logits = np.log(np.array([[[[0.25, 0.75], [0.5, 0.5]]]], "float32"))
    assert float(cross_entropy(np.array([[[1, 0]]]), logits)) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)


def test_ignored_pixels_change_nothing_whatever_their_logits():
    changed = LOGITS.copy()
    changed[0, 0] = 1e4
    assert float(cross_entropy(LABELS, changed)) == float(cross_entropy(LABELS, LOGITS))


def test_ignore_label_inside_the_class_range_is_ignored():
    labels = np.where(LABELS == 255, 1, LABELS)
    loss = float(cross_entropy(labels, LOGITS, ignore_label=1))
    assert loss == pytest.approx(reference(labels, LOGITS, ignore_label=1), rel=1e-5)


def test_an_all_ignored_batch_has_loss_and_gradient_zero():
    logits = keras.Variable(LOGITS)
    labels = np.full(LABELS.shape, 255, "uint8")
    model = keras.Sequential([keras.Input((4, 5, 3)), keras.layers.Conv2D(3, 1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=CrossEntropy(class_weights=(1, 2, 3)))
    before = [np.array(weight) for weight in model.weights]
    assert model.train_on_batch(LOGITS, labels) == 0
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
    assert float(cross_entropy(labels, logits)) == 0


def test_half_precision_logits_give_a_finite_float32_loss():
    loss = cross_entropy(LABELS, ops.cast(LOGITS * 3e3, "float16"))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert np.isfinite(float(loss))


def test_weighted_sum_adds_its_losses_times_their_weights():
    plain, smooth = CrossEntropy(), CrossEntropy(label_smoothing=0.2)
    expected = 2 * float(plain(LABELS, LOGITS)) + 0.5 * float(smooth(LABELS, LOGITS))
    loss = WeightedSum([plain, smooth], [2.0, 0.5])
    assert float(loss(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-6)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert float(restored(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-6)
