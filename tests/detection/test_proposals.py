import keras
import numpy as np
import pytest
import tensorflow as tf

from detseg.detection.boxes import box_area, clip_boxes, decode_boxes, pairwise_iou
from detseg.detection.matching import BACKGROUND, FOREGROUND, IGNORED
from detseg.detection.nms import nms, take_rows
from detseg.detection.proposals import sample, sample_proposals, select_proposals

STATES = np.array(
    [
        [FOREGROUND] * 30 + [BACKGROUND] * 100 + [IGNORED] * 70,  # plenty of both
        [FOREGROUND] * 3 + [BACKGROUND] * 150 + [IGNORED] * 47,  # few objects
        [FOREGROUND] * 150 + [BACKGROUND] * 7 + [IGNORED] * 43,  # little background
        [IGNORED] * 200,
    ]
)


def drawn(seed, count=32, share=0.5, states=STATES):
    indices, valid = (np.array(x) for x in sample(states, count, share, seed))
    return [row[mask] for row, mask in zip(indices, valid, strict=True)]


def test_samples_have_the_share_of_foreground_that_is_available():
    for states, indices in zip(STATES, drawn(0), strict=True):
        assert len(set(indices)) == len(indices)
        assert IGNORED not in states[indices]
    foreground = [(states[indices] == FOREGROUND).sum() for states, indices in zip(STATES, drawn(0), strict=True)]
    assert foreground == [16, 3, 16, 0]
    assert [len(indices) for indices in drawn(0)] == [32, 32, 23, 0]
    assert [len(indices) for indices in drawn(0, share=0.25)] == [32, 32, 15, 0]


def test_every_candidate_is_drawn_as_often_as_the_others():
    seed = keras.random.SeedGenerator(0)
    states = np.array([[FOREGROUND] * 5 + [BACKGROUND] * 10] * 300)
    counts = np.bincount(np.concatenate([x for _ in range(3) for x in drawn(seed, 4, 0.5, states)]), minlength=15)
    assert counts.sum() == 4 * 900
    np.testing.assert_allclose(counts[:5] / 900, 2 / 5, atol=0.08)  # five standard deviations
    np.testing.assert_allclose(counts[5:] / 900, 2 / 10, atol=0.07)


def test_draws_follow_from_the_seed():
    for first, second in zip(drawn(keras.random.SeedGenerator(3)), drawn(keras.random.SeedGenerator(3)), strict=True):
        np.testing.assert_array_equal(first, second)
    seed = keras.random.SeedGenerator(3)
    assert list(drawn(seed)[0]) != list(drawn(seed)[0])


def test_more_samples_than_anchors_are_padded():
    (indices,) = drawn(0, 8, 0.5, np.array([[BACKGROUND, IGNORED, FOREGROUND]]))
    np.testing.assert_array_equal(indices, [2, 0])


def random_level(rng, count, batch=2):
    corners = rng.uniform(0, 60, (count, 2))
    anchors = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], -1)
    arrays = rng.normal(size=(batch, count)), rng.normal(size=(batch, count, 4)) * 0.3, anchors
    return [x.astype("float32") for x in arrays]


def test_proposals_are_each_levels_best_after_suppression():
    rng = np.random.default_rng(0)
    sizes = np.array([[60, 70], [50, 90]])
    levels = [random_level(rng, count) for count in (80, 30, 4)]
    proposals, scores, valid = (np.array(x) for x in select_proposals(*zip(*levels, strict=True), sizes, 50, 40, 0.7))
    assert proposals.shape == (2, 40, 4)
    assert valid.all()
    for image in range(2):
        expected = {}
        for level_scores, deltas, anchors in levels:
            best = np.argsort(-level_scores[image])[:50]
            boxes = clip_boxes(decode_boxes(deltas[image, best], anchors[best])[None], sizes[image : image + 1])
            indices, kept = nms(boxes, level_scores[image, best][None], 0.7, 50, box_area(boxes) > 0)
            expected |= {level_scores[image, best[i]]: boxes[0, i] for i in np.array(indices)[np.array(kept)]}
        np.testing.assert_array_equal(scores[image], sorted(expected, reverse=True)[:40])
        np.testing.assert_allclose(proposals[image], [expected[score] for score in scores[image]], atol=1e-4)
        assert proposals[image].min() >= 0
        assert (proposals[image] <= [*sizes[image, ::-1], *sizes[image, ::-1]]).all()


