"""R-CNN's bounding-box regression: ridge regression in closed form (Girshick et al. 2014, appendix C).

NumPy and SciPy alone. The paper is arXiv 1311.2524v5. For each class W = argmin sum |t - phi W|^2 + lambda |W|^2 over
proposals, whose features phi have a mean norm of 20 and whose targets t are tx, ty, tw, th. As in the authors' code,
rcnn_train_bbox_regressor.m:
- a column of ones joins the features, and its weights, the bias, are penalised like the rest;
- the targets are centred. The authors also whiten them by a matrix T before the fit, and multiply predictions by the
  inverse of T. All four targets have one lambda, so T cancels: (A^-1 X'Y T) T^-1 = A^-1 X'Y. A test holds that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from detseg.errors import UserError

MEAN_NORM = 20.0  # of features after scaling: what lambda 1000 and the SVMs' C 0.001 were chosen for
RIDGE = 1000.0  # lambda
BLOCK_SIZE = 512  # rows or columns that are float64 at a time: 65 MB where there are 16,000 of the other
DIVERGED = "Has the fine-tuning diverged? Train again with a lower train.optimizer.learning_rate"

Batches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class BoxRegressor:
    """What moves the proposals of one class.

    weights:  float32 (d, 4), for features as they are: their scale is folded in.
    bias:     float32 (4,), the mean of the targets included.
    samples:  pairs of proposal and object that it was fitted to; 0 for the identity, which moves nothing.
    """

    weights: np.ndarray
    bias: np.ndarray
    samples: int

    def deltas(self, features):
        """float32 (n, 4) dx, dy, dw, dh of proposals with features (n, d), of any float dtype and not scaled."""
        return np.asarray(features, np.float32) @ self.weights + self.bias

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes, for an .npz file without pickle."""
        return {"weights": self.weights, "bias": self.bias, "samples": np.array(self.samples)}

    @classmethod
    def from_arrays(cls, arrays):
        """The regressor of `arrays`, by name."""
        return cls(np.asarray(arrays["weights"]), np.asarray(arrays["bias"]), int(arrays["samples"]))


def feature_scale(norms):
    """The factor that brings features of `norms` (n,) to a mean norm of 20 (rcnn_scale_features.m).

    Raises UserError where there is none: no features, all of them zero, or some not finite.
    """
    mean = float(np.mean(norms, dtype=np.float64)) if len(norms) else 0.0
    if not (math.isfinite(mean) and mean > 0):
        raise UserError(
            f"{len(norms)} features of regions have a mean norm of {mean}: expected a positive number. {DIVERGED}"
        )
    return MEAN_NORM / mean


def check_finite(values, what):
    """Raises UserError that names `what`, unless all values are finite."""
    if not np.isfinite(values).all():
        raise UserError(f"{what}: features of regions are not finite, or beyond float16's 65504. {DIVERGED}")


def fit_box_regressor(batches: Batches, feature_size: int, feature_scale: float, ridge: float = RIDGE) -> BoxRegressor:
    """The regressor of one class.

    batches:        function that returns an iterator of features (n, feature_size), of any float dtype and not scaled,
                    with targets (n, 4) of `encode_boxes`. Called twice, and must give the same samples in the same
                    order; how they are cut into batches changes nothing.
                    The first time, only the targets are read: features may be slices of a memory map.
    feature_scale:  what `feature_scale` returned for the features.
    ridge:          lambda, above 0.
    Returns         the regressor; without samples the identity, whose `samples` are 0.
    Raises          UserError for features that aren't finite, ValueError for arrays of other shapes.

    Memory: with n samples of d values, one n x n matrix in float64 and the features in their own dtype where n <= d
    (dual form), else one d x d matrix in float64 (2 GB for d = 16,000); besides, four blocks of `BLOCK_SIZE` rows.
    """
    if not ridge > 0:
        raise ValueError(f"ridge: {ridge}, expected a number above 0")
    targets = [np.zeros((0, 4))]
    for features, some in batches():
        if features.shape != (len(some), feature_size) or some.shape[1:] != (4,):
            raise ValueError(
                f"features {features.shape}, targets {some.shape}: expected (n, {feature_size}) and (n, 4)"
            )
        targets.append(np.asarray(some, np.float64))
    targets = np.concatenate(targets)  # (n, 4)
    count = len(targets)
    if count == 0:
        return BoxRegressor(np.zeros((feature_size, 4), np.float32), np.zeros(4, np.float32), 0)
    mean = targets.mean(0)
    solve = _solve_dual if count <= feature_size else _solve_primal
    weights = solve(_finite_features(batches), targets - mean, feature_size, feature_scale, ridge)
    # [phi * scale, 1] @ weights + mean = phi @ (scale * weights[:-1]) + (weights[-1] + mean)
    scaled = (weights[:-1] * feature_scale).astype(np.float32)
    return BoxRegressor(scaled, (weights[-1] + mean).astype(np.float32), count)


