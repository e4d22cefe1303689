import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.masks import encode_instances, encode_masks
from detseg.inference.instances import find_class_instances
from detseg.metrics.coco import COCO_KEYS
from detseg.metrics.instances import IOU_THRESHOLDS, InstanceScores

NUCLEI = Path(__file__).resolve().parents[2] / "../shared/datasets/nuclei"
WIDTH = 20


def rows(*spans):
    """RLEs of masks in an image of one row, each a span (start, end)."""
    masks = np.zeros((len(spans), 1, WIDTH), np.uint8)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[0, start:end] = 1
    return encode_masks(masks)


def scores_of(*images):
    """Of images (true spans, found spans) or (true spans, found spans, scores)."""
    scores = InstanceScores({1: "nucleus"})
    for truth, found, *confidence in images:
        confidence = confidence[0] if confidence else [1.0] * len(found)
        scores.update(rows(*truth), [1] * len(truth), rows(*found), [1] * len(found), confidence)
    return scores.result()


def random_maps(seed, count=4):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        blocks = rng.integers(0, 6, (4, 5)).repeat(8, 0).repeat(9, 1)
        truth = np.where(rng.random(blocks.shape) < 0.97, blocks, 0)
        found = np.roll(np.where(rng.random(blocks.shape) < 0.9, blocks, rng.integers(0, 7, blocks.shape)), seed % 3, 1)
        yield *(np.unique(x, return_inverse=True)[1].reshape(x.shape) for x in (truth, found)), rng


def test_data_science_bowl_score_and_f1_by_hand():
    # One found at IoU 6/8 = 0.75, one missed, one invented: at 0.5, 0.55, 0.6, 0.65, 0.7 it is 1 of 3, above 0 of 4.
    first = [(0, 8), (10, 14)], [(0, 6), (16, 19)]
    assert scores_of(first)["dsb_ap"] == pytest.approx(5 / 10 / 3)
    assert scores_of(first)["f1_50"] == pytest.approx(2 / (2 + 1 + 1))
    perfect = [(0, 8)], [(0, 8)]
    assert scores_of(first, perfect)["dsb_ap"] == pytest.approx((5 / 30 + 1) / 2)
    assert scores_of(first, perfect)["f1_50"] == pytest.approx(4 / (4 + 1 + 1))


def test_an_iou_at_the_threshold_matches_in_coco_and_not_in_the_data_science_bowl():
    result = scores_of(([(0, 8)], [(0, 4)]))
    assert result["coco"]["AP50"] == pytest.approx(1)
    assert result["coco"]["AP"] == pytest.approx(0.1)
    assert result["dsb_ap"] == result["f1_50"] == 0


def test_coco_average_precision_of_two_hits_and_one_miss_by_hand():
    truth, found = [(0, 4), (10, 14)], [(0, 4), (6, 8), (10, 14)]
    result = scores_of((truth, found, [0.9, 0.8, 0.7]))
    # Precision is 1 at the 51 recalls 0, 0.01 .. 0.5 and 2/3 at the other 50.
    expected = (51 + 50 * 2 / 3) / 101
    assert result["coco"]["AP"] == pytest.approx(expected)
    assert result["per_class"] == {"nucleus": {"AP": pytest.approx(expected), "AP50": pytest.approx(expected)}}
    assert result["coco"]["AR1"] == 0.5
    assert result["coco"]["AR100"] == 1
    assert np.isnan(result["coco"]["APl"])  # there is nothing large
    assert result["dsb_ap"] == pytest.approx(2 / 3)


def test_images_without_instances_and_without_finds():
    nothing = [], []
    for key, value in scores_of(nothing)["coco"].items():
        assert np.isnan(value), key
    for result in (scores_of(), scores_of(nothing)):
        assert np.isnan([result["dsb_ap"], result["f1_50"], result["per_class"]["nucleus"]["AP"]]).all()
    missed, invented, found = ([(0, 4)], []), ([], [(0, 4)]), ([(2, 6)], [(2, 6)])
    result = scores_of(missed)
    assert (result["coco"]["AP"], result["coco"]["AR100"], result["dsb_ap"], result["f1_50"]) == (0, 0, 0, 0)
    result = scores_of(invented)
    assert np.isnan(result["coco"]["AP"])
    assert (result["dsb_ap"], result["f1_50"]) == (0, 0)
    result = scores_of(missed, invented, found, nothing)
    assert result["dsb_ap"] == pytest.approx(1 / 3)
    assert result["f1_50"] == pytest.approx(2 / 4)
    assert result["coco"]["AR100"] == 0.5


def test_what_lies_in_a_crowd_counts_nowhere():
    scores = InstanceScores({1: "cell"})
    truth, found = rows((0, 4), (8, 18)), rows((0, 4), (12, 16))
    scores.update(truth, [1, 1], found, [1, 1], [0.9, 0.8], true_crowds=[False, True])
    result = scores.result()
    assert [result["coco"]["AP"], result["dsb_ap"], result["f1_50"]] == pytest.approx([1, 1, 1])
    scores = InstanceScores({1: "cell"})
    # Of the second, 3 of 4 pixels lie in the crowd: it counts nowhere up to 0.7, and is wrong above.
    scores.update(truth, [1, 1], rows((0, 4), (7, 11)), [1, 1], [0.9, 0.8], true_crowds=[False, True])
    assert scores.result()["dsb_ap"] == pytest.approx((5 * 1 + 5 * 1 / 2) / 10)
    only_crowd = InstanceScores({1: "cell"})
    only_crowd.update(rows((0, 9)), [1], [], [], [], true_crowds=[True])
    only_crowd.update(rows((0, 9)), [1], rows((2, 6)), [1], [0.5], true_crowds=[True])
    result = only_crowd.result()
    assert np.isnan([result["dsb_ap"], result["f1_50"], result["coco"]["AP"]]).all()