def test_boxes_outside_the_image_are_no_proposals_and_the_rest_is_padding():
    anchors = np.array([[0, 0, 10, 10], [30, 30, 40, 40], [5, 5, 15, 15]], "float32")
    proposals, scores, valid = select_proposals(
        [[[1.0, 9.0, 2.0]]], [np.zeros((1, 3, 4))], [anchors], [[20, 20]], 2000, 1000, 0.7
    )
    assert proposals.shape == (1, 1000, 4)
    np.testing.assert_array_equal(valid[0, :3], [True, True, False])
    np.testing.assert_array_equal(proposals[0, :3], [[5, 5, 15, 15], [0, 0, 10, 10], [0, 0, 0, 0]])
    np.testing.assert_array_equal(scores[0, :3], [2, 1, 0])


def test_no_gradient_flows_through_proposals():
    level = [tf.constant(x) for x in random_level(np.random.default_rng(0), 20)]
    with tf.GradientTape() as tape:
        tape.watch(level)
        proposals, scores, _ = select_proposals(*[[x] for x in level], [[50, 50]] * 2, 20, 5, 0.7)
        total = tf.reduce_sum(proposals) + tf.reduce_sum(scores)
    assert tape.gradient(total, level[:2]) == [None, None]


@pytest.mark.parametrize("count", [0, 2])
def test_proposals_to_train_on_stand_for_the_box_they_overlap(count):
    rng = np.random.default_rng(0)
    boxes = np.array([[[0, 0, 20, 20], [40, 40, 60, 60]]] * 3, "float32")[:, :count]
    proposals = np.tile(np.array([[0, 0, 20, 20], [40, 40, 60, 60]], "float32"), (3, 20, 1))
    proposals = proposals + rng.uniform(-8, 8, proposals.shape).astype("float32")
    exists = np.ones((3, 40), bool)
    exists[:, 30:] = False
    valid, crowd = np.ones((3, count), bool), np.zeros((3, count), bool)
    valid[1], crowd[2] = False, True
    chosen, matched, is_foreground, drawn = sample_proposals(
        proposals, exists, boxes, valid, crowd, 0.5, (0.0, 0.5), 16, 0.25, keras.random.SeedGenerator(0)
    )
    assert chosen.shape == (3, 16, 4)
    is_foreground, drawn = np.array(is_foreground), np.array(drawn)
    np.testing.assert_array_equal(is_foreground.sum(1), [4, 0, 0] if count else [0, 0, 0])
    assert drawn[:2].all()  # image 2 may have nothing but its crowd
    assert (np.array(chosen)[~drawn] == 0).all()
    if count:
        overlaps = np.array(pairwise_iou(chosen, boxes))[0]
        np.testing.assert_array_equal(np.array(matched)[0], overlaps.argmax(1))
        np.testing.assert_array_equal(overlaps.max(1) >= 0.5, is_foreground[0])
        found = np.array(take_rows(boxes, matched))
        np.testing.assert_array_equal(found[0][is_foreground[0]], boxes[0][overlaps.argmax(1)][is_foreground[0]])


def test_ground_truth_is_a_proposal_too():
    boxes = np.array([[[0, 0, 20, 20]]], "float32")
    nothing = np.zeros((1, 1000, 4), "float32")
    chosen, _, is_foreground, drawn = sample_proposals(
        nothing, np.zeros((1, 1000), bool), boxes, np.ones((1, 1), bool), None, 0.5, (0.0, 0.5), 8, 0.25, seed=0
    )
    np.testing.assert_array_equal(chosen[0, 0], boxes[0, 0])
    np.testing.assert_array_equal(is_foreground, drawn)
    assert np.array(drawn).sum() == 1
