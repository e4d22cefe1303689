"""What the config promises: its schema, its messages, bases, overrides, and files that read back equal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detseg.backbones.options import BackboneName
from detseg.config import (
    SegmentationConfig,
    config_schema,
    load_config,
    parse_config,
    save_config,
)
from detseg.config.augmentation import Albumentations, ColorJitter, Flip, RandomCrop, Resize, ScaleJitter
from detseg.errors import UserError

MINIMAL = """\
task: segmentation
data: {format: voc-segmentation, root: data/shapes, train: train}
model: {name: fcn8s, backbone: vgg16}
train:
  epochs: 2
  batch_size: 4
  optimizer: {name: sgd, learning_rate: 0.1}
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages start with the bare file name
    return tmp_path


def load(text, overrides=(), name="c.yaml"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return load_config(name, overrides)


def lines(text, overrides=(), name="c.yaml"):
    """The lines of the message that this config is refused with."""
    with pytest.raises(UserError) as refusal:
        load(text, overrides, name)
    return str(refusal.value).split("\n")


def with_line(number, line):
    """MINIMAL with one line (from 1) replaced."""
    rows = MINIMAL.splitlines()
    rows[number - 1] = line
    return "\n".join(rows)


def with_data(rest, form="voc-segmentation"):
    return with_line(2, f"data: {{format: {form}, root: r, {rest}}}")


# What a config says


def test_minimal_config_has_the_documented_defaults():
    config = load(MINIMAL)
    assert config.seed == 0
    assert config.augmentation == ()
    assert (config.data.channels, config.data.ignore_label) == (3, 255)
    assert (config.data.classes, config.data.resize, config.data.val, config.data.palette) == (None,) * 4
    assert config.model.model_dump() == {
        "name": "fcn8s",
        "backbone": "vgg16",
        "preset": None,
        "variant": None,
        "alpha": 1.0,
        "output_stride": 32,
        "multi_grid": None,
        "weights": "imagenet",
        "norm": "batch",
        "norm_epsilon": None,
        "activation": None,
        "freeze_stages": 0,
        "upsampling": "fixed",
        "dropout": 0.5,
        "head_channels": None,
    }
    assert [loss.model_dump() for loss in config.loss] == [
        {"name": "cross_entropy", "weight": 1, "class_weights": None, "label_smoothing": 0, "border_weights": None}
    ]
    assert config.train.optimizer.model_dump() == {
        "name": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "clip_norm": None,
    }
    assert config.train.schedule.model_dump() == {"name": "constant", "warmup_steps": 0}
    train = config.train.model_dump(exclude={"optimizer", "schedule"})
    assert train == {
        "epochs": 2,
        "batch_size": 4,
        "backbone_learning_rate_factor": 1.0,
        "new_layers_learning_rate_factor": 1.0,
        "freeze": None,
        "bias_learning_rate_factor": 1.0,
        "precision": "float32",
        "ema": None,
        "sampling": None,
        "early_stopping": None,
        "validate_every": 1,
        "steps_per_epoch": None,
        "workers": 2,
        "initial_weights": None,
    }


def test_defaults_filled_into_files_are_those_of_the_schema():
    config = load(MINIMAL)
    raw = config.model_dump(mode="json", exclude={"loss": True, "train": {"schedule"}})
    assert parse_config(raw) == config


def test_the_line_of_the_design_is_read_as_it_stands():
    config = load(
        "task: segmentation                    # | detection\n"
        "seed: 0\n"
        "data: {format: voc-segmentation, root: data/camvid, train: train, val: val, test: test, classes: null, "
        "channels: 3, ignore_label: 255}\n"
        "augmentation: [{scale_jitter: [0.5, 2.0]}, {random_crop: [352, 480]}, {flip: horizontal}, "
        "{color_jitter: 0.3}]\n"
        "model: {name: fcn8s, backbone: mobilenetv2, alpha: 1.0, output_stride: 32, weights: imagenet, norm: batch, "
        "freeze_stages: 0}\n"
        "loss: [{name: cross_entropy, weight: 1.0, class_weights: null}]\n"
        "train: {epochs: 40, batch_size: 8, optimizer: {name: sgd, learning_rate: 0.01, momentum: 0.9, weight_decay: "
        "0.0001}, schedule: {name: poly, power: 0.9, warmup_steps: 100}, precision: float32, ema: null}\n"
    )
    assert config.data.test == "test"
    assert config.train.optimizer.momentum == 0.9
    assert (config.train.schedule.power, config.train.schedule.warmup_steps) == (0.9, 100)


def test_augmentation_items_become_their_classes():
    config = load(
        MINIMAL
        + "augmentation:\n"
        + "- scale_jitter: [1, 2]\n- random_crop: [3, 4]\n- random_crop: {size: [3, 4], rare_classes: 0.5}\n"
        + "- resize: [5, 6]\n- flip: both\n- color_jitter: 0.5\n"
        + "- color_jitter: {hue: 0.1}\n- albumentations: {name: Blur, arguments: {p: 1, limit: [3, 7]}}\n"
    )
    assert config.augmentation == (
        ScaleJitter(low=1.0, high=2.0),
        RandomCrop(size=(3, 4)),
        RandomCrop(size=(3, 4), rare_classes=0.5, max_class_share=None),
        Resize(height=5, width=6),
        Flip(direction="both"),
        ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.05),
        ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1),
        Albumentations(name="Blur", arguments={"p": 1, "limit": [3, 7]}),
    )


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load(MINIMAL).seed = 1


OPTIMIZERS = {
    "sgd": {"momentum": 0.0, "nesterov": False},
    "adagrad": {"initial_accumulator_value": 0.1, "epsilon": 1e-7},
    "adadelta": {"rho": 0.95, "epsilon": 1e-7},
    "rmsprop": {"rho": 0.9, "momentum": 0.0, "centered": False, "epsilon": 1e-7},
    "adam": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False},
    "adamax": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "nadam": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "adamw": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False, "weight_decay": 0.004},
}


