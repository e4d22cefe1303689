"""Every file in configs/ builds its model and takes one training step on a small data set of the same layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detseg.config import load_config
from detseg.data.classes import VOC_CLASSES
from detseg.data.palette import voc_palette, write_index_png
from detseg.data.proposals import ProposalSet, describe_proposals, proposal_path, write_proposals
from detseg.data.readers.create import create_dataset
from detseg.data.scan import scan_split
from detseg.evaluation import evaluate
from detseg.tasks import create_task
from detseg.tasks.scoring import score_dataset
from detseg.training.fit import train

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
CLASSES = ("sky", "road", "car")
SMALL = ["train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=2", "model.weights=null"]


def write_voc_segmentation(root, config):
    """Two random pictures a split, in the layout that a config's data section names."""
    rng, data = np.random.default_rng(0), config.data
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = VOC_CLASSES if data.classes == "voc" else CLASSES
    if config.evaluation.em is not None:
        names = (config.evaluation.em.membrane, "interior")
    if data.classes is None:
        (root / "classes.txt").write_text("\n".join(names))
    for split in {data.train, data.val, data.test} - {None}:
        stems = [f"{split}{index}" for index in range(2)]
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems))
        for stem in stems:
            cv2.imwrite(str(root / "JPEGImages" / f"{stem}.jpg"), rng.integers(0, 256, (60, 80, 3)).astype(np.uint8))
            labels = rng.choice([*range(len(names)), 255], (60, 80)).astype(np.uint8)
            write_index_png(root / "SegmentationClass" / f"{stem}.png", labels, voc_palette())


def write_coco(root, config):
    """Two random pictures a split with two objects each."""
    rng, data = np.random.default_rng(0), config.data
    for split in [split for split in (data.train, data.val, data.test) if split is not None]:
        names = (data.classes or ("background", "nucleus"))[1:]
        categories = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
        content = {"images": [], "annotations": [], "categories": categories}
        name = Path(split.annotations).stem
        for i in (1, 2):
            file = root / split.images / f"{name}_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), rng.integers(0, 256, (60, 80, 3)).astype(np.uint8))
            content["images"].append({"id": i, "file_name": file.name, "height": 60, "width": 80})
            for n, x in enumerate((10, 31)):
                box = {"bbox": [x, 10, 20, 30], "area": 600, "segmentation": [[x, 10, x + 20, 10, x + 20, 40, x, 40]]}
                content["annotations"].append({"id": 2 * i + n, "image_id": i, "category_id": 1, "iscrowd": 0} | box)
        (root / split.annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / split.annotations).write_text(json.dumps(content))


