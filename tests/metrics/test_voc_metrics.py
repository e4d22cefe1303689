import numpy as np
import pytest

from detseg.metrics.voc import VocScores, area_average, box_overlaps, eleven_point_average

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def scores_of(*images, classes=("cat",)):
    """Of images (true boxes, found boxes, scores) or (.., difficult) of one class."""
    scores = VocScores(classes)
    for truth, found, confidence, *difficult in images:
        scores.update(truth, [0] * len(truth), found, [0] * len(found), confidence, *difficult)
    return scores.result()


def plain_average_precisions(images, label):
    """The devkit's steps one by one, on inclusive boxes from 1: AP by 11 points and by area of one class."""
    detections, true_count = [], 0
    for image in images:
        image["taken"] = set()
        true_count += sum(t == label and not d for t, d in zip(image["true_labels"], image["difficult"], strict=True))
        for box, found_label, score in zip(image["found"], image["labels"], image["scores"], strict=True):
            if found_label == label:
                detections.append((score, box, image))
    detections.sort(key=lambda detection: -detection[0])
    hits, misses, recall, precision = 0, 0, [], []
    for _, box, image in detections:
        best, best_index = -1, None
        for index, (other, true_label) in enumerate(zip(image["truth"], image["true_labels"], strict=True)):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if true_label != label or width <= 0 or height <= 0:
                continue
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            overlap = width * height / (sum(areas) - width * height)
            if overlap > best:
                best, best_index = overlap, index
        if best >= 0.5 and image["difficult"][best_index]:
            continue
        if best >= 0.5 and best_index not in image["taken"]:
            image["taken"].add(best_index)
            hits += 1
        else:
            misses += 1
        recall.append(hits / true_count if true_count else float("nan"))
        precision.append(hits / (hits + misses))
    if not true_count:
        return float("nan"), float("nan")
    points = [max([p for r, p in zip(recall, precision, strict=True) if r >= 0.1 * i], default=0) for i in range(11)]
    area, last = 0.0, 0.0
    for i, r in enumerate(recall):
        area += (r - last) * max(precision[i:])
        last = r
    return sum(points) / 11, area


def test_average_precision_of_two_hits_and_one_miss_by_hand():
    result = scores_of(([A, B], [A, C, B], [0.9, 0.8, 0.7]))
    # Precision is 1 up to recall 0.5, at 6 of the 11 points, and 2/3 beyond.
    expected = {"AP07": pytest.approx((6 + 5 * 2 / 3) / 11), "AP": pytest.approx(0.5 + 0.5 * 2 / 3)}
    assert result["per_class"]["cat"] == expected
    assert (result["mAP07"], result["mAP"]) == (expected["AP07"], expected["AP"])