REGION = {"classes": "present", "per_image": False}
LOSSES = {
    "cross_entropy": {"label_smoothing": 0.0, "border_weights": None},
    "focal": {"gamma": 2.0},
    "ohem": {"threshold": 0.7, "min_kept_fraction": 0.0625},
    "dice": REGION | {"smooth": 0.0, "exponent": 1},
    "tversky": REGION | {"alpha": 0.3, "beta": 0.7, "gamma": 1.0, "smooth": 0.0},
    "lovasz_softmax": REGION,
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_its_keys(name):
    first, second = load(MINIMAL + f"loss: [{{name: {name}}}, {{name: {name}, weight: 2, class_weights: [1, 0]}}]").loss
    assert first.model_dump() == {"name": name, "weight": 1.0, "class_weights": None} | LOSSES[name]
    assert second == first.model_copy(update={"weight": 2.0, "class_weights": (1.0, 0.0)})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_has_its_keys_and_keras_defaults(name):
    optimizer = load(with_line(7, f"  optimizer: {{name: {name}, learning_rate: 1}}")).train.optimizer
    common = {"name": name, "learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": None}
    assert optimizer.model_dump() == common | OPTIMIZERS[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", {}),
        ("poly", {"power": 0.9}),
        ("cosine", {"final_fraction": 0.0}),
        ("step, epochs: [3, 6]", {"epochs": (3, 6), "gamma": 0.1}),
    ],
)
def test_each_schedule_has_its_keys(text, expected):
    schedule = load(MINIMAL + f"  schedule: {{name: {text}}}").train.schedule
    assert schedule.model_dump() == {"name": text.split(",")[0], "warmup_steps": 0} | expected


@pytest.mark.parametrize(
    ("form", "split"),
    [
        ("voc-segmentation", "train_part"),
        ("coco", {"annotations": "a.json", "images": "i"}),
        ("folder", {"images": "i", "masks": "m"}),
    ],
)
def test_each_format_has_its_form_of_split(form, split):
    data = load(with_data(f"test: {json.dumps(split)}", form)).data
    assert data.model_dump()["test"] == split
    assert (data.train, data.val) == (None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("voc", "voc"), ("[sky, no, '1']", ("sky", "no", "1")), ("{a: b, no: c}", {"a": "b", "no": "c"})],
)
def test_classes_in_each_form(text, value):
    assert load(with_data(f"train: t, classes: {text}")).data.classes == value


def test_a_data_set_from_python_needs_no_files_and_no_splits():
    line = "data: {format: custom, channels: 8, value_range: [0, 4095], ignore_label: 9, classes: null}"
    data = load(with_line(2, line)).data
    assert (data.channels, data.value_range, data.ignore_label) == (8, (0, 4095), 9)
    assert (data.train, data.val, data.test, data.root, data.classes) == (None,) * 5


def test_resize_in_each_form():
    assert load(with_data("train: t, resize: [2, 3]")).data.resize == (2, 3)
    sides = load(with_data("train: t, resize: {shorter: 800, longer: 1333}")).data.resize
    assert (sides.shorter, sides.longer) == (800, 1333)


def test_a_whole_number_will_do_for_a_number():
    assert isinstance(load(MINIMAL, ["model.alpha=2"]).model.alpha, float)


# Messages


def test_unknown_key_names_file_line_and_the_key_meant():
    text = "task: segmentation\nmodel:\n  output_strid: 16\n  name: fcn8s\n"
    assert "bad.yaml:3: model.output_strid: unknown key; did you mean 'output_stride'?" in lines(text, name="bad.yaml")


def test_number_out_of_bounds_names_file_line_value_and_bound():
    text = "\n" * 5 + MINIMAL.replace("batch_size: 4", "batch_size: 0")
    assert lines(text, name="fcn.yaml") == ["fcn.yaml:11: train.batch_size: got 0, expected a whole number >= 1"]


def test_unknown_key_of_an_override_names_the_override():
    assert lines(MINIMAL, ["train.epoch=3"]) == ["--set train.epoch=3: unknown key; did you mean 'epochs'?"]


def test_unknown_key_like_no_other_lists_the_keys():
    assert lines(MINIMAL + "zzz: 1") == [
        "c.yaml:8: zzz: unknown key; expected one of task, seed, data, augmentation, model, loss, train, tta, "
        "evaluation"
    ]


