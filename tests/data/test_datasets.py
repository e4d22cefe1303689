"""From a config's data section to a dataset."""

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from detseg.data.coco import CocoSegmentation
from detseg.data.datasets import create_dataset
from detseg.data.folder import FolderSegmentation
from detseg.data.voc import VOCSegmentation
from detseg.errors import UserError


@pytest.fixture
def root(tmp_path):
    """One image in all three layouts."""
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages/a.jpg")
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
    counts = [0, 1, *[4, 1] * 3, 8]
    content = {
        "images": [image],
        "categories": [{"id": 4, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "segmentation": {"size": [4, 6], "counts": counts}},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def data_section(root, name, train, **more):
    common = {"val": None, "test": None, "classes": None, "channels": 3, "ignore_label": 255, "palette": None}
    return SimpleNamespace(format=name, root=str(root), train=train, **{**common, **more})


LAYOUTS = {
    "voc-segmentation": (VOCSegmentation, "train"),
    "folder": (FolderSegmentation, SimpleNamespace(images="JPEGImages", masks="SegmentationClass")),
    "coco": (CocoSegmentation, SimpleNamespace(annotations="instances.json", images="JPEGImages")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_format_gives_the_same_sample_and_the_same_offer(root, name):
    kind, train = LAYOUTS[name]
    dataset = create_dataset(data_section(root, name, train), "train")
    assert type(dataset) is kind
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset[0].label_map, np.eye(4, 6))
    np.testing.assert_array_equal(dataset.label_map(0), dataset[0].label_map)
    np.testing.assert_array_equal(dataset.image(0), dataset[0].image)
    assert dataset.classes[1] == "tree"
    assert (dataset.split, dataset.ignore_label, dataset.channels) == ("train", 255, 3)
    assert dataset.names == ["a"]
    assert dataset.image_paths == [root / "JPEGImages/a.jpg"]
    assert str(dataset.label_files()[0]) in dataset.labels_source(0)
    assert json.loads(json.dumps(dataset.settings()))["ignore_label"] == 255
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[0].label_map, np.eye(4, 6))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_configs_settings_reach_the_dataset(root, name):
    section = data_section(root, name, LAYOUTS[name][1], classes={"tree": "oak"}, channels=1, ignore_label=9)
    dataset = create_dataset(section, "train")
    assert dataset.classes[1] == "oak"
    assert dataset[0].image.shape == (4, 6, 1)
    assert dataset.ignore_label == 9


def test_splits_and_formats_that_are_not_there_are_refused(root):
    section = data_section(root, "voc-segmentation", "train")
    with pytest.raises(UserError, match=r"data\.val: not set.*Set are: train"):
        create_dataset(section, "val")
    with pytest.raises(UserError, match=r"data\.format: 'voc' has no semantic labels.*voc-segmentation"):
        create_dataset(data_section(root, "voc", "train"), "train")


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("voc-segmentation", SimpleNamespace(annotations="a", images="b")),
        ("folder", "train"),
        ("folder", SimpleNamespace(annotations="a", images="b", masks=None)),
        ("coco", "train"),
    ],
)
def test_a_split_of_another_formats_form_is_refused(root, name, train):
    with pytest.raises(UserError, match=r"data\.train: expected"):
        create_dataset(data_section(root, name, train), "train")


def test_reading_data_imports_neither_keras_nor_tensorflow():
    code = (
        "import sys, detseg.data.datasets, detseg.data.validate; "
        "sys.exit(str({'keras', 'tensorflow', 'jax'} & sys.modules.keys()) if "
        "{'keras', 'tensorflow', 'jax'} & sys.modules.keys() else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_config_file_leads_to_a_dataset(root, tmp_path):
    from detseg.config import load_config

    (tmp_path / "c.yaml").write_text(
        "task: segmentation\n"
        f"data: {{format: coco, root: {root}, train: {{annotations: instances.json, images: JPEGImages}}}}\n"
        "model: {name: fcn32s, backbone: mobilenetv2}\ntrain: {epochs: 1, batch_size: 1, "
        "optimizer: {name: sgd, learning_rate: 0.1}}\n"
    )
    dataset = create_dataset(load_config(tmp_path / "c.yaml").data, "train")
    np.testing.assert_array_equal(dataset[0].label_map, np.eye(4, 6))
