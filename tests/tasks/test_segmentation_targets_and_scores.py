"""What the config's border weights and evaluation section make of a sample and of predictions."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as rle

from detseg.data.dataset import Dataset
from detseg.data.sample import Sample
from detseg.errors import UserError
from detseg.inference.prediction import Prediction
from detseg.inference.segmentation import PLAIN
from detseg.segmentation.weight_maps import border_weights
from detseg.tasks import create_task
from detseg.tasks.scoring import score_dataset

CLASSES = ("background", "cell")
SCAN = SimpleNamespace(class_pixels=np.array([100, 50]))


def two_cells(touching=False):
    """Two 6x6 cells in a row, 3 pixels apart or side by side, as (label map, instance ids)."""
    ids = np.zeros((16, 24), np.int32)
    ids[4:10, 3:9] = 7
    start = 9 if touching else 12
    ids[4:10, start : start + 6] = 300
    return (ids > 0).astype(np.uint8), ids


def sample(label_map, ids=None):
    return Sample(np.repeat(label_map[..., None] * 100, 3, axis=-1), "a", Path("a.png"), label_map, ids)


def target(quick_config, item, *overrides, classes=CLASSES):
    config = quick_config(
        "augmentation=[]", "loss=[{name: cross_entropy, border_weights: {w0: 8, sigma: 3}}]", *overrides
    )
    return create_task(config, classes).create_batches(SCAN).prepare(item, np.random.default_rng(0))[1]


def test_targets_are_label_maps_where_no_loss_has_border_weights(quick_config):
    label_map, ids = two_cells()
    prepare = create_task(quick_config("augmentation=[]"), CLASSES).create_batches(SCAN).prepare
    np.testing.assert_array_equal(prepare(sample(label_map, ids), None)[1], label_map)


def test_border_weights_stand_beside_the_labels(quick_config):
    label_map, ids = two_cells()
    made = target(quick_config, sample(label_map, ids))
    np.testing.assert_array_equal(made[..., 0], label_map)
    np.testing.assert_array_equal(made[..., 1], border_weights(ids, 8, 3))
    assert made[6, 10, 1] == pytest.approx(8 * np.exp(-((2 + 2) ** 2) / 18))


def test_components_are_the_objects_where_the_data_have_no_instances(quick_config):
    label_map, ids = two_cells()
    np.testing.assert_array_equal(target(quick_config, sample(label_map)), target(quick_config, sample(label_map, ids)))
    swapped = target(quick_config, sample(1 - label_map), classes=("cell", "background"))
    np.testing.assert_array_equal(swapped[..., 1], border_weights(ids, 8, 3))


def test_gap_parts_objects_that_touch(quick_config):
    label_map, ids = two_cells(touching=True)
    made = target(quick_config, sample(label_map, ids), "loss.0.border_weights.gap=1")
    expected = label_map.copy()
    expected[4:10, 8:10] = 0
    np.testing.assert_array_equal(made[..., 0], expected)
    assert made[6, 8, 1] == pytest.approx(8 * np.exp(-((1 + 2) ** 2) / 18))
    assert not target(quick_config, sample(label_map, ids))[..., 1][label_map > 0].any()


def test_two_losses_with_border_weights_are_refused(quick_config):
    item = "{name: cross_entropy, border_weights: {}}"
    with pytest.raises(UserError, match="border_weights are in two losses"):
        create_task(quick_config(f"loss=[{item}, {item}]"), CLASSES).create_batches(SCAN)


def test_training_data_of_a_single_class_are_refused(quick_config):
    scan = SimpleNamespace(class_pixels=np.array([0, 50]), image_sizes=((16, 24),))
    with pytest.raises(UserError, match=r"data\.train: all labelled pixels are of one class; expected at least two of"):
        create_task(quick_config(), CLASSES).check_training_data(scan, dataset=None)
    scan = SimpleNamespace(class_pixels=np.array([0, 0]), image_sizes=((16, 24),))
    with pytest.raises(UserError, match=r"data\.train: no pixel is labelled; expected at least two of"):
        create_task(quick_config(), CLASSES).check_training_data(scan, dataset=None)


def test_the_membrane_lies_between_cells_whatever_its_label(quick_config):
    label_map, ids = two_cells()
    made = target(quick_config, sample(1 - label_map), "evaluation={em: {membrane: wall}}", classes=("cell", "wall"))
    np.testing.assert_array_equal(made[..., 1], border_weights(ids, 8, 3))


def test_mistakes_in_evaluation_are_told_before_training(quick_config):
    scan = SimpleNamespace(class_pixels=np.array([9, 50]), image_sizes=((16, 24),))
    with pytest.raises(UserError, match=r"evaluation\.em\.membrane: 'wall'"):
        create_task(quick_config("evaluation={em: {membrane: wall}}"), CLASSES).check_training_data(scan, dataset=None)
    plain = quick_config("model={name: unet}", "train.backbone_learning_rate_factor=0.1")
    with pytest.raises(UserError, match="the model has no backbone"):
        create_task(plain, CLASSES).check_training_data(scan, dataset=None)


def predict(label_map):
    probabilities = np.eye(2, dtype="float32")[label_map]
    return Prediction(label_map, probabilities)


def scores(quick_config, evaluation, items, classes=CLASSES, true_instances=lambda: None):
    task = create_task(quick_config(f"evaluation={evaluation}"), classes)
    collected = task.create_scores(extra=True)
    for item, prediction in items:
        collected.update(item, prediction, true_instances)
    return collected.result(), task


def test_perfect_predictions_score_one_everywhere(quick_config):
    label_map, ids = two_cells()
    evaluation = "{boundary: {tolerance: 1}, em: {membrane: background}, instances: {}}"
    result, task = scores(quick_config, evaluation, [(sample(label_map, ids), predict(label_map))])
    assert task.evaluation_options(PLAIN).probabilities
    assert result["mean_dice"] == result["boundary"]["f"] == result["em"]["v_rand"] == 1
    assert result["instances"]["coco"]["AP"] == pytest.approx(1)
    assert result["instances"]["dsb_ap"] == 1
    text = task.format_scores(result | {"split": "val", "images": 1, "images_per_second": 1.0})
    assert "V_rand 1.0000" in text
    assert "AP50 1.0000" in text


def test_true_instances_of_the_data_set_decide_where_cells_touch(quick_config):
    """Seen as one, two touching cells are a miss; the components of the label map would call it a hit."""
    label_map, ids = two_cells(touching=True)
    masks = [rle.encode(np.asfortranarray((ids == i).astype(np.uint8))) for i in (7, 300)]
    items = [(sample(label_map, ids), predict(label_map))]
    truth = (masks, np.array([1, 1]), np.array([False, False]))
    assert scores(quick_config, "{instances: {}}", items)[0]["instances"]["f1_50"] == 1
    assert scores(quick_config, "{instances: {}}", items, true_instances=lambda: truth)[0]["instances"]["f1_50"] == 0


class Pictures(list, Dataset):
    """Samples as a data set."""

    split = "val"


def test_between_instances_of_equal_score_the_order_of_the_datas_image_ids_decides(quick_config):
    label_map, _ = two_cells()
    task = create_task(quick_config("evaluation={instances: {}}"), CLASSES)
    figures = []
    for ids in ([1, 2], [2, 1]):
        pictures = Pictures([sample(label_map), sample(np.zeros_like(label_map))])  # all hits, then all misses
        pictures.image_ids = ids
        scores = task.create_scores(extra=True)
        result = score_dataset(task, lambda image: predict(label_map), pictures, scores=scores)
        figures.append(result["instances"]["coco"]["AP"])
    assert figures == pytest.approx([1, 0.5])


def test_what_is_found_in_ignored_pixels_counts_nowhere(quick_config):
    label_map, ids = two_cells()
    label_map[ids == 300] = 255
    predicted = (ids > 0).astype(np.uint8)
    result, _ = scores(quick_config, "{instances: {}}", [(sample(label_map), predict(predicted))])
    assert result["instances"]["dsb_ap"] == result["instances"]["f1_50"] == 1


def test_an_image_without_objects_is_scored(quick_config):
    empty = np.zeros((16, 24), np.uint8)
    result, _ = scores(quick_config, "{instances: {}}", [(sample(empty), predict(empty))])
    assert np.isnan(result["instances"]["dsb_ap"])


def test_classes_that_a_score_cannot_use_are_refused(quick_config):
    with pytest.raises(UserError, match=r"evaluation\.em\.membrane: 'wall'; expected one of two classes"):
        scores(quick_config, "{em: {membrane: wall}}", [])
    with pytest.raises(UserError, match="the background has to be the first class"):
        scores(quick_config, "{instances: {}}", [], classes=("cell", "background"))