def test_instances_match_those_of_their_class_only():
    scores = InstanceScores({1: "cat", 2: "dog", 5: "fish"})
    scores.update(rows((0, 4), (8, 12)), [1, 2], rows((0, 4), (8, 12)), [2, 2], [0.9, 0.8])
    result = scores.result()
    assert result["per_class"]["cat"]["AP"] == 0
    assert result["per_class"]["dog"]["AP50"] == pytest.approx(1 / 2)  # behind a wrong one
    assert np.isnan(result["per_class"]["fish"]["AP"])
    assert result["dsb_ap"] == pytest.approx(1 / 3)


def test_splitting_and_merging_objects_lowers_every_score():
    truth = [(0, 6), (7, 12), (14, 20)]
    split, merged = [(0, 3), (3, 6), (7, 12), (14, 20)], [(0, 12), (14, 20)]
    for found in (split, merged):
        result = scores_of((truth, found))
        assert result["dsb_ap"] < 0.7
        assert result["f1_50"] < 0.9
        assert result["coco"]["AP"] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_data_science_bowl_score_equals_plain_counting(seed):
    scores, expected, totals = InstanceScores({1: "cell"}), [], [0, 0]
    for truth, found, rng in random_maps(seed):
        true_codes, codes = encode_instances(truth), encode_instances(found)
        order = rng.permutation(len(codes))
        scores.update(
            true_codes, [1] * len(true_codes), [codes[i] for i in order], [1] * len(codes), rng.random(len(codes))
        )
        ious = [
            ((truth == t) & (found == f)).sum() / ((truth == t) | (found == f)).sum()
            for t in range(1, truth.max() + 1)
            for f in range(1, found.max() + 1)
        ]
        hits = [sum(iou > threshold for iou in ious) for threshold in IOU_THRESHOLDS]
        count = len(true_codes) + len(codes)
        expected.append(np.mean([h / (count - h) for h in hits]))
        totals[0] += hits[0]
        totals[1] += count
    assert scores.result()["dsb_ap"] == pytest.approx(np.mean(expected))
    assert scores.result()["f1_50"] == pytest.approx(2 * totals[0] / totals[1])
    assert 0 < np.mean(expected) < 1


def test_overlapping_masks_are_matched_so_that_as_many_as_can_be_are():
    # The first find has IoU 9/11 with the first true mask and 7/13 with the second, the second one 6/10 and 2/14.
    truth, found = [(0, 10), (4, 14)], [(1, 11), (0, 6)]
    assert scores_of((truth, found, [0.9, 0.8]))["f1_50"] == 1


def test_figures_equal_those_of_cocoeval_on_files(tmp_path):
    scores = InstanceScores({3: "cell", 8: "hole"})
    images, annotations, results = [], [], []
    for index, (truth, found, rng) in enumerate(random_maps(1), start=1):
        images.append({"id": index, "height": truth.shape[0], "width": truth.shape[1]})
        true_codes, codes = encode_instances(truth), encode_instances(found)
        true_labels, labels = rng.choice([3, 8], len(true_codes)), rng.choice([3, 8], len(codes))
        confidence = rng.random(len(codes))
        scores.update(true_codes, true_labels, codes, labels, confidence)
        for code, label in zip(true_codes, true_labels.tolist(), strict=True):
            segmentation = code | {"counts": code["counts"].decode()}
            more = {"segmentation": segmentation, "area": int(rle.area(code)), "bbox": rle.toBbox(code).tolist()}
            annotations.append({"image_id": index, "category_id": label, "iscrowd": 0, **more})
        for code, label, score in zip(codes, labels.tolist(), confidence.tolist(), strict=True):
            segmentation = code | {"counts": code["counts"].decode()}
            results.append({"image_id": index, "category_id": label, "segmentation": segmentation, "score": score})
    annotations = [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3}, {"id": 8}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    figures = scores.result()["coco"]
    np.testing.assert_array_equal([figures[key] for key in COCO_KEYS], expected)
    assert 0 < figures["AP"] < 1


def test_nothing_is_printed(capsys):
    scores_of(([(0, 4)], [(0, 4)]))
    assert capsys.readouterr().out == ""


def test_ground_truth_as_finds_scores_one_on_nuclei():
    # Two images have masks that overlap by a few pixels.
    path = NUCLEI / "annotations/instances_test.json"
    if not path.exists():
        pytest.skip(f"no data set at {NUCLEI}")
    annotations = defaultdict(list)
    for annotation in json.loads(path.read_text())["annotations"]:
        annotations[annotation["image_id"]].append(annotation["segmentation"])
    scores, parted = InstanceScores({1: "nucleus"}), InstanceScores({1: "nucleus"})
    for codes in annotations.values():
        labels = [1] * len(codes)
        scores.update(codes, labels, codes, labels, np.linspace(1, 0.5, len(codes)))
        foreground = rle.decode(rle.merge(codes))
        ids, _, confidence = find_class_instances(np.eye(2, dtype=np.float32)[foreground], method="watershed")
        parted.update(codes, labels, encode_instances(ids), [1] * len(confidence), confidence)
    result = scores.result()
    assert result["coco"]["AP"] == result["coco"]["AR100"] == result["dsb_ap"] == result["f1_50"] == 1
    assert parted.result()["dsb_ap"] > 0.8  # most nuclei that touch are told apart again
