"""From a config's data section to a dataset."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pydantic import Field, ValidationError

from detseg.config import load_config
from detseg.config.augmentation import Flip, ObjectCrop, ObjectTransform
from detseg.config.data import (
    CocoData,
    CustomData,
    DetectionData,
    FolderData,
    VocData,
    VocSegmentationData,
)
from detseg.config.messages import explain
from detseg.config.tree import read_tree
from detseg.data.readers.coco import CocoDetection, CocoSegmentation
from detseg.data.readers.create import create_dataset
from detseg.data.readers.folder import FolderSegmentation, InstanceFolder
from detseg.data.readers.voc import VOCDetection, VOCSegmentation
from detseg.errors import UserError
from detseg.fields import Section, Several


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
    return SECTIONS[name](format=name, root=str(root), train=train, **more)


SECTIONS = {"voc-segmentation": VocSegmentationData, "folder": FolderData, "coco": CocoData, "voc": VocData}
LAYOUTS = {
    "voc-segmentation": (VOCSegmentation, "train"),
    "folder": (FolderSegmentation, {"images": "JPEGImages", "masks": "SegmentationClass"}),
    "coco": (CocoSegmentation, {"annotations": "instances.json", "images": "JPEGImages"}),
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
    assert str(dataset.label_paths[0]) in dataset.labels_source(0)
    other = create_dataset(data_section(root, name, train, ignore_label=254), "train")
    assert dataset.fingerprint() == create_dataset(data_section(root, name, train), "train").fingerprint()
    assert dataset.fingerprint() != other.fingerprint()
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
    with pytest.raises(UserError, match=r"data\.format: 'voc-segmentation' has no boxes.*voc, coco, folder"):
        create_dataset(section, "train", "detection")


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("voc-segmentation", "{annotations: a, images: b}"),
        ("folder", "train"),
        ("folder", "{annotations: a, images: b}"),
        ("coco", "train"),
    ],
)
def test_a_split_of_another_formats_form_is_refused_by_the_config(tmp_path, name, train):
    with pytest.raises(UserError, match=r"data\.train"):
        load_segmentation(tmp_path, f"{{format: {name}, root: r, train: {train}}}")


def test_a_custom_data_set_is_given_from_python():
    with pytest.raises(UserError, match=r"data\.format: custom: .* detseg\.train\(config, run, train_set=\.\.\."):
        create_dataset(CustomData(format="custom"), "train")


def test_reading_data_imports_neither_keras_nor_tensorflow():
    code = (
        "import sys, detseg.data.readers.create, detseg.data.scan; "
        "sys.exit(str({'keras', 'tensorflow', 'jax'} & sys.modules.keys()) if "
        "{'keras', 'tensorflow', 'jax'} & sys.modules.keys() else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def load_segmentation(folder, data):
    (folder / "c.yaml").write_text(
        f"task: segmentation\ndata: {data}\nmodel: {{name: fcn32s, backbone: mobilenetv2}}\n"
        "train: {epochs: 1, batch_size: 1, optimizer: {name: sgd, learning_rate: 0.1}}\n"
    )
    return load_config(folder / "c.yaml")


def test_a_config_file_leads_to_a_dataset(root, tmp_path):
    data = f"{{format: coco, root: {root}, train: {{annotations: instances.json, images: JPEGImages}}}}"
    dataset = create_dataset(load_segmentation(tmp_path, data).data, "train")
    np.testing.assert_array_equal(dataset[0].label_map, np.eye(4, 6))


# ---- detection: the sections of the config ------------------------------------------------------------------------


class DetectionConfig(Section):
    data: DetectionData = Field(discriminator="format")
    augmentation: Several[ObjectTransform] = ()


def load_detection(folder, text):
    """What load_config will do once the task has models."""
    (folder / "c.yaml").write_text(text)
    tree, problems = read_tree(folder / "c.yaml", ())
    assert not problems
    try:
        return DetectionConfig.model_validate(tree.plain())
    except ValidationError as error:
        raise UserError("\n".join(explain(error, tree, DetectionConfig))) from error


VOC = "data: {{format: voc, root: {root}, train: train{more}}}\n"
COCO = "data: {{format: coco, root: {root}, train: {{annotations: instances.json, images: JPEGImages}}{more}}}\n"
FOLDER = (
    "data: {{format: folder, root: {root}, train: {{images: JPEGImages, instances: SegmentationObject, "
    "masks: SegmentationClass}}{more}}}\n"
)


@pytest.fixture
def objects_root(root):
    """The image of `root` with an object in all three layouts of detection."""
    (root / "ImageSets/Main").mkdir()
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text(
        "<annotation><object><name>tree</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
        "</object></annotation>"
    )
    content = json.loads((root / "instances.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, 4, 4]
    (root / "instances.json").write_text(json.dumps(content))
    (root / "SegmentationObject").mkdir()
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(root / "SegmentationObject/a.png")
    (root / "classes.txt").write_text("Background\ntree\n")
    return root


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (VOC.replace("{more}", ", masks: true, on_bad_box: drop"), VOCDetection),
        (COCO.replace("{more}", ", masks: true"), CocoDetection),
        (FOLDER.replace("{more}", ""), InstanceFolder),
    ],
)
def test_every_format_gives_the_same_objects(objects_root, text, kind):
    config = load_detection(objects_root, text.format(root=objects_root))
    dataset = create_dataset(config.data, "train", "detection")
    assert type(dataset) is kind
    sample = dataset[0]
    assert sample.image.shape == (4, 6, 3)
    assert sample.objects.boxes.tolist() == [[0, 0, 4, 4]]
    assert sample.objects.labels.tolist() == [0]
    np.testing.assert_array_equal(sample.objects.masks, np.eye(4, 6)[None])
    assert dataset.has_masks
    assert dataset.classes == ("tree",)
    assert (dataset.split, dataset.channels, dataset.names) == ("train", 3, ["a"])
    assert dataset.image_paths == [objects_root / "JPEGImages/a.jpg"]
    assert len(dataset.category_ids) == len(dataset.image_ids) == 1
    assert dataset.fingerprint() == pickle.loads(pickle.dumps(dataset)).fingerprint()
    assert str(dataset.label_paths[0]) in dataset.labels_source(0)
    masks, labels, crowds = dataset.true_instances(0)
    assert (len(masks), labels.tolist(), crowds.tolist()) == (1, [0], [False])
    assert len(pickle.loads(pickle.dumps(dataset))[0].objects) == 1


def test_the_configs_settings_of_objects_reach_the_dataset(objects_root):
    (objects_root / "classes.txt").unlink()
    more = ", voc_boxes: continuous, classes: {tree: oak}, channels: 1"
    config = load_detection(objects_root, VOC.format(root=objects_root, more=more))
    dataset = create_dataset(config.data, "train", "detection")
    assert dataset[0].image.shape == (4, 6, 1)
    assert dataset.classes == ("oak",)
    assert dataset.objects(0).boxes.tolist() == [[1, 1, 4, 4]]
    assert dataset.objects(0).masks is None
    with pytest.raises(UserError, match=r"data\.val: not set.*Set are: train"):
        create_dataset(config.data, "val", "detection")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            VOC.replace("{more}", ", ignore_label: 255"),
            "data.ignore_label: unknown key; it is about label maps, for task:",
        ),
        (COCO.replace("{more}", ", palette: {{}}"), "data.palette: unknown key; it is about label maps, for task:"),
        (COCO.replace("{more}", ", voc_boxes: continuous"), "data.voc_boxes: unknown key; COCO has only one kind"),
        (FOLDER.replace("{more}", ", on_bad_box: drop"), "data.on_bad_box: unknown key; boxes are those of the masks"),
        (
            VOC.replace("{more}", ", voc_boxes: exclusive"),
            "voc_boxes: got 'exclusive', expected one of inclusive, contin",
        ),
        (VOC.replace("{more}", ", on_bad_box: clip"), "data.on_bad_box: got 'clip', expected one of refuse, drop"),
        (VOC.replace("format: voc", "format: voc-segmentation").replace("{more}", ""), "one of voc, coco, folder"),
        (
            VOC.replace("{more}", "") + "augmentation: [{{random_crop: {{size: [9, 9], rare_classes: 0.5}}}}]",
            "augmentation.0.random_crop.rare_classes: unknown key; it is for task: segmentation",
        ),
        (
            VOC.replace("{more}", "") + "augmentation: [{{random_crop: {{size: [9, 9], min_visibility: 2}}}}]",
            "augmentation.0.random_crop.min_visibility: got 2, expected a number <= 1",
        ),
    ],
)
def test_keys_that_make_no_sense_for_objects_are_refused(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_detection(tmp_path, text.format(root="r"))
    assert message in str(error.value)


def test_crops_of_objects_are_written_as_they_were_read(tmp_path):
    text = VOC.format(root="r", more="") + (
        "augmentation: [{random_crop: [9, 8]}, {flip: both}, {random_crop: {size: [9, 8], min_visibility: 0.5}}]"
    )
    config = load_detection(tmp_path, text)
    assert [type(item) for item in config.augmentation] == [ObjectCrop, Flip, ObjectCrop]
    assert config.model_dump(mode="json")["augmentation"] == [
        {"random_crop": [9, 8]},
        {"flip": "both"},
        {"random_crop": {"size": [9, 8], "min_visibility": 0.5}},
    ]
