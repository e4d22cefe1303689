"""Faster R-CNN: its parts on every kind of backbone, its losses by hand, and stock training on both backends."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from faster_rcnn_cases import batch, step, tiny
from retinanet_cases import tiny_backbone

from detseg.backbones.create import create_backbone
from detseg.detection.boxes import encode_boxes, iou
from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.heads import create_dense_head, create_rpn, load_dense_weights, split_backbone
from detseg.detection.matching import BACKGROUND, FOREGROUND, match_boxes
from detseg.detection.options import FasterRCNNOptions
from detseg.layers.conv import Conv2D

ON_JAX = """
import sys
import jax, keras, numpy as np
from faster_rcnn_cases import batch, step, tiny
from retinanet_cases import tiny_backbone

assert keras.backend.backend() == "jax"
images, objects = batch()
model = tiny()
model.load_weights(sys.argv[1])
found = jax.jit(lambda x: model.detect(x, objects["image_sizes"], under_xla=True))(images)
found = dict(zip(("boxes", "labels", "scores", "valid"), found))
np.savez(sys.argv[2], **found, **step(model, x=images, y=objects, batch_size=2))
"""


def losses(model, images=None, objects=None):
    """{name: value} of one evaluation without training."""
    default = batch()
    images, objects = default[0] if images is None else images, default[1] if objects is None else objects
    model.compile(jit_compile=False)
    values = {"loss": float(model.compute_loss(images, objects, model(images)))}
    return values | {tracker.name: float(tracker.result()) for tracker in model.loss_trackers}


def train(model):
    """What a step logs; asserts that every trainable weight has changed and all are finite."""
    images, objects = batch()
    before = {x.path: np.array(x) for x in model.trainable_variables}
    logs = step(model, x=images, y=objects)
    assert [x.path for x in model.trainable_variables if np.array_equal(before[x.path], x)] == []
    assert all(np.isfinite(x).all() for x in model.get_weights())
    return logs


def changed(objects, **arrays):
    return {key: np.asarray(arrays.get(key, value), value.dtype) for key, value in objects.items()}


def detections(model, images=None, sizes=None, **options):
    default = batch()
    found = model.detect(
        default[0] if images is None else images, default[1]["image_sizes"] if sizes is None else sizes, **options
    )
    return [np.array(x) for x in found]


# ----- structure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output_stride", "strides"), [(32, (4, 8, 16, 32, 64)), (16, (4, 8, 16, 16, 32))])
def test_pyramids_of_all_output_strides_train_and_detect(output_stride, strides):
    model = tiny(output_stride=output_stride, finest_stride=4, anchor_sizes=None)
    assert model.anchors.strides == strides
    assert model.anchors.sizes == (32, 64, 128, 256, 512)
    assert [strides[i] for i in model.region_levels] == sorted(set(strides[:4]))
    outputs = model(batch()[0])
    maps = [(-(-96 // stride), 64 // stride) for stride in strides]
    assert [tuple(x.shape[1:3]) for x in outputs["features"]] == maps
    assert [tuple(x.shape) for x in outputs["deltas"]] == [(2, height * width * 3, 4) for height, width in maps]
    if output_stride < 32:
        assert detections(model, score_threshold=0.0)[3].any()
        train(model)


@pytest.mark.parametrize("name", ["resnet50v2", "xception"])
def test_a_backbone_is_split_at_stride_16_without_sharing(name):
    backbone = create_backbone(name, alpha=0.25)
    trunk, stage = split_backbone(backbone)
    images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")
    middle = trunk(images)
    assert middle.shape[1:3] == (4, 6)
    np.testing.assert_array_equal(stage(middle), backbone(images)[32])
    paths = [{x.path for x in part.variables} for part in (trunk, stage)]
    assert not paths[0] & paths[1]
    assert paths[0] | paths[1] == {x.path for x in backbone.model.variables}


@pytest.mark.parametrize(
    ("backbone", "options", "head_layer"),
    [
        ("vgg16", {"alpha": 1 / 16, "roi_pooling": "pool", "head_channels": 32}, "fc6"),
        ("resnet18", {"alpha": 1 / 16}, "resnet18_stage"),
        ("tiny", {"class_agnostic": True, "head": "stage", "output_stride": 16}, "tiny_stage"),
        ("tiny", {"head": "dense", "head_channels": 8}, "fc7"),
    ],
    ids=["vgg", "stage", "stage at output stride 16", "dense"],
)
def test_single_maps_train_and_detect(backbone, options, head_layer):
    keras.utils.set_random_seed(0)
    small = {"roi_samples": 16, "train_proposals": 20, "test_proposals": 20, "rpn_channels": 16}
    small |= {"neck": "none", "anchor_sizes": [[16, 32]], "weights": None, "norm": "batch"}
    ready = tiny_backbone(options.get("output_stride", 32)) if backbone == "tiny" else None
    name = "resnet18" if ready else backbone
    model = FasterRCNN(FasterRCNNOptions(backbone=name, **small | options), 3, backbone=ready)
    assert model.head.get_layer(head_layer)
    assert model.options.roi_size == (14 if head_layer.endswith("stage") else 7)
    assert model.anchors.strides == (16,)
    assert len({x.path for x in model.variables}) == len(model.variables)
    boxes, _, _, valid = detections(model, score_threshold=0.0)
    assert valid.any()
    assert boxes.shape == (2, 100, 4)
    train(model)


def test_paths_of_variables_are_unique_and_weights_come_back(tmp_path):
    options = {"head_norm": "group", "head_channels": 64, "dropout": 0.1}
    model = tiny(spread=True, **options)
    model.compile("sgd")
    assert len({x.path for x in model.variables}) == len(model.variables)
    assert set(model.get_state_tree()["trainable_variables"]) >= {
        "stage2",
        "fpn_lateral8",
        "rpn_conv",
        "fc6",
        "class_boxes",
    }
    model.save_weights(tmp_path / "model.weights.h5")
    other = tiny(**options)
    assert not np.array_equal(detections(other)[0], detections(model)[0])
    other.load_weights(tmp_path / "model.weights.h5")
    for ours, theirs in zip(detections(other), detections(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_new_layers_start_as_in_the_paper():
    rpn, head = create_rpn(64, 3, 64), create_dense_head(4, 7, 40, 40, 256)
    for model, name, deviation in (
        *((rpn, "rpn_conv", 0.01), (rpn, "rpn_objectness", 0.01), (rpn, "rpn_boxes", 0.01)),
        *((head, "class_logits", 0.01), (head, "class_boxes", 0.001)),
    ):
        kernel, bias = model.get_layer(name).get_weights()
        assert kernel.std() == pytest.approx(deviation, rel=0.15)
        assert not bias.any()


def test_dense_weights_of_vgg_act_as_its_convolutions():
    rng = np.random.default_rng(0)
    weights = {
        "fc1": (rng.normal(size=(7 * 7 * 6, 5)).astype("float32"), rng.normal(size=5).astype("float32")),
        "fc2": (rng.normal(size=(5, 5)).astype("float32"), rng.normal(size=5).astype("float32")),
    }
    head = create_dense_head(6, 7, 3, 3, channels=5)
    load_dense_weights(head, weights)
    regions = rng.normal(size=(4, 7, 7, 6)).astype("float32")
    fc6 = Conv2D(5, 7)
    fc6.build(regions.shape)
    fc6.set_weights([weights["fc1"][0].reshape(7, 7, 6, 5), weights["fc1"][1]])
    expected = np.maximum(np.array(fc6(regions))[:, 0, 0], 0)
    np.testing.assert_allclose(
        keras.Model(head.input, head.get_layer("fc6_relu").output)(regions), expected, rtol=1e-4, atol=1e-4
    )
    expected = np.maximum(expected @ weights["fc2"][0] + weights["fc2"][1], 0)
    np.testing.assert_allclose(
        keras.Model(head.input, head.get_layer("fc7_relu").output)(regions), expected, rtol=1e-4, atol=1e-3
    )


# ----- losses --------------------------------------------------------------------------------------------------------


def test_rpn_losses_are_means_over_the_sampled_anchors_of_the_whole_batch():
    model = tiny(spread=True)
    images, objects = batch()
    outputs = model(images)
    anchors = np.concatenate(model.level_anchors(images, outputs["features"]))
    logs = losses(model)

    valid = objects["labels"] >= 0
    matched, states = match_boxes(anchors, objects["boxes"], valid, 0.7, (0, 0.3), True, objects["is_crowd"])
    logits, deltas = (np.concatenate(outputs[key], axis=1) for key in ("objectness", "deltas"))
    is_object, used = np.equal(states, FOREGROUND), np.isin(states, (FOREGROUND, BACKGROUND))
    assert is_object.sum(1).min() == 0 < is_object.sum()
    log_losses = np.log1p(np.exp(np.where(is_object, -logits, logits)))
    assert logs["rpn_class_loss"] == pytest.approx(log_losses[used].mean(), rel=1e-5)
    targets = encode_boxes(np.take_along_axis(objects["boxes"], np.array(matched)[..., None], 1), anchors)
    errors = np.abs(deltas - targets)
    smooth = np.where(errors < 1 / 9, errors**2 * 4.5, errors - 0.5 / 9).sum(-1)
    assert logs["rpn_box_loss"] == pytest.approx(smooth[is_object].sum() / used.sum(), rel=1e-5)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_head_losses_of_two_objects_and_one_background_proposal_by_hand(class_agnostic):
    model = tiny(train_proposals=1, box_loss="l1", box_loss_weight=0.5, class_agnostic=class_agnostic)
    for layer in (model.head.get_layer("class_logits"), model.head.get_layer("class_boxes")):
        layer.kernel.assign(0 * layer.kernel)
    deltas = [1.0] * 4 if class_agnostic else [1.0] * 4 + [2.0] * 4 + [3.0] * 4  # what each class says
    model.head.get_layer("class_boxes").bias.assign(deltas)
    images, objects = batch()
    objects = changed(objects, boxes=objects["boxes"] * [[[1]], [[0]]], labels=[[2, 0, 1, -1], [-1] * 4])
    logs = losses(model, images[:1], {key: value[:1] for key, value in objects.items()})
    assert logs["class_loss"] == pytest.approx(np.log(4), rel=1e-5)
    # The objects are proposals too, with targets of 0; the crowd (label 1) is none; the network's one is background.
    total = (1 + 1) * 4 if class_agnostic else (3 + 1) * 4
    assert logs["box_loss"] == pytest.approx(0.5 * total / 3, rel=1e-5)
    parts = sum(logs[name] for name in FasterRCNN.loss_names)
    assert logs["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "ciou"])
def test_a_batch_without_objects_trains_towards_background_only(box_loss):
    model = tiny(box_loss=box_loss)
    model.compile(jit_compile=False)
    images, objects = batch()
    nothing = changed(objects, boxes=np.zeros((2, 4, 4)), labels=np.full((2, 4), -1), is_crowd=np.zeros((2, 4)))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images, nothing, model(images))
    rpn_class_loss, rpn_box_loss, class_loss, box_loss = (float(x.result()) for x in model.loss_trackers)
    assert rpn_box_loss == box_loss == 0
    assert rpn_class_loss == pytest.approx(np.log(2), rel=0.1)
    assert class_loss == pytest.approx(np.log(4), rel=0.1)
    gradients = tape.gradient(loss, [model.rpn.get_layer("rpn_boxes").bias, model.head.get_layer("class_logits").bias])
    assert not np.any(gradients[0])
    assert np.array(gradients[1]).argmin() == 3  # only background rises


def test_room_for_more_objects_changes_nothing():
    images, objects = batch()
    room = {"boxes": [(0, 0), (0, 30), (0, 0)], "labels": [(0, 0), (0, 30)], "is_crowd": [(0, 0), (0, 30)]}
    more = {key: np.pad(value, room[key]) if key in room else value for key, value in objects.items()}
    more["labels"][:, 4:] = -1
    options = {"rpn_samples": 20, "roi_samples": 8}  # the same are drawn
    assert losses(tiny(**options), images, more) == losses(tiny(**options), images, objects)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_logits_targets_and_losses_in_float32(precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = tiny(spread=True)
    finally:
        keras.config.set_dtype_policy("float32")
    images, objects = batch()
    outputs = model(images)
    assert {x.dtype.name for x in outputs["features"]} == {precision.removeprefix("mixed_")}
    assert {x.dtype.name for key in ("objectness", "deltas") for x in outputs[key]} == {"float32"}
    model.compile(jit_compile=False)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images, objects, model(images))
    assert loss.dtype == "float32"
    gradients = tape.gradient(loss, [x.value for x in model.trainable_variables])
    assert all(np.isfinite(tf.convert_to_tensor(x)).all() for x in gradients)
    boxes, _, scores, valid = detections(model)
    assert boxes.dtype == scores.dtype == "float32"
    assert valid.any()


# ----- detections ----------------------------------------------------------------------------------------------------


def test_detections_are_sorted_inside_their_images_and_above_the_threshold():
    model = tiny(spread=True)
    boxes, labels, scores, valid = detections(model, score_threshold=0.3, max_detections=7)
    assert boxes.shape == (2, 7, 4)
    assert valid.any()
    for i, (height, width) in enumerate(((96, 64), (80, 50))):
        of_image = boxes[i][valid[i]]
        assert (of_image >= 0).all()
        assert (of_image <= [width, height, width, height]).all()
        assert (np.diff(scores[i][valid[i]]) <= 0).all()
    assert scores[valid].min() > 0.3
    assert set(labels[~valid]) <= {-1}
    assert set(labels[valid]) <= {0, 1, 2}
    assert detections(model)[3].sum() > valid.sum()


def test_one_graph_detects_in_images_of_all_sizes():
    """Sizes that are no multiple of 32 are padded by the model."""
    model = tiny(spread=True)
    signature = [tf.TensorSpec((None, None, None, 3), "uint8"), tf.TensorSpec((None, 2))]
    detect = tf.function(model.detect, input_signature=signature)
    for images in (batch()[0][:, :81, :50], batch()[0][:1]):
        sizes = np.array([images.shape[1:3]] * len(images), "float32")
        found = [np.array(x) for x in detect(images, sizes)]
        assert found[3].any()
        assert (found[0] <= np.tile(sizes[:, None, ::-1], 2)).all()
        for ours, expected in zip(found, detections(model, images, sizes), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-3)


# ----- training ------------------------------------------------------------------------------------------------------


def test_one_object_is_found_after_some_steps_of_stock_fit_with_open_shapes():
    """An image with an object beside one without, in a pipeline that knows no sizes."""
    images, objects = batch()
    images = images // 4
    images[0, 20:60, 10:50] += 150
    objects = changed(objects, boxes=np.zeros((2, 1, 4)), labels=[[1], [-1]], is_crowd=[[False]] * 2)
    objects["boxes"][0] = [10, 20, 50, 60]
    shapes = {"boxes": (None, None, 4), "labels": (None, None), "is_crowd": (None, None), "image_sizes": (None, 2)}
    signature = {key: tf.TensorSpec(shape, objects[key].dtype) for key, shape in shapes.items()}
    data = tf.data.Dataset.from_generator(
        lambda: iter([(images, objects)]),
        output_signature=(tf.TensorSpec((None, None, None, 3), "uint8"), signature),
    ).repeat()
    model = tiny(rpn_samples=64, roi_samples=32)
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), jit_compile=False)
    means = []  # of all steps so far
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda index, logs: means.append(logs["loss"]))
    history = model.fit(data, steps_per_epoch=90, shuffle=False, verbose=0, callbacks=[keep]).history
    assert set(history) == {"loss", *FasterRCNN.loss_names}
    assert means[-1] < 0.5 * means[0]

    boxes, labels, _, valid = detections(model, images, score_threshold=0.5)
    assert list(valid.any(1)) == [True, False]
    assert labels[0, 0] == 1
    assert iou(boxes[0, 0], objects["boxes"][0, 0]) > 0.7


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_detects_and_trains_as_tensorflow_does(tmp_path):
    model = tiny(spread=True)
    model.save_weights(tmp_path / "model.weights.h5")
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # quick to compile
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    files = [str(tmp_path / name) for name in ("model.weights.h5", "jax.npz")]
    subprocess.run([sys.executable, "-c", ON_JAX, *files], env=environment, check=True, timeout=600)
    results = np.load(files[1])
    images, objects = batch()
    expected = dict(zip(("boxes", "labels", "scores", "valid"), detections(model), strict=True))
    assert expected["valid"].sum() > 10
    expected |= step(model, x=images, y=objects, batch_size=2)
    assert set(results) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(results[key], value, atol=1e-3 if key == "boxes" else 1e-4, rtol=1e-3, err_msg=key)