def _finite_features(batches):
    for features, _ in batches():
        check_finite(features, "box regression")
        yield features


def _solve_primal(batches, targets, size, scale, ridge):
    """(X'X + lambda I)^-1 X'Y, float64 (size + 1, 4)."""
    gram = np.eye(size + 1)
    gram *= ridge
    products = np.zeros((size + 1, 4))
    start = 0
    for block in _blocks(batches, size, scale):  # (rows, size + 1)
        _add_products(gram, block.T, block.T)
        products += block.T @ targets[start : start + len(block)]
        start += len(block)
    return _solve(gram, products)


def _solve_dual(batches, targets, size, scale, ridge):
    """X' (X X' + lambda I)^-1 Y, the same by the smaller matrix of samples."""
    features = np.concatenate(list(batches))  # (n, size), in their own dtype
    gram = np.eye(len(features))
    gram *= ridge
    gram += 1  # the bias column's products
    columns = [slice(start, start + BLOCK_SIZE) for start in range(0, size, BLOCK_SIZE)]
    for some in columns:
        block = features[:, some].astype(np.float64) * scale
        _add_products(gram, block, block)
    solved = _solve(gram, targets)  # (n, 4)
    weights = [features[:, some].astype(np.float64).T @ solved * scale for some in columns]
    return np.concatenate([*weights, solved.sum(0, keepdims=True)])


def _add_products(matrix, rows, others):
    """Adds rows others', each (m, k), to the lower triangle of the matrix (m, m), in place; the upper is undefined."""
    for start in range(0, len(matrix), BLOCK_SIZE):
        stop = start + BLOCK_SIZE
        matrix[start:stop, :stop] += rows[start:stop] @ others[:stop].T


def _solve(matrix, right):
    """The solution (m, 4) for a positive definite matrix of which the lower triangle is given, which is overwritten.

    Cholesky's factorisation in blocks. SciPy's is not used: for 16,000 values, OpenBLAS 0.3.30's dpotrf ends a process
    of several threads with a segmentation fault (see OpenBLAS issue 2821).
    """
    solution = np.array(right)
    starts = range(0, len(matrix), BLOCK_SIZE)
    for start in starts:  # L L' = matrix, and L y = right on the way
        here, below = slice(start, start + BLOCK_SIZE), slice(start + BLOCK_SIZE, None)
        matrix[here, here] = corner = np.linalg.cholesky(matrix[here, here])
        solution[here] = solve_triangular(corner, solution[here], lower=True)
        if len(matrix[below]):
            matrix[below, here] = panel = solve_triangular(corner, matrix[below, here].T, lower=True).T
            solution[below] -= panel @ solution[here]
            _add_products(matrix[below, below], panel, -panel)
    for start in reversed(starts):  # L' x = y
        here, below = slice(start, start + BLOCK_SIZE), slice(start + BLOCK_SIZE, None)
        known = solution[here] - matrix[below, here].T @ solution[below]
        solution[here] = solve_triangular(matrix[here, here], known, lower=True, trans=1)
    return solution


def _blocks(batches, size, scale):
    """Scaled features with their column of ones, float64 (BLOCK_SIZE, size + 1), fewer rows in the last block.

    Batches may be a few rows each, as an image has; adding those to the Gram matrix one by one would take far longer.
    Each block is overwritten by the next.
    """
    block, filled = np.ones((BLOCK_SIZE, size + 1)), 0
    for features in batches:
        while len(features):
            some, features = features[: BLOCK_SIZE - filled], features[BLOCK_SIZE - filled :]
            np.multiply(some, scale, out=block[filled : filled + len(some), :-1], dtype=np.float64)
            filled += len(some)
            if filled == BLOCK_SIZE:
                yield block
                filled = 0
    if filled:
        yield block[:filled]