VOC = "c.yaml:2: data."
CHOICES = "expected one of sgd, adagrad, adadelta, rmsprop, adam, adamax, nadam, adamw"
LOSS_NAMES = "expected one of cross_entropy, focal, ohem, dice, tversky, lovasz_softmax"
REFUSALS = {
    "seed: '3'": "c.yaml:8: seed: got '3', expected a whole number",
    "seed: true": "c.yaml:8: seed: got true, expected a whole number",
    "seed: yes": "c.yaml:8: seed: got 'yes', expected a whole number",
    "seed: 1.0": "c.yaml:8: seed: got 1.0, expected a whole number",
    "seed: -1": "c.yaml:8: seed: got -1, expected a whole number >= 0",
    "seed:": "c.yaml:8: seed: got null, expected a whole number",
    "seed: [1]": "c.yaml:8: seed: got [1], expected a whole number",
    "loss: []": "c.yaml:8: loss: got [], expected at least one entry",
    "loss: {name: cross_entropy}": "c.yaml:8: loss: got {'name': 'cross_entropy'}, expected a list",
    "loss: [{weight: 1}]": "c.yaml:8: loss.0.name: missing; " + LOSS_NAMES,
    "loss: [{name: crossentropy}]": f"c.yaml:8: loss.0.name: got 'crossentropy', {LOSS_NAMES}; "
    "did you mean 'cross_entropy'?",
    "loss: [{name: dice}, {name: dice, gamma: 2}]": "c.yaml:8: loss.1.gamma: unknown key; expected one of name, "
    "weight, class_weights, classes, per_image, smooth, exponent",
    "loss: [{name: dice, exponent: 3}]": "c.yaml:8: loss.0.exponent: got 3, expected one of 1, 2",
    "loss: [{name: ohem, threshold: 0}]": "c.yaml:8: loss.0.threshold: got 0, expected a number > 0",
    "loss: [{name: focal, class_weights: [0, 0]}]": "c.yaml:8: loss.0.class_weights: got [0.0, 0.0], "
    "expected at least one weight > 0",
    "loss: [cross_entropy]": "c.yaml:8: loss.0: got 'cross_entropy', expected a mapping like {name: ..}",
    "loss: [{name: cross_entropy, class_weights: median}]": "c.yaml:8: loss.0.class_weights: got 'median', "
    "expected median_frequency",
    "loss: [{name: cross_entropy, class_weights: [1, -1]}]": "c.yaml:8: loss.0.class_weights.1: got -1, "
    "expected a number >= 0",
    "loss: [{name: cross_entropy, label_smoothing: 1}]": "c.yaml:8: loss.0.label_smoothing: got 1, "
    "expected a number < 1",
    "  sampling: repeat_factor": "c.yaml:8: train.sampling: got 'repeat_factor', expected a mapping like "
    "{name: .., threshold: ..}",
    "  sampling: {name: repeat, threshold: 0.1}": "c.yaml:8: train.sampling.name: got 'repeat', "
    "expected repeat_factor; did you mean 'repeat_factor'?",
    "  sampling: {name: repeat_factor}": "c.yaml:8: train.sampling.threshold: missing: share t of the images: those "
    "of a class that is in a smaller share f come sqrt(t / f) times a pass",
    "  sampling: {name: repeat_factor, threshold: 0}": "c.yaml:8: train.sampling.threshold: got 0, "
    "expected a number > 0",
    "augmentation: [flip]": "c.yaml:8: augmentation.0: got 'flip', expected a mapping with one key, one of "
    "scale_jitter, random_crop, flip, rotate90, elastic, color_jitter, resize, albumentations",
    "augmentation: [{flap: both}]": "c.yaml:8: augmentation.0.flap: unknown key; did you mean 'flip'?",
    "augmentation: [{flip: sideways}]": "c.yaml:8: augmentation.0.flip: got 'sideways', "
    "expected one of horizontal, vertical, both",
    "augmentation: [{scale_jitter: 2}]": "c.yaml:8: augmentation.0.scale_jitter: got 2, expected [low, high]",
    "augmentation: [{scale_jitter: [2, 1]}]": "c.yaml:8: augmentation.0.scale_jitter: got [2.0, 1.0], "
    "expected [low, high] with low <= high",
    "augmentation: [{random_crop: [1, 2, 3]}]": "c.yaml:8: augmentation.0.random_crop: got [1, 2, 3], "
    "expected [height, width] or {size: [height, width], ..}",
    "augmentation: [{random_crop: [0, 3]}]": "c.yaml:8: augmentation.0.random_crop.size.0: got 0, "
    "expected a whole number >= 1",
    "augmentation: [{random_crop: {size: 3}}]": "c.yaml:8: augmentation.0.random_crop.size: got 3, "
    "expected [height, width]",
    "augmentation: [{random_crop: {rare_classes: 0.5}}]": "c.yaml:8: augmentation.0.random_crop.size: missing: "
    "[height, width] of the window in pixels",
    "augmentation: [{random_crop: {size: [2, 3], rare_class: 0.5}}]": "c.yaml:8: "
    "augmentation.0.random_crop.rare_class: unknown key; did you mean 'rare_classes'?",
    "augmentation: [{random_crop: {size: [2, 3], rare_classes: 2}}]": "c.yaml:8: "
    "augmentation.0.random_crop.rare_classes: got 2, expected a number <= 1",
    "augmentation: [{random_crop: {size: [2, 3], max_class_share: 1}}]": "c.yaml:8: "
    "augmentation.0.random_crop.max_class_share: got 1, expected a number < 1",
    "augmentation: [{color_jitter: 1.5}]": "c.yaml:8: augmentation.0.color_jitter: got 1.5, expected a number from 0 "
    "to 1 or {brightness, contrast, saturation, hue}",
    "augmentation: [{color_jitter: {hue: 1}}]": "c.yaml:8: augmentation.0.color_jitter.hue: got 1, "
    "expected a number <= 0.5",
    "augmentation: [{albumentations: {nam: Blur}}]": "c.yaml:8: augmentation.0.albumentations.nam: unknown key; "
    "did you mean 'name'?",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_wrong_value_is_refused_with_what_was_expected(line):
    assert REFUSALS[line] in lines(MINIMAL + line)


DATA_REFUSALS = {
    ("train: 2012", "voc-segmentation"): VOC + "train: got 2012, expected text; in quotes if that is what is meant: "
    "'2012'",
    ("train: ''", "voc-segmentation"): VOC + "train: got '', expected text that isn't empty",
    ("train: {images: i, masks: m}", "voc-segmentation"): VOC
    + "train: got {'images': 'i', 'masks': 'm'}, expected text",
    ("train: t", "coco"): VOC + "train: got 't', expected a mapping like {annotations: .., images: ..}",
    ("train: {images: i, masks: m}", "coco"): VOC + "train.masks: unknown key; expected one of annotations, images",
    ("train: t", "folder"): VOC + "train: got 't', expected a mapping like {images: .., masks: ..}",
    ("train: {images: i}", "folder"): VOC
    + "train.masks: missing: the folder of masks with the images' stems, relative to data.root",
    ("train: t", "voc-segmentatio"): VOC + "format: got 'voc-segmentatio', expected one of voc-segmentation, coco, "
    "folder, custom; did you mean 'voc-segmentation'?",
    ("train: null", "voc-segmentation"): "c.yaml:2: data: at least one of train, val and test has to be given",
    ("train: t, resize: 3", "voc-segmentation"): VOC
    + "resize: got 3, expected null, [height, width] or {shorter: PIXELS, longer: PIXELS}",
    ("train: t, resize: [3]", "voc-segmentation"): VOC + "resize: got [3], expected [height, width]",
    ("train: t, resize: [3, 0]", "voc-segmentation"): VOC + "resize.1: got 0, expected a whole number >= 1",
    ("train: t, resize: {shorter: 3}", "voc-segmentation"): VOC
    + "resize.longer: missing: the most that the longer side may have, in pixels",
    ("train: t, resize: {shorter: 3, longer: 2}", "voc-segmentation"): VOC
    + "resize: shorter is 3, longer is 2: expected shorter <= longer",
    ("train: t, classes: coco", "voc-segmentation"): VOC + "classes: got 'coco', expected voc",
    ("train: t, classes: 3", "voc-segmentation"): VOC
    + "classes: got 3, expected null, voc, a list of class names or {name in the data: our name}",
    ("train: t, classes: []", "voc-segmentation"): VOC + "classes: got [], expected at least one entry",
    ("train: t, classes: [a, b, a]", "voc-segmentation"): VOC + "classes: the class name 'a' is there twice",
    ("train: t, value_range: [5, 5]", "voc-segmentation"): VOC
    + "value_range: got [5.0, 5.0], expected [low, high] with low < high",
    ("train: t, value_range: 4095", "voc-segmentation"): VOC + "value_range: got 4095, expected [low, high]",
    ("classes: [a]", "custom"): VOC + "classes: got ['a'], expected null: the data set is given from Python",
    ("channels: 3", "custom"): VOC + "root: got 'r', expected null: the data set is given from Python",
    ("train: t, ignore_label: 256", "voc-segmentation"): VOC + "ignore_label: got 256, expected a whole number <= 255",
    ("train: t, palette: {a: [1, 2]}", "voc-segmentation"): VOC + "palette.a: got [1, 2], expected [red, green, blue]",
    ("train: t, palette: {a: [1, 2, 256]}", "voc-segmentation"): VOC
    + "palette.a.2: got 256, expected a whole number <= 255",
    ("train: t, palette: {a: [1, 2, 3], b: [1, 2, 3]}", "voc-segmentation"): VOC
    + "palette: 'a' and 'b' have the same colour [1, 2, 3]",
    ("train: t, voc_boxes: continuous", "voc-segmentation"): VOC + "voc_boxes: unknown key; it is for task: detection",
    ("train: t, palette: {}", "coco"): VOC
    + "palette: unknown key; expected one of format, root, classes, channels, value_range, resize, ignore_label, "
    "train, val, test",
}


@pytest.mark.parametrize("case", DATA_REFUSALS, ids=str)
def test_wrong_data_is_refused_with_what_was_expected(case):
    assert DATA_REFUSALS[case] in lines(with_data(*case))


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, "", "c.yaml: task: missing; expected one of segmentation, detection"),
        (
            1,
            "task: segmentatoin",
            "c.yaml:1: task: got 'segmentatoin', expected one of segmentation, detection; did you mean 'segmentation'?",
        ),
        (2, "", "c.yaml: data: missing: the data set"),
        (
            2,
            "data: {root: r}",
            "c.yaml:2: data.format: missing; expected one of voc-segmentation, coco, folder, custom",
        ),
        (3, "model: fcn8s", "c.yaml:3: model: got 'fcn8s', expected a mapping like {name: .., backbone: ..}"),
        (
            3,
            "model: {name: fcn8, backbone: vgg16}",
            "c.yaml:3: model.name: got 'fcn8', expected one of fcn32s, fcn16s, fcn8s, fcn, unet, deeplabv3, "
            "deeplabv3plus, custom; did you mean 'fcn8s'?",
        ),
        (
            3,
            "model: {name: fcn8s, backbone: vgg16, output_stride: 4}",
            "c.yaml:3: model.output_stride: got 4, expected one of 8, 16, 32",
        ),
        (
            3,
            "model: {name: fcn8s, backbone: vgg16, weights: a.bin}",
            "c.yaml:3: model.weights: got 'a.bin', expected null, imagenet, coco or the path of a file ending in .h5, "
            ".weights.h5, .keras, .pth or .pt, or in .ckpt, a checkpoint's prefix",
        ),
        (
            3,
            "model: {name: deeplabv3, backbone: mobilenetv2, separable_norm: true}",
            "c.yaml:3: model: separable_norm is true, which needs separable: true",
        ),
        (
            3,
            "model: {name: deeplabv3, backbone: mobilenetv2, resize: align_corners}",
            "c.yaml:3: model: resize is align_corners, but the maps of mobilenetv2 do not line up at the corners; "
            "expected phase, half_pixel, or a backbone that pads maps of odd size evenly: a resnet, xception65, or "
            "mobilenetv2 with variant: deeplab",
        ),
        (5, "", "c.yaml:4: train.epochs: missing: passes over the training split"),
        (7, "", "c.yaml:4: train.optimizer: missing: what turns gradients into steps"),
        (
            7,
            "  optimizer: sgd",
            "c.yaml:7: train.optimizer: got 'sgd', expected a mapping like {name: .., learning_rate: ..}",
        ),
        (7, "  optimizer: {learning_rate: 1}", "c.yaml:7: train.optimizer.name: missing; " + CHOICES),
        (
            7,
            "  optimizer: {name: adm, learning_rate: 1}",
            f"c.yaml:7: train.optimizer.name: got 'adm', {CHOICES}; did you mean 'adam'?",
        ),
        (
            7,
            "  optimizer: {name: sgd, learning_rate: 0}",
            "c.yaml:7: train.optimizer.learning_rate: got 0, expected a number > 0",
        ),
        (
            7,
            "  optimizer: {name: sgd, learning_rate: .nan}",
            "c.yaml:7: train.optimizer.learning_rate: got '.nan', expected a number",
        ),
        (
            7,
            "  optimizer: {name: sgd, learning_rate: 1, nesterov: 1}",
            "c.yaml:7: train.optimizer.nesterov: got 1, expected true or false",
        ),
        (
            7,
            "  optimizer: {name: adamax, learning_rate: 1, amsgrad: true}",
            "c.yaml:7: train.optimizer.amsgrad: unknown key; expected one of name, learning_rate, weight_decay, "
            "clip_norm, epsilon, beta_1, beta_2",
        ),
    ],
)
def test_wrong_or_missing_key_is_named_with_its_line(number, line, message):
    assert message in lines(with_line(number, line))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{name: step, epochs: []}", "epochs: got [], expected at least one entry"),
        ("{name: poly, epochs: [1]}", "epochs: unknown key; expected one of name, warmup_steps, power"),
        ("{name: step, epochs: 3}", "epochs: got 3, expected a list"),
    ],
)
def test_wrong_schedule_is_refused(schedule, message):
    assert lines(MINIMAL + f"  schedule: {schedule}") == [f"c.yaml:8: train.schedule.{message}"]


