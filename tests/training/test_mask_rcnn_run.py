"""Mask R-CNN from config to run folder, figures of masks, and predictions."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

import detseg
from detseg.cli import main
from detseg.config import load_config
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.data.scan import scan_split
from detseg.errors import UserError
from detseg.metrics.coco import COCO_KEYS
from detseg.tasks import create_task
from detseg.training.fit import train

CONFIG = """
task: detection
data: {{format: coco, root: {root}, train: {train}, val: {val}, test: null}}
augmentation: [{{scale_jitter: [0.8, 1.2]}}, {{random_crop: [96, 128]}}, {{flip: both}}]
model:
  name: mask_rcnn
  backbone: resnet18
  alpha: 0.0625
  weights: null
  norm: batch
  finest_stride: 16
  fpn_channels: 8
  anchor_sizes: [[32, 48], [64, 80], [96, 120]]
  head_channels: 16
  mask_channels: 8
  mask_convolutions: 1
  rpn_samples: 16
  roi_samples: 16
  train_proposals: 30
  test_proposals: 20
  score_threshold: 0.001
train:
  epochs: 1
  batch_size: 4
  optimizer: {{name: adam, learning_rate: 0.001}}
"""
SPLIT = "{{annotations: annotations/instances_{name}.json, images: JPEGImages}}"


@pytest.fixture(scope="module")
def config_file(shapes_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "tiny.yaml"
    splits = {name: SPLIT.format(name=name) for name in ("train", "val")}
    path.write_text(CONFIG.format(root=shapes_root, **splits))
    return path


@pytest.fixture(scope="module")
def run(config_file):
    return train(load_config(config_file), config_file.parent / "run")


@pytest.fixture(scope="module")
def result(run):
    assert main(["evaluate", "--run", str(run.path), "--drawings", "1"]) == 0
    return json.loads((run.evaluation / "val.json").read_text())


def test_the_data_have_masks_without_being_told(run, config_file):
    assert load_config(config_file).data.masks
    assert load_config(run.config).data.masks
    with pytest.raises(UserError, match=r"data.masks is false, but model.name: mask_rcnn learns from masks"):
        load_config(config_file, ["data.masks=false"])
    assert not load_config(config_file, ["model={name: retinanet, backbone: resnet18}"]).data.masks


def test_the_best_weights_are_those_of_the_best_masks(run):
    row = run.read_history()[-1]
    assert {"val_AP", "val_mask_AP", "val_mask_AP50", "mask_loss"} <= row.keys()
    assert json.loads((run.path / "model.json").read_text())["score_name"] == "mask_AP"


def test_masks_have_coco_s_twelve_figures_and_voc_s(result):
    assert tuple(result["coco_masks"]) == COCO_KEYS
    assert result["voc_masks"].keys() >= {"mAP07", "mAP"}
    assert result["per_class_masks"].keys() == result["per_class"].keys()


def test_detections_are_scored_alike_from_their_file(run, result, config_file, tmp_path, capsys):
    found = run.evaluation / "val_detections.json"
    assert all(entry["segmentation"]["size"] for entry in json.loads(found.read_text()))
    arguments = ["evaluate", "--detections", str(found), "--config", str(config_file), "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "coco_masks" not in json.loads((tmp_path / "val.json").read_text())
    said = "".join(capsys.readouterr())
    assert "its masks are not scored: the data are read without any; set data.masks: true" in said
    assert main([*arguments, "--set", "data.masks=true"]) == 0
    again = json.loads((tmp_path / "val.json").read_text())
    assert again["coco_masks"] == pytest.approx(result["coco_masks"], abs=2e-3)
    assert again["voc_masks"]["mAP"] == pytest.approx(result["voc_masks"]["mAP"], abs=2e-3)


def test_voc_s_object_numbers_are_masks_too(run, shapes_root):
    data = f"data={{format: voc, root: {shapes_root}, train: train, val: val}}"
    assert main(["evaluate", "--run", str(run.path), "--name", "voc", "--set", data]) == 0
    assert "coco_masks" in json.loads((run.evaluation / "voc.json").read_text())


def test_predictions_have_masks_in_json_in_drawings_and_as_object_numbers(run, shapes_root, tmp_path):
    path = min((shapes_root / "JPEGImages").glob("*val*"))
    arguments = ["predict", "--run", str(run.path), "--output", str(tmp_path), "--instance-ids"]
    assert main([*arguments, "--score-threshold", "0.001", "--max-detections", "5", str(path)]) == 0
    found = detseg.load(run.path).predict(path, score_threshold=0.001, max_detections=5)
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert len(entries) == len(found.masks) == len(found.boxes) > 1
    size = found.image.shape[:2]
    masks = [rle.decode(entry["segmentation"]) for entry in entries]
    assert {mask.shape for mask in masks} == {size}
    numbers = cv2.imread(str(tmp_path / f"{path.stem}_instances.png"), cv2.IMREAD_UNCHANGED)
    assert numbers.dtype == np.uint16
    expected = np.zeros(size, int)
    for number in range(len(masks), 0, -1):  # the best on top
        expected[masks[number - 1] > 0] = number
    np.testing.assert_array_equal(numbers, expected)
    drawing = cv2.imread(str(tmp_path / f"{path.stem}_overlay.png"))
    np.testing.assert_array_equal(drawing[..., ::-1], found.draw())


def test_instance_ids_are_refused_of_models_without_masks(trained_run, shapes_root, tmp_path, capsys):
    image = str(min((shapes_root / "JPEGImages").glob("*val*")))
    arguments = ["predict", "--run", str(trained_run), "--output", str(tmp_path / "out"), "--instance-ids", image]
    assert main(arguments) == 2
    assert "--instance-ids" in capsys.readouterr().err


class Boxes(detseg.Dataset):
    classes = ("square", "disc", "triangle", "cross", "ring")

    def __init__(self, masks):
        self._masks = masks

    def __len__(self):
        return 2

    def __getitem__(self, i):
        objects = Objects([[2, 3, 20, 30]], [0], masks=self._masks)
        return Sample(np.zeros((40, 50, 3), np.uint8), str(i), objects=objects)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, r"data\.train: its objects have no masks, which model\.name: mask_rcnn learns from"),
        (np.zeros((1, 40, 50), np.uint8), r"data\.train: no mask in 2 images has a pixel"),
    ],
)
def test_objects_without_masks_are_refused(masks, message, config_file):
    config = load_config(config_file)
    task, dataset = create_task(config, Boxes.classes), Boxes(masks)

    def prepare():
        scan = scan_split(dataset, "detection")
        task.check_training_data(scan, dataset)
        task.complete_data(dataset, scan)

    with pytest.raises(UserError, match=message):
        prepare()


def test_a_mask_that_lies_beside_its_box_is_refused():
    masks = np.zeros((1, 40, 50), np.uint8)
    masks[0, 2:10, 15:40] = 1
    with pytest.raises(UserError, match=r"objects.masks\[0\]: box and mask disagree: 35 of its 200 pixels lie in"):
        scan_split(Boxes(masks), "detection")
