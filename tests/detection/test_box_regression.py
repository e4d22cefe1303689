"""Bounding-box regressors in closed form."""

import tracemalloc

import numpy as np
import pytest

from detseg.detection import boxes as keras_boxes
from detseg.detection.box_regression import BoxRegressor, decode_deltas, encode_targets, fit_box_regressor


def random_boxes(rng, count):
    low = rng.uniform(-50, 400, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, 300, (count, 2))], axis=1)


def samples(count, values, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, values)).astype(np.float32)
    targets = features @ rng.normal(size=(values, 4)) * 0.05 + rng.normal(size=(count, 4)) * [0.1, 0.1, 0.2, 0.2] + 0.03
    return features, targets


def in_batches(features, targets, size=None):
    size = size or max(1, len(features))
    starts = range(0, len(features), size)
    return lambda: iter([(features[start : start + size], targets[start : start + size]) for start in starts])


def test_decoding_undoes_encoding_and_both_equal_those_of_the_detectors():
    rng = np.random.default_rng(0)
    boxes, proposals = random_boxes(rng, 200), random_boxes(rng, 200)
    targets = encode_targets(boxes, proposals)
    clipped = np.abs(targets[:, 2:]).max(axis=1) < np.log(1000 / 16)
    assert np.allclose(decode_deltas(targets, proposals)[clipped], boxes[clipped], atol=1e-9)
    assert np.allclose(targets, keras_boxes.encode_boxes(boxes, proposals), atol=1e-5)
    assert np.allclose(
        decode_deltas(targets, proposals), keras_boxes.decode_boxes(targets, proposals), rtol=1e-4, atol=1e-2
    )


def test_hand_worked_targets():
    targets = encode_targets([[10, 20, 50, 40]], [[0, 20, 20, 30]])
    assert np.allclose(targets, [[(30 - 10) / 20, (30 - 25) / 10, np.log(2), np.log(2)]])


@pytest.mark.parametrize(("count", "values"), [(300, 20), (15, 40), (21, 20), (1, 7)])
@pytest.mark.parametrize("ridge", [1000.0, 0.5])
def test_weights_equal_those_of_scikit_learns_ridge_on_whitened_targets(count, values, ridge):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets = samples(count, values)
    scale = 1.7
    regressor = fit_box_regressor(in_batches(features, targets, 7), values, scale, ridge)
    centred = targets - targets.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / count)
    whitening = directions @ np.diag((variances + 1e-3) ** -0.5) @ directions.T
    columns = np.concatenate([features.astype(np.float64) * scale, np.ones((count, 1))], axis=1)
    model = linear_model.Ridge(alpha=ridge, fit_intercept=False).fit(columns, centred @ whitening)
    expected = model.predict(columns) @ np.linalg.inv(whitening) + targets.mean(axis=0)
    assert np.abs(regressor.deltas(features) - expected).max() < 1e-5
    assert np.abs(regressor.weights - model.coef_.T @ np.linalg.inv(whitening)).max() < 1e-5


def test_both_forms_of_the_equations_have_one_solution(monkeypatch):
    from detseg.detection import box_regression

    features, targets = samples(50, 30)
    primal = fit_box_regressor(in_batches(features, targets, 9), 30, 1.0, 3.0)
    monkeypatch.setattr(box_regression, "_solve_primal", box_regression._solve_dual)
    dual = fit_box_regressor(in_batches(features, targets, 9), 30, 1.0, 3.0)
    assert np.abs(primal.weights - dual.weights).max() < 1e-6


@pytest.mark.parametrize(("count", "values"), [(64, 16), (16, 64)])
def test_batches_and_their_order_do_not_matter(count, values):
    features, targets = samples(count, values)
    whole = fit_box_regressor(in_batches(features, targets), values, 1.0, 10.0)
    order = np.random.default_rng(0).permutation(count)
    for size in (1, 5, 64):
        shuffled = fit_box_regressor(in_batches(features[order], targets[order], size), values, 1.0, 10.0)
        assert np.allclose(shuffled.weights, whole.weights, atol=1e-6)


def test_a_linear_map_is_found_where_there_is_one():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 10)).astype(np.float16)
    planted = rng.normal(size=(10, 4))
    regressor = fit_box_regressor(in_batches(features, features.astype(np.float64) @ planted + 0.5), 10, 1.0, 1e-6)
    assert np.allclose(regressor.weights[:-1], planted, atol=1e-3)
    assert np.allclose(regressor.deltas(features), features.astype(np.float64) @ planted + 0.5, atol=1e-3)


def test_without_samples_proposals_stay_where_they_are():
    regressor = fit_box_regressor(lambda: iter(()), 6, 1.0)
    assert regressor.sample_count == 0
    proposals = random_boxes(np.random.default_rng(0), 5)
    assert np.allclose(decode_deltas(regressor.deltas(np.ones((5, 6))), proposals), proposals)


def test_a_regressor_is_made_again_of_its_arrays():
    regressor = fit_box_regressor(in_batches(*samples(30, 5)), 5, 2.0)
    again = BoxRegressor.from_arrays(regressor.arrays())
    features = samples(9, 5, seed=3)[0]
    assert np.array_equal(again.deltas(features), regressor.deltas(features))


@pytest.mark.parametrize(("count", "values", "matrix"), [(3000, 1000, 1001), (500, 8000, 500)])
def test_memory_is_one_matrix_of_the_smaller_side_beside_a_batch(count, values, matrix):
    features, targets = samples(count, values)
    batches = in_batches(features.astype(np.float16), targets, 50)
    tracemalloc.start()
    fit_box_regressor(batches, values, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = 2 * features.nbytes if count < values else 0  # the dual form has them, and a block of them as float64
    assert peak < 1.2 * 8 * matrix**2 + rows + 12 * 8 * (50 * values + 4 * (values + count))