def test_epochs_of_steps_that_do_not_ascend_are_refused():
    refusal = lines(MINIMAL + "  schedule: {name: step, epochs: [6, 3]}")
    assert refusal == ["c.yaml:8: train.schedule: epochs is [6, 3]: expected ascending numbers"]


def test_all_mistakes_are_told_at_once_from_file_duplicates_and_overrides():
    text = with_line(3, "model: {name: fcn8s, backbone: vgg, alpha: 0}") + "\n  epochs: 3\nsedd: 1\n"
    assert sorted(lines(text, ["train.workers=-1", "nonsense", "loss.0.weight=x"])) == [
        "--set loss.0.weight=x: got 'x', expected a number",
        "--set nonsense: expected KEY=VALUE, with dots between nested keys, as in train.epochs=10",
        "--set train.workers=-1: got -1, expected a whole number >= 0",
        "c.yaml:3: model.alpha: got 0, expected a number > 0",
        f"c.yaml:3: model.backbone: got 'vgg', expected one of {', '.join(get_args(BackboneName))}; "
        "did you mean 'vgg19'?",
        "c.yaml:8: train.epochs: the key is written twice; first in line 5",
        "c.yaml:9: sedd: unknown key; did you mean 'seed'?",
    ]


def test_a_valid_config_with_one_key_written_twice_is_refused():
    assert lines(MINIMAL + "seed: 1\nseed: 1\n") == ["c.yaml:9: seed: the key is written twice; first in line 8"]