def write_voc_boxes(root, config):
    """Two random pictures a split with two objects each."""
    rng, data = np.random.default_rng(0), config.data
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = VOC_CLASSES[1:] if data.classes in (None, "voc") else data.classes
    box = "<bndbox><xmin>{0}</xmin><ymin>10</ymin><xmax>{1}</xmax><ymax>40</ymax></bndbox>"
    for split in {data.train, data.val, data.test} - {None}:
        stems = [f"{split}{index}" for index in range(2)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
        for stem in stems:
            cv2.imwrite(str(root / "JPEGImages" / f"{stem}.jpg"), rng.integers(0, 256, (60, 80, 3)).astype(np.uint8))
            objects = [
                f"<object><name>{names[index % len(names)]}</name>{box.format(x, x + 20)}</object>"
                for index, x in enumerate((10, 31, 45))
            ]
            (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    if data.classes is None:
        (root / "classes.txt").write_text("\n".join(names))


def write_random_proposals(config):
    """Ten boxes in each image of the stand-in."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        if getattr(config.data, split) is None:
            continue
        dataset = create_dataset(config.data, split, "detection")
        corners = rng.integers(0, 40, (len(dataset), 10, 2))
        boxes = np.concatenate([corners, corners + 20], axis=2)
        sizes = scan_split(dataset, "detection").image_sizes
        description = describe_proposals(config.data, dataset, sizes)
        write_proposals(proposal_path(config.data, split), ProposalSet.of_images(boxes), description)


def slow_where_deep(path):
    """The recipe as a parameter; networks that take long to compile, and have a sister that is tested, are slow."""
    slow = ("deeplabv3_resnet101_voc2012", "deeplabv3_resnet50_coco_voc", "fcn_resnet50_coco_voc")
    slow += ("deeplabv3_mobilenetv2_camvid", "fcn8s_mobilenetv2_camvid", "unet_nuclei")
    slow += ("faster_rcnn_resnet50_fpn_coco", "retinanet_resnet50_fpn_coco")
    slow += ("faster_rcnn_mobilenetv2_fpn_bccd", "faster_rcnn_mobilenetv2_fpn_nuclei")
    slow += (
        "retinanet_mobilenetv2_bccd",
        "quickstart_detection",
        "fast_rcnn_mobilenetv2_bccd",
        "rcnn_mobilenetv2_bccd",
    )
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in slow else [])


LAYOUTS = {"voc-segmentation": write_voc_segmentation, "coco": write_coco, "voc": write_voc_boxes}


def small(config):
    """Overrides that keep every key of a recipe but make its pictures and heads small."""
    overrides = [*SMALL, "train.initial_weights=null", "train.precision=float32", "data.resize=null"]
    for index, item in enumerate(config.augmentation):
        if item.kind in ("random_crop", "resize"):
            overrides.append(f"augmentation.{index}.{item.kind}=[64, 64]")
    if config.task == "detection":
        overrides += ["model.anchor_sizes=null"] if hasattr(config.model, "anchor_sizes") else []
        has_pyramid = hasattr(config.model, "fpn_channels") and getattr(config.model, "neck", "fpn") == "fpn"
        overrides += ["model.fpn_channels=8"] if has_pyramid else []
        overrides += ["model.norm=batch"] if config.model.norm == "frozen" else []
        if config.model.name != "retinanet":
            overrides += ["model.train_proposals=20", "model.test_proposals=20"]
            is_rcnn = config.model.name == "rcnn"
            overrides += [] if is_rcnn and not config.model.has_dense_layers else ["model.head_channels=8"]
            overrides += ["model.crop_size=64", "model.context=8", "model.batch_crops=8"] if is_rcnn else []
    if config.model.backbone is None:
        overrides.append("model.width=4")
    elif config.model.backbone.startswith("vgg") and config.task == "segmentation":
        overrides.append("model.head_channels=16")
    else:
        overrides.append("model.alpha=0.25")
    return overrides


@pytest.mark.parametrize("path", [slow_where_deep(path) for path in CONFIGS])
def test_recipe_takes_a_step_on_data_of_its_layout(path, tmp_path):
    config = load_config(path)
    LAYOUTS[config.data.format](tmp_path / "data", config)
    overrides = [*small(config), f"data.root={tmp_path / 'data'}"]
    if getattr(config.data, "proposals", None) is not None:
        overrides.append(f"data.proposals.folder={tmp_path}")
        write_random_proposals(load_config(path, overrides))
    config = load_config(path, overrides)
    folder = train(config, tmp_path / "run")
    row = folder.read_history()[0]
    assert np.isfinite(float(row["loss"]))
    if config.data.val is None:
        assert folder.best_weights.is_file()
        return
    score = float(row[f"val_{create_task(config, CLASSES).score_name}"])
    assert 0 <= score <= 1
    asked_for = {name for name, part in getattr(config, "evaluation", ()) if part is not None}
    if not asked_for:
        return
    result = evaluate(folder.path, "val")
    assert {"boundary", "em", "instances"} & result.keys() == asked_for
    assert json.dumps(result)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe_starts_with_a_header_that_names_its_command(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "make quickstart" in header[0] or f"configs/{path.name}" in " ".join(header)


def test_a_perfect_prediction_scores_one_on_the_stand_in(tmp_path):
    from types import SimpleNamespace

    from detseg.inference.prediction import Prediction
    from detseg.tasks.segmentation import SegmentationTask

    path = next(path for path in CONFIGS if path.stem == "fcn8s_mobilenetv2_camvid")
    write_voc_segmentation(tmp_path / "data", load_config(path))
    config = load_config(path, [f"data.root={tmp_path / 'data'}"])
    dataset = create_dataset(config.data, "val")
    truths = iter([dataset[index].label_map for index in range(len(dataset))])

    def oracle(image):
        labels = next(truths)
        return Prediction(np.where(labels == config.data.ignore_label, 0, labels))

    task = SegmentationTask(SimpleNamespace(task="segmentation", data=config.data), dataset.classes)
    result = score_dataset(task, oracle, dataset)
    assert result["miou"] == result["pixel_accuracy"] == 1
    assert json.dumps(result)
