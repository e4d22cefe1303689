"""Which image of a split comes when: passes in random order, in which images with rare classes come more than once."""

import functools

import numpy as np


def class_repeat_factors(class_presence, threshold):
    """How often the images of each class come in a pass (Gupta et al., LVIS, CVPR 2019, repeat factor sampling).

    class_presence:  bool (N, K), whether image n has a pixel of class k.
    threshold:       t, the share of images below which a class is repeated; 0: none is.
    Returns          float64 (K,): r_c = max(1, sqrt(t / f_c)), f_c being the share of images with the class, or 1.
    """
    frequency = class_presence.mean(axis=0)  # (K,)
    frequency[frequency == 0] = 1
    return np.maximum(1, np.sqrt(threshold / frequency))


def image_repeat_factors(class_presence, threshold):
    """How often each image comes in a pass: as often as the rarest of its classes, max r_c, or once: float64 (N,)."""
    return np.max(class_repeat_factors(class_presence, threshold) * class_presence, axis=1, initial=1)


def describe_repeats(class_presence, threshold, classes):
    """One line of text: what repeat factor sampling does to a split with these class names."""
    factors = class_repeat_factors(class_presence, threshold)
    count, pass_length = len(class_presence), image_repeat_factors(class_presence, threshold).sum()
    repeated = [k for k in np.argsort(-factors) if factors[k] > 1]
    if not repeated:
        return f"repeat factors: every class that occurs is in at least {threshold:g} of the images: none is repeated"
    shares = class_presence.mean(axis=0)
    listed = ", ".join(f"{classes[k]} x{factors[k]:.2f} ({shares[k]:.1%} of the images)" for k in repeated)
    return f"repeat factors: {listed}; a pass over {count} images has {pass_length:.0f} on average"


def order_by_groups(groups, filled, batch_size, edge_group):
    """An order, int (N,), of N shuffled items of these groups in which batches have items of one group.

    filled:      how many places of the first batch are taken by items of another pass.
    edge_group:  preferred for the rest of that batch, and for the last one, which may have places left. As all passes
                 prefer the same, no pass needs to know another.
    Whole batches come when their last item would have come; what is left of groups makes mixed batches at the end,
    before the last one if it isn't whole.
    """
    head = min(-filled % batch_size, len(groups))
    tail = (len(groups) - head) % batch_size
    edges = np.argsort(groups != edge_group, kind="stable")[: head + tail]
    rest = np.delete(np.arange(len(groups)), edges)
    whole, left = [], []
    for group in np.unique(groups[rest]):
        items = rest[groups[rest] == group]
        count = len(items) // batch_size * batch_size
        whole.append(items[:count].reshape(-1, batch_size))
        left.append(items[count:])
    if not whole:
        return edges
    whole = np.concatenate(whole)  # (batches, batch_size)
    whole = whole[np.argsort(whole[:, -1])]
    return np.concatenate([edges[:head], whole.ravel(), *left, edges[head:]])


class Passes:
    """The order of images over a whole training: pass after pass, each shuffled for itself.

    In a pass an image with repeat factor r comes floor(r) times, and once more with the probability of r's fraction.
    What `at` says depends on the seed, the factors, the groups and the position only, never on what was asked before.
    """

    def __init__(self, repeat_factors, seed, length, groups=None, batch_size=1):
        """repeat_factors: float (N,), each >= 1. length: positions that will be asked for. groups: see `Batches`."""
        self._factors, self._seed, self._batch_size = np.asarray(repeat_factors), seed, batch_size
        self._groups = None if groups is None else np.asarray(groups)
        if groups is not None:
            self._edge_group = np.bincount(self._groups, self._factors).argmax()
        self._shuffled = functools.lru_cache(maxsize=8)(self._shuffled)
        most = length // len(self._factors) + 1  # a pass has at least N positions
        self._starts = np.cumsum([0] + [self._repeats(number).sum() for number in range(most)])

    def at(self, position):
        """(index of the image, number of the pass, times that the image came before in this pass) at a position."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        indices, times_before = self._shuffled(number)
        offset = position - self._starts[number]
        return indices[offset], number, times_before[offset]

    def _repeats(self, number):
        """int (N,): how often each image comes in this pass."""
        (rng,) = np.random.default_rng((self._seed, number)).spawn(1)
        whole = np.floor(self._factors).astype(int)
        return whole + (rng.random(len(whole)) < self._factors - whole)

    def _shuffled(self, number):
        """Two int arrays over the positions of a pass: indices of images, and how often each came before."""
        repeats = self._repeats(number)
        indices = np.repeat(np.arange(len(repeats)), repeats)
        times_before = np.arange(len(indices)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        order = np.random.default_rng((self._seed, number)).permutation(len(indices))
        if self._groups is not None:
            groups, start = self._groups[indices[order]], int(self._starts[number])
            order = order[order_by_groups(groups, start % self._batch_size, self._batch_size, self._edge_group)]
        return indices[order], times_before[order]
