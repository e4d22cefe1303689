import io
import tracemalloc

import numpy as np
import pytest

from detseg.detection.box_regression import (
    BLOCK_SIZE,
    BoxRegressor,
    _solve_dual,
    _solve_primal,
    feature_scale,
    fit_box_regressor,
)
from detseg.detection.boxes import decode_boxes
from detseg.errors import UserError


def samples(count, size, seed=0, dtype="float32"):
    """Features as a ReLU leaves them, and targets that depend on them, are correlated and have a mean."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(size=(count, size)), 0).astype(dtype)
    mixing = rng.normal(size=(4, 4))
    targets = features @ rng.normal(size=(size, 4)) / size @ mixing + rng.normal(size=(count, 4)) * 0.1 + 0.3
    return features, targets.astype("float32")


def in_batches(features, targets, size=100):
    cuts = range(0, len(features), size)
    return lambda: ((features[cut : cut + size], targets[cut : cut + size]) for cut in cuts)


def scale_of(features):
    return feature_scale(np.linalg.norm(features.astype("float32"), axis=1))


def fit(features, targets, size=100, **options):
    return fit_box_regressor(in_batches(features, targets, size), features.shape[1], scale_of(features), **options)


def authors_deltas(features, targets, seen, ridge):
    """rcnn_train_bbox_regressor.m and rcnn_predict_bbox_regressor.m, with scikit-learn's Ridge for the solver."""
    from sklearn.linear_model import Ridge

    scale = scale_of(features)
    with_bias = [np.pad(x.astype("float64") * scale, ((0, 0), (0, 1)), constant_values=1) for x in (features, seen)]
    mean = targets.astype("float64").mean(0)
    centred = targets - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    whitening = vectors @ np.diag(1 / np.sqrt(values + 0.001)) @ vectors.T
    colouring = vectors @ np.diag(np.sqrt(values + 0.001)) @ vectors.T
    model = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky").fit(with_bias[0], centred @ whitening)
    return model.predict(with_bias[1]) @ colouring + mean


@pytest.mark.parametrize(("count", "size"), [(1500, 64), (60, 200), (64, 64), (1, 32), (2, 1)])
@pytest.mark.parametrize("ridge", [1000.0, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_equals_the_authors_procedure_with_scikit_learns_ridge_on_whitened_targets(count, size, ridge, dtype):
    features, targets = samples(count, size, dtype=dtype)
    seen = samples(50, size, seed=1, dtype=dtype)[0]
    found = fit(features, targets, ridge=ridge).deltas(seen)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, authors_deltas(features, targets, seen, ridge), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1200, 70), (70, 1200)])
def test_primal_and_dual_forms_agree(count, size):
    features, targets = samples(count, size)
    primal, dual = (
        solve(iter([features]), targets.astype("float64"), size, 0.7, 10.0) for solve in (_solve_primal, _solve_dual)
    )
    np.testing.assert_allclose(primal, dual, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("count", "size"), [(BLOCK_SIZE * 2 + 3, 20), (90, 100)])
def test_how_samples_are_cut_into_batches_changes_nothing(count, size):
    features, targets = samples(count, size)
    whole = fit(features, targets, count)
    for batch in (1, 7, BLOCK_SIZE):
        np.testing.assert_array_equal(fit(features, targets, batch).weights, whole.weights)


@pytest.mark.parametrize(("count", "size"), [(600, 20), (90, 100)])
def test_the_order_of_samples_changes_nothing(count, size):
    features, targets = samples(count, size)
    order = np.random.default_rng(3).permutation(count)
    one, other = fit(features, targets), fit(features[order], targets[order])
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(one.bias, other.bias, rtol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(2000, 30), (60, 60)])
def test_a_vanishing_ridge_finds_the_linear_map_that_made_the_targets(count, size):
    rng = np.random.default_rng(0)
    features, weights, bias = rng.normal(size=(count, size)), rng.normal(size=(size, 4)), [1.0, -2.0, 0.5, 0.0]
    targets = features @ weights + bias
    regressor = fit(features, targets, ridge=1e-7)
    np.testing.assert_allclose(regressor.deltas(features), targets, atol=1e-3)
    if count > size:
        np.testing.assert_allclose(regressor.weights, weights, atol=1e-5)
        np.testing.assert_allclose(regressor.bias, bias, atol=1e-5)


@pytest.mark.parametrize("batches", [[], [(np.zeros((0, 8), "float16"), np.zeros((0, 4)))]])
def test_without_samples_the_regressor_is_the_identity(batches):
    regressor = fit_box_regressor(lambda: iter(batches), 8, 1.0)
    assert regressor.samples == 0
    proposals = np.array([[1, 2, 30, 40], [5, 5, 9, 7]], "float32")
    np.testing.assert_array_equal(decode_boxes(regressor.deltas(np.ones((2, 8))), proposals), proposals)


def test_one_sample_predicts_its_own_target():
    features, targets = samples(1, 16)
    regressor = fit(features, targets)
    assert regressor.samples == 1
    np.testing.assert_allclose(regressor.deltas(features), targets, rtol=1e-6)


def test_a_regressor_survives_its_file():
    features, targets = samples(40, 10)
    regressor, file = fit(features, targets), io.BytesIO()
    np.savez(file, **regressor.arrays())
    file.seek(0)
    loaded = BoxRegressor.from_arrays(np.load(file, allow_pickle=False))
    assert loaded.samples == 40
    np.testing.assert_array_equal(loaded.deltas(features), regressor.deltas(features))


@pytest.mark.parametrize("count", [2100, 1900])  # primal, dual
def test_memory_is_one_square_matrix_and_four_blocks(count):
    size = 2000
    features, targets = samples(count, size, dtype="float16")
    scale = scale_of(features)
    tracemalloc.start()
    fit_box_regressor(in_batches(features, targets), size, scale)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dual = count <= size
    blocks = 4 * BLOCK_SIZE * size * 8
    assert peak < min(count, size) ** 2 * 8 + blocks + features.nbytes * dual


def test_features_are_scaled_to_a_mean_norm_of_twenty():
    assert feature_scale(np.array([2.0, 6.0, 4.0], "float16")) == 5.0
    for norms in ([], [0.0, 0.0], [1.0, np.inf], [np.nan]):
        with pytest.raises(UserError, match=r"mean norm of .*diverged"):
            feature_scale(np.array(norms))


@pytest.mark.parametrize("count", [30, 5])  # primal, dual
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_features_that_are_no_numbers_are_refused(count, value):
    features, targets = samples(count, 8)
    features[3, 2] = value
    with pytest.raises(UserError, match="box regression: features of regions are not finite"):
        fit_box_regressor(in_batches(features, targets), 8, 1.0)


def test_more_samples_and_values_than_a_block_still_solve_the_system():
    features, targets = samples(BLOCK_SIZE * 3, BLOCK_SIZE * 2 + 5)
    for count in (len(features), BLOCK_SIZE + 3):  # primal, dual
        found = fit(features[:count], targets[:count], ridge=5.0).deltas(features)
        expected = authors_deltas(features[:count], targets[:count], features, 5.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected \(n, 3\) and \(n, 4\)"):
        fit_box_regressor(lambda: iter([(np.zeros((5, 2)), np.zeros((5, 4)))]), 3, 1.0)
    with pytest.raises(ValueError, match="ridge"):
        fit_box_regressor(lambda: iter([]), 3, 1.0, ridge=0)
