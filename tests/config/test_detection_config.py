"""What the config of a detector promises: its keys, what is refused, and that each task knows the other's keys."""

import json
from pathlib import Path

import pytest

from detseg.config import (
    DetectionConfig,
    SegmentationConfig,
    config_schema,
    load_config,
    parse_config,
    save_config,
)
from detseg.config.augmentation import Flip, ObjectCrop
from detseg.detection.options import FasterRCNNOptions, RetinaNetOptions
from detseg.errors import UserError

MINIMAL = """\
task: detection
data: {format: voc, root: r, train: train}
model: {name: faster_rcnn, backbone: resnet50}
train:
  epochs: 2
  batch_size: 4
  optimizer: {name: sgd, learning_rate: 0.1}
"""
RETINANET = MINIMAL.replace("faster_rcnn", "retinanet")
SEGMENTATION = (
    MINIMAL.replace("detection", "segmentation")
    .replace("format: voc", "format: voc-segmentation")
    .replace("faster_rcnn", "fcn8s")
)
FULL = """\
task: detection
seed: 3
data:
  format: coco
  root: data/bccd
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}
  classes: [RBC, WBC]
  resize: {shorter: 800, longer: 1333}
  on_bad_box: drop
  masks: true
augmentation: [{flip: horizontal}, {random_crop: {size: [64, 96], min_visibility: 0.25}}, {random_crop: [32, 32]}]
model:
  name: faster_rcnn
  backbone: vgg16
  neck: none
  weights: a/b.weights.h5
  anchor_sizes: [[32, 64.5, 128]]
  anchor_ratios: [1, 2]
  anchor_form: torchvision
  box_loss: giou
  roi_pooling: pool
  roi_background_iou: [0.1, 0.5]
  head_channels: 512
  dropout: 0.5
  max_objects: 60
train:
  epochs: 3
  batch_size: 2
  optimizer: {name: adamw, learning_rate: 1e-4}
  schedule: {name: cosine}
  sampling: {name: repeat_factor, threshold: 0.1}
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages start with the bare file name


def load(text, overrides=()):
    Path("c.yaml").write_text(text, encoding="utf-8")
    return load_config("c.yaml", overrides)


def message(text, overrides=()):
    with pytest.raises(UserError) as refusal:
        load(text, overrides)
    return str(refusal.value)


def with_model(keys, text=MINIMAL):
    """`text` with these keys added to its model section."""
    return text.replace("backbone: resnet50", f"backbone: resnet50, {keys}")


# What a config says


COMMON = {
    "backbone": "resnet50",
    "preset": None,
    "variant": None,
    "alpha": 1.0,
    "output_stride": 32,
    "weights": "imagenet",
    "norm": "frozen",
    "norm_epsilon": None,
    "activation": None,
    "freeze_stages": 0,
    "fpn_channels": 256,
    "head_norm": None,
    "anchor_sizes": None,
    "anchor_ratios": (0.5, 1.0, 2.0),
    "anchor_form": "cell",
    "smooth_l1_beta": 1 / 9,
    "box_loss_weight": 1.0,
    "score_threshold": 0.05,
    "nms_iou": 0.5,
    "max_detections": 100,
    "max_objects": None,
    "padding": "shapes",
}


def test_faster_rcnn_has_the_documented_defaults():
    assert load(MINIMAL).model.model_dump() == COMMON | {
        "name": "faster_rcnn",
        "anchor_scales": (1.0,),
        "box_loss": "smooth_l1",
        "neck": "fpn",
        "finest_stride": 4,
        "rpn_channels": None,
        "rpn_foreground_iou": 0.7,
        "rpn_background_iou": 0.3,
        "rpn_samples": 256,
        "rpn_nms_iou": 0.7,
        "train_candidates": 2000,
        "test_candidates": 1000,
        "train_proposals": 2000,
        "test_proposals": 1000,
        "roi_pooling": "align",
        "roi_size": None,
        "roi_aligned": True,
        "sampling_ratio": 2,
        "roi_samples": 512,
        "roi_foreground_share": 0.25,
        "roi_foreground_iou": 0.5,
        "roi_background_iou": (0.0, 0.5),
        "head": None,
        "head_channels": None,
        "dropout": 0.0,
        "truncated_svd": None,
        "pyramid_levels": None,
        "rpn_score_threshold": 0.0,
        "class_agnostic": False,
        "box_deviations": (0.1, 0.1, 0.2, 0.2),
    }


def test_retinanet_has_the_documented_defaults():
    assert load(RETINANET).model.model_dump() == COMMON | {
        "name": "retinanet",
        "anchor_scales": (1.0, 1.259921, 1.587401),
        "box_loss": "l1",
        "finest_stride": 8,
        "top_levels": "conv_c5",
        "head_convolutions": 4,
        "focal_alpha": 0.25,
        "focal_gamma": 2.0,
        "prior": 0.01,
        "foreground_iou": 0.5,
        "background_iou": 0.4,
        "max_candidates": 1000,
        "box_deviations": (1.0, 1.0, 1.0, 1.0),
    }


def test_task_decides_on_the_class_and_the_classes_of_its_parts():
    config = load(MINIMAL + "augmentation: [{random_crop: [8, 9]}, {flip: both}]\n")
    assert (type(config), type(config.model)) == (DetectionConfig, FasterRCNNOptions)
    assert config.augmentation == (ObjectCrop(size=(8, 9)), Flip(direction="both"))
    assert (config.seed, config.train.schedule.name) == (0, "constant")
    assert isinstance(load(RETINANET).model, RetinaNetOptions)
    assert isinstance(load(SEGMENTATION), SegmentationConfig)


@pytest.mark.parametrize("text", [MINIMAL, RETINANET, FULL, SEGMENTATION], ids=["faster", "retina", "full", "other"])
def test_saved_config_reads_back_equal(text):
    config = load(text)
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_saved_config_has_every_key():
    save_config(load(FULL), "saved.yaml")
    saved = Path("saved.yaml").read_text()
    for key in DetectionConfig.model_fields:
        assert f"\n{key}:" in "\n" + saved
    for key in FasterRCNNOptions.model_fields:
        assert f"\n  {key}:" in saved


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("anchor_sizes: [[32, 48], [64, 80], [96, 128], [192, 256], [384, 512]]", MINIMAL),
        ("finest_stride: 8, anchor_sizes: [32, 64, 128, 256]", MINIMAL),
        ("finest_stride: 16, anchor_sizes: [256, 128, 64]", MINIMAL),
        ("neck: none, anchor_sizes: [[128, 256]]", MINIMAL),
        ("anchor_sizes: [32, 64, 128, 256, 512]", RETINANET),
        ("finest_stride: 4, anchor_sizes: [16, 32, 64, 128, 256, 512]", RETINANET),
        ("finest_stride: 16, anchor_sizes: [[16], 64, 128, 256]", RETINANET),
    ],
)
def test_anchors_of_one_entry_a_level_are_taken(keys, text):
    sizes = json.loads(keys.partition("anchor_sizes: ")[2])
    expected = tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
    assert load(with_model(keys, text)).model.anchor_sizes == expected


@pytest.mark.parametrize(
    "keys",
    [
        "neck: none, head: stage",
        "neck: none, head: dense, head_channels: 8, dropout: 0.5",
        "weights: null, norm: group",
        "weights: null, norm: batch",
        "neck: none, roi_pooling: pool",
        "box_loss: ciou",
        "box_loss: smooth_l1, smooth_l1_beta: 1",
        "box_loss: giou, smooth_l1_beta: 1",
        "rpn_background_iou: 0.7",
        "roi_background_iou: [0.1, 0.4], roi_foreground_iou: 0.4",
        "test_proposals: 50",
    ],
)
def test_keys_that_fit_together_are_taken(keys):
    assert load(with_model(keys)).model.name == "faster_rcnn"


def test_a_vgg_may_be_trained_from_scratch_since_it_has_no_norms():
    assert load(MINIMAL.replace("resnet50", "vgg16, weights: null")).model.norm == "frozen"


def test_overrides_reach_into_a_detectors_config():
    config = load(MINIMAL, ["model.roi_samples=64", "train.schedule.warmup_steps=5", "model.head_norm=group"])
    assert (config.model.roi_samples, config.train.schedule.warmup_steps) == (64, 5)
    assert config.model.head_norm == "group"


def test_an_override_of_the_task_brings_that_tasks_defaults():
    overrides = ["data.format=voc", "model={name: retinanet, backbone: vgg16}", "task=detection"]
    assert isinstance(load(SEGMENTATION, overrides), DetectionConfig)


# Messages


MODEL = "c.yaml:3: model"
REFUSALS = {
    "neck: fpm": f"{MODEL}.neck: got 'fpm', expected one of fpn, none; did you mean 'fpn'?",
    "anchor_sizes: 32": f"{MODEL}.anchor_sizes: got 32, expected a list",
    "anchor_sizes: []": f"{MODEL}.anchor_sizes: got [], expected at least one entry",
    "anchor_sizes: [1, [2, -1], 3, 4, 5]": f"{MODEL}.anchor_sizes.1.1: got -1, expected a number > 0",
    "anchor_sizes: [1, [], 3, 4, 5]": f"{MODEL}.anchor_sizes.1: got [], expected at least one entry",
    "anchor_sizes: [1, 2, 3, 4, big]": f"{MODEL}.anchor_sizes.4: got 'big', expected a number of pixels or a list of "
    "such numbers",
    "anchor_sizes: [8, 16]": f"{MODEL}: anchor_sizes is [8.0, 16.0], but there are 5 levels, of strides 4, 8, 16, 32, "
    "64; expected one entry for each, a number or a list of numbers",
    "anchor_sizes: [8, 16, 32, 64, 128], finest_stride: 8": f"{MODEL}: anchor_sizes is [8.0, 16.0, 32.0, 64.0, 128.0], "
    "but there are 4 levels, of strides 8, 16, 32, 64; expected one entry for each, a number or a list of numbers",
    "anchor_sizes: [8, 16], neck: none": f"{MODEL}: anchor_sizes is [8.0, 16.0], but there is one level, of stride 16; "
    "expected one entry for each, a number or a list of numbers",
    "anchor_sizes: [32, 64, [96, 128], 256, 512]": f"{MODEL}: anchor_sizes is [32.0, 64.0, [96.0, 128.0], 256.0, "
    "512.0], but the levels share one head; expected a number for each or lists of equally many",
    "anchor_ratios: []": f"{MODEL}.anchor_ratios: got [], expected at least one entry",
    "finest_stride: 2": f"{MODEL}.finest_stride: got 2, expected one of 4, 8, 16",
    "neck: none, finest_stride: 8": f"{MODEL}: finest_stride is 8, which needs neck: fpn",
    "neck: none, fpn_channels: 64": f"{MODEL}: fpn_channels is 64, which needs neck: fpn",
    "head: stage": f"{MODEL}: head is stage, but neck is fpn; expected dense or null, or neck: none and no VGG",
    "neck: none, dropout: 0.5": f"{MODEL}: dropout is 0.5, which needs head: dense",
    "neck: none, head: stage, head_channels: 9": f"{MODEL}: head_channels is 9, which needs head: dense",
    "roi_pooling: pool, roi_aligned: false": f"{MODEL}: roi_aligned is false, which needs roi_pooling: align",
    "roi_pooling: pool, sampling_ratio: 4": f"{MODEL}: sampling_ratio is 4, which needs roi_pooling: align",
    "roi_pooling: pool": f"{MODEL}: roi_pooling is pool, which needs neck: none, a single map; expected align",
    "box_loss: iou": f"{MODEL}.box_loss: got 'iou', expected one of smooth_l1, l1, giou, ciou; did you mean 'giou'?",
    "rpn_background_iou: 0.8": f"{MODEL}: rpn_background_iou is 0.8, rpn_foreground_iou is 0.7: expected "
    "rpn_background_iou <= rpn_foreground_iou",
    "rpn_foreground_iou: 0": f"{MODEL}.rpn_foreground_iou: got 0, expected a number > 0",
    "roi_background_iou: [0.5, 0.5]": f"{MODEL}: roi_background_iou is [0.5, 0.5], roi_foreground_iou is 0.5: expected "
    "[low, high] with low < high <= roi_foreground_iou",
    "roi_foreground_iou: 0.4": f"{MODEL}: roi_background_iou is [0.0, 0.5], roi_foreground_iou is 0.4: expected "
    "[low, high] with low < high <= roi_foreground_iou",
    "roi_background_iou: 0.5": f"{MODEL}.roi_background_iou: got 0.5, expected [low, high]",
    "box_deviations: [1, 1]": f"{MODEL}.box_deviations: got [1, 1], expected [x, y, width, height]",
    "box_deviations: [1, 1, 0, 1]": f"{MODEL}.box_deviations.2: got 0, expected a number > 0",
    "roi_foreground_share: 1.5": f"{MODEL}.roi_foreground_share: got 1.5, expected a number <= 1",
    "rpn_samples: 1": f"{MODEL}: rpn_samples is 1, but at most half of them are objects; expected 2 or more",
    "roi_samples: 3": f"{MODEL}: roi_samples is 3, of which a share of 0.25 (roi_foreground_share) may be objects: "
    "less than one; expected more",
    "rpn_samples: 0": f"{MODEL}.rpn_samples: got 0, expected a whole number >= 1",
    "max_detections: 1.5": f"{MODEL}.max_detections: got 1.5, expected a whole number",
    "score_threshold: 1": f"{MODEL}.score_threshold: got 1, expected a number < 1",
    "head_norm: frozen": f"{MODEL}.head_norm: got 'frozen', expected one of batch, group",
    "weights: null": f"{MODEL}: norm is frozen, but with weights: null its statistics would never be learned; "
    "expected norm: batch, norm: group or weights",
    "focal_alpha: 0.3": f"{MODEL}.focal_alpha: unknown key; it is for name: retinanet",
    "foreground_iou: 0.3": f"{MODEL}.foreground_iou: unknown key; did you mean 'rpn_foreground_iou'?",
    "multi_grid: [1, 2]": f"{MODEL}.multi_grid: unknown key; it is for task: segmentation",
}


@pytest.mark.parametrize("keys", REFUSALS)
def test_wrong_key_of_faster_rcnn_is_refused_with_what_was_expected(keys):
    assert message(with_model(keys)) == REFUSALS[keys]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            "anchor_sizes: [32]",
            ": anchor_sizes is [32.0], but there are 5 levels, of strides 8, 16, 32, 64, 128; expected one entry for "
            "each, a number or a list of numbers",
        ),
        (
            "background_iou: 0.6",
            ": background_iou is 0.6, foreground_iou is 0.5: expected background_iou <= foreground_iou",
        ),
        ("smooth_l1_beta: 1", ": smooth_l1_beta is 1.0, which needs box_loss: smooth_l1"),
        ("prior: 1", ".prior: got 1, expected a number < 1"),
        ("top_levels: pool", ".top_levels: got 'pool', expected one of conv_c5, conv_p5"),
        ("neck: fpn", ".neck: unknown key; it is for name: fast_rcnn, faster_rcnn, mask_rcnn"),
        ("rpn_samples: 9", ".rpn_samples: unknown key; it is for name: faster_rcnn, mask_rcnn"),
        ("multi_grid: [1]", ".multi_grid: unknown key; it is for task: segmentation"),
    ],
)
def test_wrong_key_of_retinanet_is_refused_with_what_was_expected(keys, text):
    assert message(with_model(keys, RETINANET)) == MODEL + text


def test_a_vgg_has_no_stage_for_a_head():
    text = MINIMAL.replace("resnet50", "vgg16, neck: none, head: stage")
    assert message(
        text
    ) == f"{MODEL}: head is stage, but vgg16 has no such stage; expected dense or null, or neck: " + ("none and no VGG")


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (
            MINIMAL,
            "loss=[{name: dice}]",
            "unknown key; it is for task: segmentation; a detector's losses are model.box_loss, "
            "model.box_loss_weight and, for retinanet, model.focal_alpha and model.focal_gamma",
        ),
        (MINIMAL, "tta={}", "unknown key; it is for task: segmentation"),
        (MINIMAL, "evaluation={}", "unknown key; it is for task: segmentation"),
        (
            MINIMAL,
            "model.name=unet",
            "got 'unet', expected one of rcnn, fast_rcnn, faster_rcnn, mask_rcnn, retinanet; 'unet' is for task: "
            "segmentation",
        ),
        (
            MINIMAL,
            "data.format=voc-segmentation",
            "got 'voc-segmentation', expected one of voc, coco, folder, custom; 'voc-segmentation' is for task: "
            "segmentation",
        ),
        (MINIMAL, "data.ignore_label=3", "unknown key; it is about label maps, for task: segmentation"),
        (
            SEGMENTATION,
            "model.name=retinanet",
            "got 'retinanet', expected one of fcn32s, fcn16s, fcn8s, fcn, unet, deeplabv3, deeplabv3plus, custom; "
            "'retinanet' is for task: detection",
        ),
        (
            SEGMENTATION,
            "data.format=voc",
            "got 'voc', expected one of voc-segmentation, coco, folder, custom; 'voc' is for task: detection",
        ),
        (SEGMENTATION, "model.box_loss=l1", "unknown key; it is for task: detection"),
        (SEGMENTATION, "tta.flipp=none", "unknown key; did you mean 'flip'?"),
        (SEGMENTATION, "detection={}", "unknown key; expected one of task, seed, data, augmentation, model, loss, "),
        (MINIMAL, "zzz=1", "unknown key; expected one of task, seed, data, augmentation, model, train"),
    ],
)
def test_what_is_for_the_other_task_says_so(text, override, expected):
    assert message(text, [override]).startswith(f"--set {override}: {expected}")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("detektion", "got 'detektion', expected one of segmentation, detection; did you mean 'detection'?"),
        ("3", "got 3, expected one of segmentation, detection"),
        ("[1]", "got [1], expected one of segmentation, detection"),
        ("", "got null, expected one of segmentation, detection"),
    ],
)
def test_an_unknown_task_is_the_one_thing_that_is_told(task, expected):
    assert message(MINIMAL.replace("task: detection", f"task: {task}")) == f"c.yaml:1: task: {expected}"


def test_a_missing_task_is_the_one_thing_that_is_told():
    text = MINIMAL.replace("task: detection\n", "")
    assert message(text, ["loss.0.weight=2"]) == "c.yaml: task: missing; expected one of segmentation, detection"


def test_a_child_that_changes_the_task_is_told_of_each_key_of_the_base_that_does_not_fit():
    Path("base.yaml").write_text(SEGMENTATION + "tta: {}\n")
    assert message("base: base.yaml\ntask: detection\n").split("\n") == [
        "base.yaml:2: data.format: got 'voc-segmentation', expected one of voc, coco, folder, custom; "
        "'voc-segmentation' is for task: segmentation",
        "base.yaml:3: model.name: got 'fcn8s', expected one of rcnn, fast_rcnn, faster_rcnn, mask_rcnn, retinanet; "
        "'fcn8s' is for task: segmentation",
        "base.yaml:8: tta: unknown key; it is for task: segmentation",
    ]


def test_a_dict_that_is_no_config_is_refused():
    with pytest.raises(ValueError, match="task"):
        parse_config({"task": "nothing"})


# For editors


def test_schema_has_both_tasks_with_all_their_keys():
    schema = json.loads(json.dumps(config_schema()))
    sections = schema["$defs"]
    assert [choice["$ref"] for choice in schema["anyOf"]] == [
        "#/$defs/SegmentationConfig",
        "#/$defs/DetectionConfig",
    ]
    for model in (SegmentationConfig, DetectionConfig):
        assert set(sections[model.__name__]["properties"]) == {"base", *model.model_fields}
    assert sections["DetectionConfig"]["properties"]["task"]["const"] == "detection"
    for model in (FasterRCNNOptions, RetinaNetOptions):
        properties = sections[model.__name__]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all(value["description"].endswith(".") for value in properties.values())
    forms = sections["FasterRCNNOptions"]["properties"]["anchor_sizes"]["anyOf"][0]["items"]["anyOf"]
    assert [form["type"] for form in forms] == ["number", "array"]


def test_every_recipe_is_read():
    recipes = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        config = load_config(recipe)
        assert parse_config(config.model_dump(mode="json")) == config
