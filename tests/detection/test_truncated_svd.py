"""Truncated SVD of a head's dense layers."""

import numpy as np
import pytest

from detseg.detection.heads import create_dense_head
from detseg.detection.truncated_svd import truncate_head


@pytest.fixture(scope="module")
def head():
    model = create_dense_head(6, 3, 2, 2, channels=20)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([rng.normal(size=weight.shape) * 0.2 for weight in layer.get_weights()])
    return model


REGIONS = np.random.default_rng(1).normal(size=(5, 3, 3, 6)).astype(np.float32)


def test_at_full_rank_nothing_changes(head):
    for before, after in zip(head(REGIONS), truncate_head(head, {"fc6": 20, "fc7": 20})(REGIONS), strict=True):
        assert np.allclose(before, after, atol=1e-5)


def test_what_is_lost_are_the_smallest_singular_values(head):
    kernel = head.get_layer("fc6").get_weights()[0]
    first, second, bias = truncate_head(head, {"fc6": 7}).get_layer("fc6").get_weights()
    values = np.linalg.svd(kernel, compute_uv=False)
    assert np.isclose(np.linalg.norm(kernel - first @ second), np.sqrt((values[7:] ** 2).sum()), rtol=1e-5)
    assert np.array_equal(bias, head.get_layer("fc6").get_weights()[1])


def test_t_times_u_plus_v_weights_stand_for_u_times_v(head):
    before, after = head.count_params(), truncate_head(head, {"fc6": 4, "fc7": 3}).count_params()
    assert before - after == 54 * 20 - 4 * (54 + 20) + 20 * 20 - 3 * (20 + 20)


def test_the_head_itself_stays_as_it_is(head):
    before = [np.array(weight) for weight in head.get_weights()]
    truncate_head(head, {"fc6": 2})
    assert all(np.array_equal(a, b) for a, b in zip(before, head.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"fc8": 3}, "fc8: no dense layer; the head has fc6, fc7, class_logits, class_boxes"),
        ({"flatten": 3}, "flatten: no dense layer"),
        ({"fc6": 21}, "fc6: rank 21, expected a whole number from 1 to 20"),
        ({"fc7": 0}, "fc7: rank 0, expected"),
        ({"fc7": 2.5}, "fc7: rank 2.5, expected"),
    ],
)
def test_ranks_that_can_not_be_are_refused(head, ranks, message):
    with pytest.raises(ValueError, match=message):
        truncate_head(head, ranks)