# Files that can't be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty; expected the keys of a config"),
        ("# nothing\n", "c.yaml: the file is empty; expected the keys of a config"),
        ("- a\n- b\n", "c.yaml: got ['a', 'b'], expected a mapping of keys to values"),
        ("fcn8s", "c.yaml: got 'fcn8s', expected a mapping of keys to values"),
        ("a: 1\nb: [1, 2\nc: 3\n", "c.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "a:\n\tb: 1\n",
            "c.yaml:2: not valid YAML: found character '\\t' that cannot start any token "
            "(indent with spaces, not with tabs)",
        ),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: but found another document"),
        ("a: 1\nb: \x07\n", "c.yaml:2: not valid YAML: the character U+0007 is not allowed"),
        ("a: 1\nb: &x 2\nc: *x\n", "c.yaml:2: anchors and aliases (&, *) are not allowed here"),
        ("a: 1\nb: !!python/name:os.system\n", "c.yaml:2: the tag 'tag:yaml.org,2002:python/name:os.system' is not "),
        ("a: !!int '3'\n", "c.yaml:1: the tag 'tag:yaml.org,2002:int' is not allowed here"),
        ("a: 1\n? [b]\n: 2\n", "c.yaml:2: a key has to be plain text"),
        ("a: 1e999\n", "c.yaml:1: 1e999 is too large for a number"),
        ("a: " + "9" * 5000, "c.yaml:1: Exceeds the limit (4300 digits) for integer string conversion"),
        ("a: " + "[" * 1500, "c.yaml: the values are nested too deeply"),
    ],
    ids=lambda text: text[:20],
)
def test_unreadable_file_gives_one_line(text, message):
    (line,) = lines(text)
    assert line.startswith(message)


def test_missing_file_folder_and_wrong_encoding_give_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^nothing\.yaml: there is no such config file$"):
        load_config("nothing.yaml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^folder: this is a folder; expected a YAML file$"):
        load_config("folder")
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1\ntask: M\xfcll\n")
    with pytest.raises(UserError, match=r"^latin\.yaml:2: this is not UTF-8 text; save the file as UTF-8$"):
        load_config("latin.yaml")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config("windows.yaml") == load(MINIMAL)


# Base files