def test_duplicates_are_false_positives_also_where_another_box_is_free():
    near_a = [0, 0, 10, 9]
    result = scores_of(([A, B], [A, near_a, B], [0.9, 0.8, 0.7]))
    assert result["mAP"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    # The second overlaps both boxes by half or more, but the first one more, and that one is taken.
    truth = [[0, 0, 10, 10], [0, 0, 10, 14]]
    result = scores_of((truth, [[0, 0, 10, 10], [0, 0, 10, 11]], [0.9, 0.8]))
    assert result["mAP"] == pytest.approx(0.5)


def test_difficult_boxes_need_not_be_found_and_may_be():
    for found, scores in (([A], [0.5]), ([A, B, B], [0.5, 0.9, 0.8])):
        assert scores_of(([A, B], found, scores, [False, True]))["mAP"] == 1
    only_difficult = scores_of(([A], [A], [0.5], [True]))
    assert np.isnan([only_difficult["mAP"], only_difficult["mAP07"]]).all()


def test_boxes_match_in_their_image_and_class_only():
    assert scores_of(([A], [], []), ([], [A], [0.5]))["mAP"] == 0
    scores = VocScores(("cat", "dog", "fish"))
    scores.update([A, B], [0, 1], [A, B], [1, 1], [0.9, 0.8])
    result = scores.result()
    assert result["per_class"]["cat"]["AP"] == 0
    assert result["per_class"]["dog"]["AP"] == pytest.approx(0.5)  # behind a wrong one
    assert np.isnan(result["per_class"]["fish"]["AP"])
    assert result["mAP"] == pytest.approx(0.25)


def test_overlap_of_exactly_one_half_is_a_hit():
    assert scores_of(([A], [[0, 0, 10, 5]], [1]))["mAP"] == 1
    assert scores_of(([A], [[0, 0, 10, 4.99]], [1]))["mAP"] == 0


def test_the_overlap_of_a_hit_can_be_chosen():
    for min_overlap, expected in ((0.69, 1), (0.71, 0)):
        scores = VocScores(("cat",), min_overlap)
        scores.update([A], [0], [[0, 0, 10, 7]], [0], [1])
        assert scores.result()["mAP"] == expected


def test_detections_of_equal_score_count_in_their_order():
    assert scores_of(([A], [A, B], [0.5, 0.5]))["mAP"] == 1
    assert scores_of(([A], [B, A], [0.5, 0.5]))["mAP"] == 0.5


def test_nothing_to_find_is_undefined_and_nothing_found_is_zero():
    for images in ((), [([], [], [])], [([], [A], [0.5])]):
        assert np.isnan(scores_of(*images)["mAP"])
    result = scores_of(([A], [], []))
    assert (result["mAP"], result["mAP07"]) == (0, 0)


def test_rules_by_hand():
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 0.5, 2 / 3])
    assert area_average(recall, precision) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert eleven_point_average(recall, precision) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_a_plain_devkit_on_random_boxes(seed):
    rng = np.random.default_rng(seed)
    images, scores = [], VocScores(("a", "b", "c"))
    for _ in range(15):
        counts = rng.integers(0, 7, 2)
        truth, extra = (np.sort(rng.integers(1, 30, (count, 2, 2)), axis=1).reshape(-1, 4) for count in counts)
        found = np.concatenate([truth, truth, extra])
        found += rng.integers(0, 4, found.shape) * np.array([-1, -1, 1, 1])
        labels = rng.integers(0, 2, len(truth))
        image = {
            "truth": truth.tolist(),
            "true_labels": labels.tolist(),
            "difficult": (rng.random(len(truth)) < 0.2).tolist(),
            "found": found.tolist(),
            "labels": [*labels.tolist(), *labels.tolist(), *rng.integers(0, 3, len(extra)).tolist()],
            "scores": (rng.integers(0, 20, len(found)) / 20).tolist(),
        }
        images.append(image)
        half_open = [(boxes - np.array([1, 1, 0, 0])).astype(np.float32) for boxes in (truth, found)]
        scores.update(half_open[0], labels, half_open[1], image["labels"], image["scores"], image["difficult"])
    result = scores.result()["per_class"]
    for label, name in enumerate("abc"):
        expected = plain_average_precisions(images, label)
        np.testing.assert_allclose([result[name]["AP07"], result[name]["AP"]], expected, rtol=0, atol=1e-12)
    assert 0.1 < result["a"]["AP"] < 0.9
    assert np.isnan(result["c"]["AP"])


def test_overlaps_by_hand():
    overlaps = box_overlaps([A, [5, 0, 15, 10], [3, 3, 3, 9]], [A, C], is_crowd=[False, False])
    np.testing.assert_allclose(overlaps, [[1, 0], [1 / 3, 0], [0, 0]])
    assert box_overlaps([[5, 0, 15, 10]], [A], is_crowd=[True]).tolist() == [[0.5]]
    assert box_overlaps(np.zeros((0, 4)), [A]).shape == (0, 1)
    assert box_overlaps([A], []).shape == (1, 0)


def masks_of(boxes):
    masks = np.zeros((len(boxes), 30, 60), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def test_masks_of_whole_boxes_score_as_their_boxes():
    truth, found, confidence = [A, B, C], [A, [20, 0, 30, 4], C, [5, 0, 15, 10]], [0.9, 0.8, 0.7, 0.95]
    scores = VocScores(("cat",), masks=True)
    scores.update(masks_of(truth), [0] * 3, masks_of(found), [0] * 4, confidence)
    scores.update([], [], [], [], [])
    expected = scores_of((truth, found, confidence), ([], [], []))
    assert scores.result() == expected
    assert 0 < expected["mAP"] < 1


def test_masks_in_equal_boxes_are_told_apart_by_their_pixels():
    """An upper and a lower triangle of one box: a detection of the lower one is a miss, though its box is right."""
    upper = np.triu(np.ones((12, 12), bool), 1)[None]
    for found, expected in ((upper, 1.0), (~upper, 0.0)):
        scores = VocScores(("cat",), masks=True)
        scores.update(upper, [0], found, [0], [0.9])
        assert scores.result()["mAP"] == expected
