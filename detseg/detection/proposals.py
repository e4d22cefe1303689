"""Which of a region proposal network's boxes go on; which anchors and proposals are trained on, in fixed numbers."""

import keras
from keras import ops

from detseg.detection.boxes import clip_boxes, decode_boxes
from detseg.detection.matching import BACKGROUND, FOREGROUND, match_boxes
from detseg.detection.nms import NO_SCORE, is_at_least, nms, take_rows, top_rows

MIN_SIZE = 1e-3  # pixels, of proposals


def select_proposals(
    scores,
    deltas,
    anchors,
    image_sizes,
    max_candidates,
    max_proposals,
    iou_threshold,
    under_xla=False,
    least_score=NO_SCORE,
):
    """The boxes of highest objectness after suppression on each level by itself (section 3.3; FPN, section 4.1).

    scores, deltas, anchors:  for each level (B, N), logits of objectness; (B, N, 4), for `decode_boxes`; (N, 4).
    image_sizes:              (B, 2), to which boxes are clipped; those smaller than `MIN_SIZE` then are dropped.
    max_candidates:           of each level, before suppression.
    max_proposals:            P, of all levels together.
    least_score:              logit of objectness; smaller ones are dropped.
    Returns                   proposals (B, P, 4), zeros where there are fewer; scores (B, P), falling; valid (B, P)
                              bool; no gradient flows.
    """
    kept_boxes, kept_scores = [], []
    for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors, strict=True):
        level_scores = ops.stop_gradient(ops.cast(level_scores, "float32"))
        present = level_scores.shape[1]
        candidates = max_candidates if present is None else min(max_candidates, present)
        level_scores, places = top_rows(level_scores, candidates)  # (B, C)
        candidate_deltas = take_rows(ops.stop_gradient(level_deltas), places)  # (B, C, 4)
        boxes = clip_boxes(decode_boxes(candidate_deltas, ops.take(level_anchors, places, axis=0)), image_sizes)
        is_likely = ops.logical_and(level_scores > NO_SCORE, level_scores >= least_score)
        valid = ops.logical_and(is_likely, is_at_least(boxes, MIN_SIZE))
        count = min(candidates, max_proposals)
        indices, kept = nms(boxes, level_scores, iou_threshold, count, valid, under_xla=under_xla)
        kept_boxes.append(take_rows(boxes, indices))
        kept_scores.append(ops.where(kept, take_rows(level_scores, indices), NO_SCORE))
    boxes = ops.concatenate(kept_boxes, axis=1)
    scores, places = top_rows(ops.concatenate(kept_scores, axis=1), max_proposals)
    valid = scores > NO_SCORE
    return ops.where(valid[..., None], take_rows(boxes, places), 0.0), ops.where(valid, scores, 0.0), valid


def sample(states, count, foreground_share, seed):
    """Anchors or proposals to train on, drawn at random (section 3.1.3; Fast R-CNN, section 2.3).

    states:            (B, N) int32 of `match`.
    count:             S, of each image.
    foreground_share:  at most this share is foreground; background fills up.
    seed:              keras.random.SeedGenerator, or an int for the same draw every time.
    Returns            indices (B, S) int32 into N, foreground first, 0 where not valid; valid (B, S) bool, False where
                       there are not enough.
    """
    keys = keras.random.uniform(ops.shape(states), seed=seed)  # (B, N)
    most = int(count * foreground_share)
    foreground_keys, foreground = top_rows(ops.where(ops.equal(states, FOREGROUND), keys, NO_SCORE), most)
    background_keys, background = top_rows(ops.where(ops.equal(states, BACKGROUND), keys, NO_SCORE), count)
    is_foreground = foreground_keys > NO_SCORE  # (B, most)
    room = count - ops.sum(ops.cast(is_foreground, "int32"), axis=1, keepdims=True)  # (B, 1)
    is_background = ops.logical_and(background_keys > NO_SCORE, ops.arange(count) < room)  # (B, S)
    indices = ops.concatenate([foreground, background], axis=1)
    drawn = ops.cast(ops.concatenate([is_foreground, is_background], axis=1), "float32")
    drawn, places = ops.top_k(drawn, count)  # to the front, in order
    valid = drawn > 0
    return ops.where(valid, take_rows(indices, places), 0), valid


def sample_proposals(
    proposals, proposals_valid, boxes, valid, crowd, foreground, background, count, foreground_share, seed
):
    """Proposals to train a head on, with the ground truth that they stand for.

    The ground truth boxes are proposals too, as in the papers' code: at the start of training there are no better ones.

    proposals, proposals_valid:  (B, P, 4), (B, P) bool, of `select_proposals`; the rest as in `match_boxes`, `sample`.
    Returns                      proposals (B, S, 4); matched (B, S) int32, each one's box, 0..G-1; is_foreground
                                 (B, S) bool, background otherwise; valid (B, S) bool.
    """
    proposals, boxes = ops.stop_gradient(proposals), ops.stop_gradient(ops.cast(boxes, "float32"))
    objects = valid if crowd is None else ops.logical_and(valid, ops.logical_not(crowd))
    proposals = ops.concatenate([proposals, boxes], axis=1)  # (B, P + G, 4)
    usable = ops.concatenate([proposals_valid, objects], axis=1)
    matched, states = match_boxes(proposals, boxes, valid, foreground, background, crowd=crowd, usable=usable)
    indices, drawn = sample(states, count, foreground_share, seed)
    is_foreground = ops.logical_and(drawn, ops.equal(take_rows(states, indices), FOREGROUND))
    proposals = ops.where(drawn[..., None], take_rows(proposals, indices), 0.0)
    return proposals, take_rows(matched, indices), is_foreground, drawn
