"""Repeat factors and the order of passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data.sampling import Passes, class_repeat_factors, describe_repeats, image_repeat_factors

# Four images of classes: 0 in all, 1 in two, 2 in one, 3 in none. The last image has class 0 only.
PRESENCE = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], bool)


def listed(passes, start, stop):
    return [tuple(int(value) for value in passes.at(position)) for position in range(start, stop)]


def test_repeat_factors_by_hand():
    # f = 1, 1/2, 1/4: sqrt(t / f) = 0.95, 1.34, 1.90 at t = 0.9
    np.testing.assert_allclose(class_repeat_factors(PRESENCE, 0.9), [1, np.sqrt(1.8), np.sqrt(3.6), 1], rtol=1e-15)
    np.testing.assert_allclose(image_repeat_factors(PRESENCE, 0.9), [np.sqrt(3.6), np.sqrt(1.8), 1, 1], rtol=1e-15)
    assert class_repeat_factors(PRESENCE, 0.36).tolist() == pytest.approx([1, 1, 1.2, 1], abs=1e-15)


def test_images_without_any_class_come_once():
    presence = np.array([[1], [0], [0]], bool)
    assert image_repeat_factors(presence, 1.0).tolist() == [np.sqrt(3), 1, 1]
    assert image_repeat_factors(np.zeros((2, 1), bool), 1.0).tolist() == [1, 1]


def test_the_line_for_the_log_names_repeated_classes_from_the_rarest():
    assert describe_repeats(PRESENCE, 0.9, ["sky", "car", "pole", "bus"]) == (
        "repeat factors: pole x1.90 (25.0% of the images), car x1.34 (50.0% of the images); "
        "a pass over 4 images has 5 on average"
    )
    assert "none is repeated" in describe_repeats(PRESENCE, 0.25, ["sky", "car", "pole", "bus"])


@given(st.lists(st.floats(1, 4), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_each_pass_has_every_image_as_often_as_its_factor_rounded_up_or_down(factors, seed):
    passes = Passes(factors, seed, length=200)
    at = listed(passes, 0, 200)
    last = at[-1][1]  # the only pass that is not asked for to its end
    for number in range(last):
        indices = [index for index, pass_number, _ in at if pass_number == number]
        counts = np.bincount(indices, minlength=len(factors))
        assert (counts >= np.floor(factors)).all()
        assert (counts <= np.ceil(factors)).all()
    assert [number for _, number, _ in at] == sorted(number for _, number, _ in at)


def test_repetitions_over_many_passes_are_the_factors_on_average():
    factors = np.array([1, 1.25, 1.9, 2, 3.5])
    at = listed(Passes(factors, seed=3, length=60_000), 0, 60_000)
    whole = at[-1][1]
    counts = np.bincount([index for index, number, _ in at if number < whole], minlength=5) / whole
    assert whole > 5000
    np.testing.assert_allclose(counts, factors, atol=0.03)  # the mean's standard error is at most 0.5 / sqrt(5000)
    assert counts[[0, 3]].tolist() == [1, 2]


def test_repetitions_of_an_image_in_a_pass_are_numbered():
    at = listed(Passes([2.5, 1, 3], seed=0, length=70), 0, 70)
    for number in range(at[-1][1]):
        for index in range(3):
            times_before = sorted(before for i, p, before in at if (i, p) == (index, number))
            assert times_before == list(range(len(times_before)))


@given(st.lists(st.floats(1, 3), min_size=1, max_size=9), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_positions_can_be_asked_for_in_any_order_and_from_anywhere(factors, start):
    whole = listed(Passes(factors, seed=1, length=100), 0, 100)
    assert listed(Passes(factors, seed=1, length=100), start, 100) == whole[start:]
    assert listed(Passes(factors, seed=1, length=150), start, 100) == whole[start:]  # more epochs than first planned
    backwards = Passes(factors, seed=1, length=100)
    assert [tuple(map(int, backwards.at(position))) for position in reversed(range(100))] == whole[::-1]


def test_without_repetition_a_pass_is_the_seeds_permutation():
    """As in runs that were begun before there were repeat factors: their order stays."""
    at = listed(Passes(np.ones(7), seed=5, length=21), 0, 21)
    for number in range(3):
        expected = np.random.default_rng((5, number)).permutation(7).tolist()
        assert at[number * 7 : number * 7 + 7] == [(index, number, 0) for index in expected]


def test_passes_and_seeds_differ():
    passes = [listed(Passes(np.full(20, 1.5), seed, length=60), 0, 60) for seed in (0, 1)]
    assert passes[0] != passes[1]
    first = [index for index, number, _ in passes[0] if number == 0]
    second = [index for index, number, _ in passes[0] if number == 1]
    assert first != second[: len(first)]


# ----- groups --------------------------------------------------------------------------------------------------------

grouped_passes = st.fixed_dictionaries(
    {
        "repeat_factors": st.lists(st.floats(1, 3), min_size=2, max_size=30),
        "seed": st.integers(0, 2**32 - 1),
        "batch_size": st.integers(1, 7),
        "groups": st.lists(st.integers(0, 2), min_size=30, max_size=30),
    }
)


def created(case, length=150):
    groups = case["groups"][: len(case["repeat_factors"])]
    return Passes(**(case | {"groups": groups}), length=length), np.array(groups)


@given(grouped_passes)
@settings(max_examples=40, deadline=None)
def test_groups_change_only_the_order_within_a_pass(case):
    grouped, _ = created(case)
    plain = Passes(case["repeat_factors"], case["seed"], length=150)
    at, expected = listed(grouped, 0, 150), listed(plain, 0, 150)
    last = expected[-1][1]  # the only pass that is not asked for to its end
    assert sorted(x for x in at if x[1] < last) == sorted(x for x in expected if x[1] < last)
    assert [number for _, number, _ in at] == [number for _, number, _ in expected]


@given(grouped_passes)
@settings(max_examples=40, deadline=None)
def test_each_pass_has_fewer_mixed_batches_than_groups(case):
    passes, groups = created(case)
    at = listed(passes, 0, 150)
    size, last = case["batch_size"], at[-1][1]
    mixed = np.zeros(last + 1, int)
    for start in range(0, 150 - size + 1, size):
        batch = at[start : start + size]
        numbers = {number for _, number, _ in batch}
        if len(numbers) == 1 and numbers != {last}:
            mixed[batch[0][1]] += len({groups[index] for index, _, _ in batch}) > 1
    assert (mixed < len(set(groups))).all()


def test_two_groups_by_hand():
    """14 images of group 1 and 7 of group 0, in batches of 4: 21 images a pass, so that batches straddle passes."""
    groups = np.array([0, 1, 1] * 7)
    at = listed(Passes(np.ones(21), 3, 84, groups, batch_size=4), 0, 84)
    batches = np.array([groups[index] for index, _, _ in at]).reshape(-1, 4)
    is_mixed = (batches != batches[:, :1]).any(axis=1)
    # pass 0: images 0..20, of which 20 is in batch 5, which it shares with pass 1: both give it group 1
    assert batches[5].tolist() == [1, 1, 1, 1]
    assert np.flatnonzero(is_mixed).tolist() == [4, 9, 14, 20]  # one a pass
    order = [index for index, _, _ in at[:21]]
    assert order != sorted(order)
    assert {tuple(batch) for batch in batches[:4]} == {(0,) * 4, (1,) * 4}


@given(grouped_passes, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_positions_of_groups_can_be_asked_for_in_any_order_and_from_anywhere(case, start):
    whole = listed(created(case)[0], 0, 100)
    assert listed(created(case)[0], start, 100) == whole[start:]
    assert listed(created(case, length=300)[0], start, 100) == whole[start:]
    backwards = created(case)[0]
    assert [tuple(map(int, backwards.at(position))) for position in reversed(range(100))] == whole[::-1]


def test_one_group_is_in_the_order_of_none():
    plain = Passes(np.full(10, 1.3), 1, 60)
    assert listed(Passes(np.full(10, 1.3), 1, 60, np.zeros(10, int), batch_size=1), 0, 60) == listed(plain, 0, 60)
