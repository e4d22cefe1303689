"""torchvision's models, saved by it with random weights, say the same here: where DETSEG_TORCH_PYTHON names a Python
that has it."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from detseg.backbones.backbone import Preprocess
from detseg.backbones.create import create_backbone
from detseg.config import load_config
from detseg.pretrained.catalogue import COCO_CLASSES, COCO_NAMES, VOC_CLASSES
from detseg.tasks import create_task

TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torchvision") and sys.executable)
pytestmark = pytest.mark.skipif(
    TORCH_PYTHON is None, reason="no torchvision here, and DETSEG_TORCH_PYTHON names no Python with it"
)
BACKBONES = {
    "vgg16": ("vgg16", "torchvision"),
    "resnet18": ("resnet18", None),
    "resnet50": ("resnet50", "b"),
    "mobilenet_v2": ("mobilenetv2", "torchvision"),
    "mobilenet_v3_small": ("mobilenetv3_small", "torchvision"),
    "mobilenet_v3_large": ("mobilenetv3_large", "torchvision"),
}
MORE_BACKBONES = {
    "vgg19": ("vgg19", "torchvision"),
    "resnet34": ("resnet34", None),
    "resnet101": ("resnet101", "b"),
    "resnet152": ("resnet152", "b"),
}
SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
MORE_SEGMENTERS = ("fcn_resnet101", "deeplabv3_resnet101")
DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)


def slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Function of a model's name -> (path of its .pth, what it says)."""
    folder = tmp_path_factory.mktemp("torchvision")

    def save(name):
        if not (folder / f"{name}.npz").is_file():
            command = [TORCH_PYTHON, str(Path(__file__).with_name("torchvision_models.py")), str(folder), name]
            run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            assert run.returncode == 0, run.stderr
        return folder / f"{name}.pth", np.load(folder / f"{name}.npz")

    return save


def config_of(preset, weights, task="detection", **model):
    data = {"format": "coco", "root": "r", "train": {"annotations": "a", "images": "i"}}
    train = {"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
    model = {"preset": preset, "weights": str(weights), **model}
    return load_config({"task": task, "data": data, "model": model, "train": train})


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("name", [*BACKBONES, *slow(MORE_BACKBONES)])
def test_features_of_backbones(name, saved):
    path, theirs = saved(name)
    backbone, variant = (BACKBONES | MORE_BACKBONES)[name]
    model = create_backbone(backbone, weights=str(path), variant=variant)
    assert all(module.startswith(("fc", "classifier")) for module in model.unused_layers)
    features = model(Preprocess(model.preprocessing)(theirs["images"]))[32]
    assert relative_error(np.array(features), theirs["features"]) < 1e-5


@pytest.mark.parametrize("name", [*SEGMENTERS, *slow(MORE_SEGMENTERS)])
def test_logits_of_segmenters(name, saved, caplog):
    path, theirs = saved(name)
    config = config_of(f"{name}_coco", path, "segmentation", auxiliary_weight=0.5 * ("resnet" in name))
    with caplog.at_level(logging.INFO, "detseg"):
        model, _ = create_task(config, VOC_CLASSES).create_model()
    assert "classes taken over: background, aeroplane, bicycle" in caplog.text
    said = model(theirs["images"])
    logits = said["logits"] if "resnet" in name else said
    assert relative_error(np.array(logits), theirs["logits"]) < 1e-4
    if "resnet" in name:
        assert relative_error(np.array(said["auxiliary_logits"]), theirs["auxiliary"]) < 1e-4


def predictions(config, images):
    task = create_task(config, COCO_CLASSES)
    model, _ = task.create_model()
    return task.create_inference(model).batch(list(images))


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_scores_and_masks_of_detectors(name, saved):
    path, theirs = saved(name)
    more = {"mask_paste": "torchvision"} if "mask" in name else {}
    most = 2000 if "retina" in name else 100
    found = predictions(config_of(f"{name}_coco", path, max_detections=most, **more), theirs["images"])
    label_of = {i: COCO_CLASSES.index(name) for i, name in enumerate(COCO_NAMES, 1) if name is not None}
    for i, ours in enumerate(found):
        labels = np.array([label_of[label] for label in theirs[f"labels {i}"].tolist()])
        boxes, scores = theirs[f"boxes {i}"], theirs[f"scores {i}"]
        has_area = (boxes[:, 2:] - boxes[:, :2] >= 0.01).all(axis=1)  # RetinaNet: theirs keeps others in our places
        boxes, scores, labels = boxes[has_area], scores[has_area], labels[has_area]
        assert len(ours.boxes) == len(boxes) > 10 or (not has_area.all() and len(ours.boxes) > len(boxes))
        errors = np.abs(ours.boxes[:, None] - boxes).max(axis=2) + 1e3 * (ours.labels[:, None] != labels)  # (N, M)
        twins, is_there = errors.argmin(axis=0), errors.min(axis=0) < 1e-2  # of theirs: equal scores change places
        is_last = scores < scores[-1] + 1e-4  # of equal ones, others may be beyond the most
        assert (is_there | is_last).mean() >= (1.0 if has_area.all() else 0.99)
        assert is_there.mean() >= 0.97
        twins = twins[is_there]
        assert len(set(twins)) == len(twins)
        np.testing.assert_allclose(ours.scores[twins], scores[is_there], atol=1e-4)
        if "mask" in name:
            masks = np.stack([rle.decode(ours.masks[twin]) for twin in twins]) > 0
            true = theirs[f"masks {i}"][has_area][is_there, 0] >= 0.5
            assert true.any()
            assert (masks & true).sum() / (masks | true).sum() > 0.999
