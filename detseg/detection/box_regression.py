"""Bounding-box regression in closed form (Girshick et al.: R-CNN, arXiv 1311.2524v5, appendix C), in NumPy."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

LARGEST_LOG_RATIO = np.log(1000 / 16)  # as in boxes.py


def encode_targets(boxes, proposals):
    """The targets tx, ty, tw, th that move proposals onto boxes (eq. 6-9), as `boxes.encode_boxes` without Keras.

    boxes, proposals:  (n, 4), x1 y1 x2 y2 in pixels, of positive width and height.
    Returns            float64 (n, 4).
    """
    gx, gy, gw, gh = _centres_and_sizes(boxes)
    px, py, pw, ph = _centres_and_sizes(proposals)
    return np.stack([(gx - px) / pw, (gy - py) / ph, np.log(gw / pw), np.log(gh / ph)], axis=-1)


def decode_deltas(deltas, proposals):
    """The boxes onto which deltas dx, dy, dw, dh move proposals (eq. 1-4), float64 (n, 4): undoes `encode_targets`."""
    dx, dy, dw, dh = np.asarray(deltas, np.float64).T
    px, py, pw, ph = _centres_and_sizes(proposals)
    x, y = pw * dx + px, ph * dy + py
    half_width = 0.5 * pw * np.exp(np.minimum(dw, LARGEST_LOG_RATIO))
    half_height = 0.5 * ph * np.exp(np.minimum(dh, LARGEST_LOG_RATIO))
    return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def _centres_and_sizes(boxes):
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


@dataclass(frozen=True, eq=False)
class BoxRegressor:
    """What moves the proposals of one class: deltas = [scale * phi, 1] @ weights + mean.

    weights:       float32 (d + 1, 4), the last row that of the bias.
    mean:          float32 (4,), of the targets.
    scale:         of the features.
    sample_count:  proposals that it was fitted on; of none, proposals stay where they are.
    """

    weights: np.ndarray
    mean: np.ndarray
    scale: float
    sample_count: int

    def deltas(self, features):
        """float32 (n, 4): dx, dy, dw, dh of the features phi (n, d) of proposals."""
        scaled = np.asarray(features, np.float32) * np.float32(self.scale)
        return scaled @ self.weights[:-1] + self.weights[-1] + self.mean

    def arrays(self):
        """{name: array}, of which `from_arrays` makes it again."""
        numbers = {"scale": np.array(self.scale), "sample_count": np.array(self.sample_count)}
        return {"weights": self.weights, "mean": self.mean, **numbers}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(arrays["weights"], arrays["mean"], float(arrays["scale"]), int(arrays["sample_count"]))


def fit_box_regressor(batches, values, scale, ridge=1000.0):
    """Fits W = argmin sum (t - W' phi)^2 + ridge |W|^2 for the four targets (eq. 5), as the authors' code does it:
    phi is scaled and has a last value of 1, which is penalised like the others, and the targets are centred. The code
    whitens them too, and undoes it; W being linear in the targets, with one lambda for all, that changes nothing.

    batches:   function of no arguments -> iterator of (features (n, d), targets (n, 4)), the same at each call.
    values:    d.
    scale:     of the features, to the mean norm 20 for which a ridge of 1000 is given.
    ridge:     lambda > 0.
    Returns    BoxRegressor. Where there are n >= d samples, the normal equations (d + 1, d + 1) are summed up batch by
               batch; of fewer, the dual ones (n, n), from W = X' (X X' + ridge I)^-1 T. Memory: one such matrix of
               float64 (2.1 GB of d = 16384) beside a batch; the dual form also holds its n features, as float32.
    """
    targets = np.concatenate([np.zeros((0, 4)), *(np.asarray(t, np.float64) for _, t in batches())])  # (n, 4)
    count = len(targets)
    if not count:
        return BoxRegressor(np.zeros((values + 1, 4), np.float32), np.zeros(4, np.float32), scale, 0)
    mean = targets.mean(axis=0)
    solve = _solve_primal if count > values else _solve_dual
    weights = solve(batches, targets - mean, values + 1, scale, ridge)  # (d + 1, 4)
    return BoxRegressor(weights.astype(np.float32), mean.astype(np.float32), scale, count)


def _scaled(features, scale):
    """float64 (n, d + 1): features as the regressor has them, with a last column of ones."""
    features = np.asarray(features, np.float64) * scale
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _solve_primal(batches, targets, width, scale, ridge):
    """(X'X + ridge I)^-1 X'T."""
    gram, products, start = np.zeros((width, width), order="F"), np.zeros((width, targets.shape[1])), 0
    for features, _ in batches():
        x = _scaled(features, scale)
        # In place, the upper triangle alone: gram += x' x
        gram = linalg.blas.dsyrk(1.0, x.T, beta=1.0, c=gram, overwrite_c=True)
        products += x.T @ targets[start : start + len(x)]
        start += len(x)
    return _solve(gram, products, ridge)


def _solve_dual(batches, targets, width, scale, ridge):
    """X' (XX' + ridge I)^-1 T."""
    rows = np.concatenate([np.asarray(features, np.float32) for features, _ in batches()])  # (n, d)
    gram = np.zeros((len(rows), len(rows)), order="F")
    step = max(1, 2**21 // width)
    for start in range(0, len(rows), step):
        x = _scaled(rows[start : start + step], scale)
        for other in range(0, start + step, step):
            gram[other : other + step, start : start + step] = _scaled(rows[other : other + step], scale) @ x.T
    coefficients = _solve(gram, targets, ridge)
    return sum(
        _scaled(rows[start : start + step], scale).T @ coefficients[start : start + step]
        for start in range(0, len(rows), step)
    )


def _solve(gram, products, ridge):
    """(gram + ridge I)^-1 products; of gram, which is overwritten, the upper triangle is read."""
    gram[np.diag_indices_from(gram)] += ridge
    factor = linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    return linalg.cho_solve(factor, products, check_finite=False)