def write(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_child_merges_mappings_and_replaces_lists_and_scalars(tmp_path):
    write(
        tmp_path,
        base=MINIMAL + "augmentation: [{flip: both}, {color_jitter: 0.3}]\nseed: 1\n",
        child="base: base.yaml\nseed: 2\naugmentation: [{resize: [2, 3]}]\ntrain: {optimizer: {momentum: 0.9}}\n",
    )
    base, child = load_config("base.yaml"), load_config("child.yaml")
    assert child.seed == 2
    assert child.augmentation == (Resize(height=2, width=3),)
    assert child.train.optimizer == base.train.optimizer.model_copy(update={"momentum": 0.9})
    assert child.train.epochs == base.train.epochs
    assert (child.data, child.model, child.loss) == (base.data, base.model, base.loss)


def test_bases_are_relative_to_the_file_that_names_them_and_may_have_bases(tmp_path):
    write(
        tmp_path,
        common__root=MINIMAL,
        common__middle="base: root.yaml\nseed: 5\n",
        recipes__leaf="base: ../common/middle.yaml\ntrain: {epochs: 9}\n",
    )
    config = load_config("recipes/leaf.yaml")
    assert (config.seed, config.train.epochs, config.train.batch_size) == (5, 9, 4)


def test_another_name_replaces_the_mapping_of_the_base_whole(tmp_path):
    write(
        tmp_path,
        base=MINIMAL.replace("0.1}", "0.1, momentum: 0.9, weight_decay: 0.5}"),
        child="base: base.yaml\ntrain:\n  optimizer: {name: adam, learning_rate: 0.001}\n",
        short="base: base.yaml\ntrain:\n  optimizer: {name: adam}\n",
    )
    optimizer = load_config("child.yaml").train.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 0.001, 0.0)
    with pytest.raises(UserError) as refusal:
        load_config("short.yaml")
    assert str(refusal.value) == (
        "short.yaml:3: train.optimizer.learning_rate: missing: the learning rate at its peak; the schedule scales it "
        "(the name is no longer 'sgd' (base.yaml:7), so nothing of that mapping is inherited)"
    )


def test_another_data_format_replaces_the_data_of_the_base_whole(tmp_path):
    write(
        tmp_path,
        base=with_data("train: t, channels: 1"),
        child="base: base.yaml\ndata: {format: folder, root: q, val: {images: i, masks: m}}\n",
    )
    data = load_config("child.yaml").data
    assert (data.root, data.train, data.channels) == ("q", None, 3)


def test_another_name_with_the_same_keys_merges(tmp_path):
    write(
        tmp_path,
        base=with_line(3, "model: {name: fcn32s, backbone: mobilenet, alpha: 0.5}"),
        child="base: base.yaml\nmodel: {name: fcn16s}\n",
    )
    model = load_config("child.yaml").model
    assert (model.name, model.backbone, model.alpha) == ("fcn16s", "mobilenet", 0.5)


def test_mistake_in_a_base_names_the_base_and_its_line(tmp_path):
    write(
        tmp_path,
        base=MINIMAL.replace("batch_size: 4", "batch_size: 0"),
        child="base: base.yaml\nseed: -1\ntrain: {epochs: 0}\n",
    )
    with pytest.raises(UserError) as refusal:
        load_config("child.yaml")
    assert str(refusal.value).split("\n") == [
        "child.yaml:2: seed: got -1, expected a whole number >= 0",
        "child.yaml:3: train.epochs: got 0, expected a whole number >= 1",
        "base.yaml:6: train.batch_size: got 0, expected a whole number >= 1",
    ]


def test_base_that_leads_nowhere_is_refused(tmp_path):
    write(tmp_path, a="seed: 1\nbase: b.yaml\n", b="base: a.yaml\n", own="base: own.yaml\n", sub__gone="base: x.yaml\n")
    write(tmp_path, two="base: [a.yaml, b.yaml]\n", none="base:\n")
    circle = "base: the files inherit from each other in a circle:"
    for name, message in {
        "a.yaml": f"b.yaml:1: {circle} a.yaml -> b.yaml -> a.yaml",
        "own.yaml": f"own.yaml:1: {circle} own.yaml -> own.yaml",
        "sub/gone.yaml": f"sub/gone.yaml:1: base: there is no file {os.path.join('sub', 'x.yaml')} "
        "(the path is relative to the file that names it)",
        "two.yaml": "two.yaml:1: base: got ['a.yaml', 'b.yaml'], expected the path of one YAML file",
        "none.yaml": "none.yaml:1: base: got null, expected the path of one YAML file",
    }.items():
        with pytest.raises(UserError) as refusal:
            load_config(name)
        assert str(refusal.value) == message


# Overrides


def test_overrides_reach_nested_keys_list_items_null_lists_and_quoted_text():
    config = load(
        MINIMAL,
        [
            "train.optimizer.learning_rate=1e-3",
            "loss.0.weight=2",
            "model.weights=null",
            "augmentation=[{flip: both}, {random_crop: [8, 8]}]",
            "augmentation.1.random_crop.0=16",
            "data.train='2012'",
            "data.root=../with=sign",
            "train.schedule.warmup_steps=7",
            "data.classes={no: b}",
        ],
    )
    assert config.train.optimizer.learning_rate == 0.001
    assert config.loss[0].weight == 2.0
    assert config.model.weights is None
    assert config.augmentation == (Flip(direction="both"), RandomCrop(size=(16, 8)))
    assert (config.data.train, config.data.root, config.data.classes) == ("2012", "../with=sign", {"no": "b"})
    assert (config.train.schedule.name, config.train.schedule.warmup_steps) == ("constant", 7)


def test_the_last_of_equal_overrides_wins():
    assert load(MINIMAL, ["seed=1", "seed=2"]).seed == 2


