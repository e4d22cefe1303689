"""Ground truth given as detections scores 1.0: data sets read as configs say, through a results file and its scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.config import load_config
from detseg.data.masks import encode_masks
from detseg.data.readers.create import create_dataset
from detseg.inference.prediction import Prediction
from detseg.inference.results_files import coco_entries, write_coco_results, write_voc_results
from detseg.tasks import create_task
from detseg.tasks.scoring import score_detections

DATASETS = Path(__file__).resolve().parents[2] / "../shared/datasets"
DATA = {
    "bccd as XML": "format: voc, root: {root}/bccd, train: train, val: val, test: test, "
    "classes: [RBC, WBC, Platelets], voc_boxes: continuous, on_bad_box: drop",
    "bccd as JSON": "format: coco, root: {root}/bccd, classes: [RBC, WBC, Platelets], "
    "train: {{annotations: instances_train.json, images: JPEGImages}}, "
    "val: {{annotations: instances_val.json, images: JPEGImages}}, "
    "test: {{annotations: instances_test.json, images: JPEGImages}}",
    "nuclei": "format: coco, root: {root}/nuclei, "
    "train: {{annotations: annotations/instances_train.json, images: images}}, "
    "val: {{annotations: annotations/instances_val.json, images: images}}, "
    "test: {{annotations: annotations/instances_test.json, images: images}}",
    "coco_tiny": "format: coco, root: {root}/coco_tiny, "
    "train: {{annotations: annotations/instances_train2017.json, images: images/train2017}}, "
    "val: {{annotations: annotations/instances_val2017.json, images: images/val2017}}",
}
CONFIG = """
task: detection
data: {{{data}}}
model: {{name: retinanet, backbone: resnet18}}
train: {{epochs: 1, batch_size: 1, optimizer: {{name: sgd, learning_rate: 0.1}}}}
"""
SPLITS = [(name, split) for name in DATA for split in ("train", "val", "test")]
SPLITS.remove(("coco_tiny", "test"))  # it has none
QUICK_MASKS = [("nuclei", "test")]  # reading masks takes seconds


def opened(name, split, masks, folder):
    """(task, dataset) of a config; the test is skipped where the data aren't there."""
    root = DATASETS / name.split()[0]
    if not root.is_dir():
        pytest.skip(f"no data set at {root}")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(data=DATA[name].format(root=DATASETS)))
    config = load_config(path, ["data.masks=true"] if masks else [])
    dataset = create_dataset(config.data, split, config.task)
    return create_task(config, dataset.classes), dataset


def image_sizes(dataset):
    return [Image.open(path).size[::-1] for path in dataset.image_paths]


def true_detections(dataset):
    """(Objects, Prediction) of every image."""
    for i in range(len(dataset)):
        objects = dataset.objects(i)
        masks = None if objects.masks is None else encode_masks(objects.masks)
        scores = np.ones(len(objects), np.float32)
        yield objects, Prediction(boxes=objects.boxes, labels=objects.labels, scores=scores, masks=masks)


def check_scores(result, scores, dataset, truth):
    kinds = ("coco", "coco_masks") if dataset.has_masks else ("coco",)
    figures = [result[kind][name] for kind in kinds for name in ("AP", "AP50", "AP75")]
    figures += [result["voc"]["mAP"], result["voc"]["mAP07"]]
    for kind in ("per_class", "per_class_masks") if dataset.has_masks else ("per_class",):
        figures += [values["AP"] for values in result[kind].values() if not np.isnan(values["AP"])]
    assert figures == pytest.approx([1.0] * len(figures), abs=1e-9)
    # Not 1 by definition in bccd's train split: in BloodImage_00032 a red cell of 9118 square pixels, where large ones
    # begin at 9216, overlaps a large one by IoU 0.54. COCOeval gives that one its detection, scores being equal.
    of_sizes = [result[kind][name] for kind in kinds for name in ("APs", "APm", "APl")]
    assert min(figure for figure in of_sizes if not np.isnan(figure)) > 0.9999
    matrix = scores._scores.confusion.matrix
    assert matrix.trace() == matrix.sum() == sum((~objects.is_crowd).sum() for objects, _ in truth)


def check_as_coco_results(name, split, masks, folder):
    task, dataset = opened(name, split, masks, folder)
    truth, path = list(true_detections(dataset)), folder / "truth.json"
    pairs = zip(dataset.image_ids, truth, strict=True)
    entries = [entry for i, (_, found) in pairs for entry in coco_entries(found, i, dataset.category_ids)]
    write_coco_results(path, entries)
    check_scores(*score_detections(task, dataset, image_sizes(dataset), path), dataset, truth)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_ground_truth_as_coco_results_scores_one(name, split, tmp_path):
    check_as_coco_results(name, split, False, tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(*item, marks=[] if item in QUICK_MASKS else [pytest.mark.slow])
        for item in SPLITS
        if not item[0].startswith("bccd")
    ],
)
def test_masks_of_the_ground_truth_score_one(name, split, tmp_path):
    check_as_coco_results(name, split, True, tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_ground_truth_as_voc_results_scores_one(split, tmp_path):
    task, dataset = opened("bccd as XML", split, False, tmp_path)
    truth, folder = list(true_detections(dataset)), tmp_path / "comp4"
    found = {name: found for name, (_, found) in zip(dataset.names, truth, strict=True)}
    write_voc_results(folder, split, found, dataset.classes)
    check_scores(*score_detections(task, dataset, image_sizes(dataset), folder), dataset, truth)