def test_an_override_replaces_exactly_what_it_names():
    text = MINIMAL.replace("0.1}", "0.1, momentum: 0.9}")
    assert lines(text, ["train.optimizer.name=adam"]) == [
        "c.yaml:7: train.optimizer.momentum: unknown key; expected one of name, learning_rate, weight_decay, "
        "clip_norm, epsilon, beta_1, beta_2, amsgrad"
    ]
    whole = load(text, ["train.optimizer={name: adam, learning_rate: 1e-3}"]).train.optimizer
    assert (whole.name, whole.learning_rate) == ("adam", 0.001)
    assert load(MINIMAL, ["model.name=fcn32s"]).model.backbone == "vgg16"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "expected KEY=VALUE, with dots between nested keys, as in train.epochs=10"),
        ("=3", "expected KEY=VALUE, with dots between nested keys, as in train.epochs=10"),
        ("train..epochs=3", "expected KEY=VALUE, with dots between nested keys, as in train.epochs=10"),
        ("seed=", "there is no value after '='; write null for none, '' for empty text"),
        ("seed=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=&a 1", "anchors and aliases (&, *) are not allowed here"),
        ("base=x.yaml", "the base can be named in a file only"),
        ("seed.x=1", "seed is 3 and holds no 'x'"),
        ("loss.1.weight=2", "loss has no item '1'; its items are numbered 0 to 0"),
        ("loss.-1.weight=2", "loss has no item '-1'; its items are numbered 0 to 0"),
        ("augmentation.0=2", "augmentation has no item '0'; the list is empty"),
        ("model.alpha=big", "got 'big', expected a number"),
        ("model={name: fcn8s}", "model.backbone: missing: the feature extractor; expected one of vgg16, vgg19, "),
        ("model={name: fcn8s, name: fcn16s, backbone: vgg16}", "model.name: the key is written twice; first in the"),
    ],
)
def test_wrong_override_is_refused_by_its_own_text(override, message):
    (line,) = lines(MINIMAL + "seed: 3\naugmentation: []\n", [override])
    assert line.startswith(f"--set {override}: {message}")


# YAML


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 99), st.integers(-12, 12), st.sampled_from(["{}e{}", "{}E{}", "{}.5e{}", "{}.e{}", "{}.0E{:+}"]))
def test_numbers_in_scientific_notation_are_numbers(digits, exponent, form):
    text = form.format(digits, exponent)
    assert load(MINIMAL, [f"train.optimizer.learning_rate={text}"]).train.optimizer.learning_rate == float(text)
    assert load(with_line(7, f"  optimizer: {{name: sgd, learning_rate: {text}}}")).train.optimizer.learning_rate == (
        float(text)
    )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_positive_number_is_saved_exactly(number):
    config = load(MINIMAL)
    optimizer = config.train.optimizer.model_copy(update={"learning_rate": number})
    config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config


@pytest.mark.parametrize("word", ["yes", "on", "No", "010", "1_000", "12:30", "2012-01-01", "0x10", "=", "<<"])
def test_words_that_only_old_yaml_takes_for_something_else_are_text(word):
    assert load(with_data(f"train: {word}")).data.train == word


# Writing


FULL = """\
task: segmentation
seed: 7
data:
  format: folder
  root: data/own
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
  classes: {Himmel: sky, 'no': "yes", "1e-3": "null"}
  resize: {shorter: 320, longer: 640}
  palette: {sky: [128, 128, 128], straße: [0, 0, 255]}
augmentation:
- scale_jitter: [0.5, 2.0]
- random_crop: [352, 480]
- random_crop: {size: [352, 480], rare_classes: 0.5, max_class_share: 0.75}
- flip: horizontal
- color_jitter: 0.3
- color_jitter: {brightness: 0.2, hue: 0.5}
- resize: [100, 200]
- albumentations: {name: GaussNoise, arguments: {p: 0.5, limits: [1e-5, 2], nested: {a: [true, null, '3']}}}
model: {name: fcn16s, backbone: mobilenetv2, weights: a/b.weights.h5, head_channels: 64, upsampling: learned}
loss:
- {name: cross_entropy, class_weights: [0.5, 1, 2]}
- {name: cross_entropy, class_weights: median_frequency, label_smoothing: 0.1}
- {name: tversky, weight: 0.5, classes: all, gamma: 1.5}
train:
  epochs: 3
  batch_size: 2
  optimizer: {name: adamw, learning_rate: 1e-4, clip_norm: 1}
  schedule: {name: step, epochs: [1, 2], warmup_steps: 5}
  ema: 0.99
  sampling: {name: repeat_factor, threshold: 0.1}
  initial_weights: runs/fcn32s
"""


@pytest.mark.parametrize("text", [MINIMAL, FULL], ids=["minimal", "full"])
def test_saved_config_reads_back_equal(text):
    config = load(text)
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config


def test_saved_config_has_every_key_merged_and_in_short_form(tmp_path):
    write(tmp_path, base=MINIMAL, child="base: base.yaml\naugmentation: [{scale_jitter: [1, 2]}, {color_jitter: 1}]\n")
    save_config(load_config("child.yaml"), tmp_path / "saved.yaml")
    saved = (tmp_path / "saved.yaml").read_text()
    assert "base:" not in saved
    assert "- scale_jitter: [1.0, 2.0]\n- {color_jitter: 1.0}\n" in saved
    for key in SegmentationConfig.model_fields:
        assert f"\n{key}:" in "\n" + saved
    for key in type(load(MINIMAL).train).model_fields:
        assert f"\n  {key}:" in saved


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True))
def test_class_names_of_any_characters_are_saved_exactly(names):
    config = load(MINIMAL)
    config = config.model_copy(update={"data": config.data.model_copy(update={"classes": tuple(names)})})
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config
    renamed = config.data.model_copy(update={"classes": {name: name for name in names}})
    config = config.model_copy(update={"data": renamed})
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config


def test_saving_leaves_nothing_else_behind_and_replaces_the_file_whole(tmp_path, monkeypatch):
    config = load(MINIMAL)
    save_config(config, "saved.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "saved.yaml"]
    before = (tmp_path / "saved.yaml").read_text()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"^saved\.yaml: can't be written: No space left on device$"):
        save_config(load(MINIMAL, ["seed=9"]), "saved.yaml")
    assert (tmp_path / "saved.yaml").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "saved.yaml"]


def test_saving_into_a_missing_folder_is_refused():
    with pytest.raises(UserError, match=r"can't be written: No such file"):
        save_config(load(MINIMAL), "missing/saved.yaml")


def paths_in(value, path=()):
    """Every path to a value in nested dicts and lists."""
    children = value.items() if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else ()
    return [(*path, key) for key, _ in children] + [p for key, v in children for p in paths_in(v, (*path, key))]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 400)
    | st.floats(-2, 2)
    | st.sampled_from(["", "a", "coco", "1", "detection"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "flip", "sgd", "format", "<list>"]), inside, max_size=2)
    ),
    max_leaves=4,
)


DETECTOR = """\
task: detection
data: {format: voc, root: r, train: t}
augmentation: [{flip: both}, {random_crop: {size: [3, 4], min_visibility: 0.5}}]
model: {name: faster_rcnn, backbone: resnet50, anchor_sizes: [[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]]}
train: {epochs: 2, batch_size: 4, optimizer: {name: sgd, learning_rate: 0.1}}
"""


@pytest.mark.parametrize("text", [FULL, DETECTOR], ids=["segmentation", "detection"])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_file_is_taken_or_refused_line_by_line(text, data):
    raw = load(text).model_dump(mode="json")
    for _ in range(data.draw(st.integers(1, 3))):
        *way, key = data.draw(st.sampled_from(paths_in(raw)))
        parent = raw
        for part in way:
            parent = parent[part]
        parent[key] = data.draw(ANYTHING)
    try:
        config = load(json.dumps(raw, indent=1))
    except UserError as refusal:
        for line in str(refusal).split("\n"):
            assert re.match(r"c\.yaml(:\d+)?: [\w.<>-]+: .", line)
    else:
        save_config(config, "saved.yaml")
        assert load_config("saved.yaml") == config


# For editors


def test_schema_is_json_and_describes_every_key():
    schema = json.loads(json.dumps(config_schema()))
    assert schema["$schema"].startswith("https://json-schema.org/")
    sections = schema["$defs"]
    assert schema["anyOf"] == [{"$ref": f"#/$defs/{name}Config"} for name in ("Segmentation", "Detection")]
    assert set(sections["SegmentationConfig"]["properties"]) == {"base", *SegmentationConfig.model_fields}
    assert sections["SegmentationConfig"]["properties"]["task"]["const"] == "segmentation"
    described = 0
    for section in sections.values():
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            reference = value.get("$ref", "").removeprefix("#/$defs/")
            assert value.get("description") or sections[reference]["description"], key
            described += 1
    assert described > 100


def test_schema_knows_augmentation_as_it_is_written():
    definitions = config_schema()["$defs"]
    jitter = definitions["ScaleJitter"]["properties"]["scale_jitter"]
    assert (jitter["type"], jitter["minItems"], jitter["maxItems"]) == ("array", 2, 2)
    assert definitions["Flip"]["properties"]["flip"]["enum"] == ["horizontal", "vertical", "both"]
    assert set(definitions["Albumentations"]["properties"]["albumentations"]["properties"]) == {"name", "arguments"}


def test_schema_lets_a_child_file_leave_keys_to_its_base():
    assert '"required"' not in json.dumps(config_schema())


def test_import_of_config_loads_neither_keras_nor_tensorflow():
    code = "import sys, detseg.config; print([m for m in ('keras', 'tensorflow', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ----- from Python ---------------------------------------------------------------------------------------------------


def test_a_mapping_is_read_as_the_file_that_says_the_same():
    mapping = yaml.safe_load(MINIMAL)
    expected = load(MINIMAL, ["train.ema=0.9", "loss.0.weight=2"])
    assert load_config(mapping, ["train.ema=0.9", "loss.0.weight=2"]) == expected
    assert mapping == yaml.safe_load(MINIMAL), "it stays as it is"
    mapping["data"]["root"] = Path("data/shapes")
    mapping["augmentation"] = ({"resize": (64, 96)},)
    assert load_config(mapping) == load(MINIMAL, ["augmentation=[{resize: [64, 96]}]"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": {"epochs": 0, "batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}}},
            "epochs: got 0",
        ),
        ({"trian": {}}, "config: trian: unknown key; did you mean 'train'?"),
        ({"base": "other.yaml"}, "config: base: the base can be named in a file only"),
        ({"model": "fcn8s"}, "config: model: got 'fcn8s', expected a mapping like {name: .., backbone: ..}"),
        ({3: 4}, "config: 3: unknown key"),
    ],
)
def test_mistakes_in_a_mapping_are_told_as_those_of_a_file(change, message):
    with pytest.raises(UserError) as refusal:
        load_config(yaml.safe_load(MINIMAL) | change)
    assert message in str(refusal.value)


def test_a_model_of_ones_own_needs_only_its_name():
    config = load(MINIMAL, ["model={name: custom}"])
    assert (config.model.backbone, config.model.minimum_size) == (None, 1)
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config
    assert lines(MINIMAL, ["model={name: custom, alpha: 2}"]) == [
        "--set model={name: custom, alpha: 2}: model.alpha: unknown key; expected one of name, backbone"
    ]
    with pytest.raises(UserError, match="got 'vgg16', expected null"):
        load(MINIMAL, ["model={name: custom, backbone: vgg16}"])
