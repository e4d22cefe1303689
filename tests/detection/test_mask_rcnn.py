"""Mask R-CNN: its losses, its detections, and stock training on both backends."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from faster_rcnn_cases import SMALL
from mask_rcnn_cases import batch, step, tiny
from retinanet_cases import tiny_backbone

from detseg.data.masks import boxes_of_masks, crop_masks
from detseg.detection.mask_head import CROP_SIZE
from detseg.detection.mask_rcnn import MaskRCNN
from detseg.detection.options import MaskRCNNOptions
from detseg.inference.detection import DetectionInference
from detseg.metrics.detection import DetectionScores

ON_JAX = """
import sys
import jax, keras, numpy as np
from mask_rcnn_cases import batch, step, tiny

assert keras.backend.backend() == "jax"
images, objects = batch()
model = tiny()
model.load_weights(sys.argv[1])
found = jax.jit(lambda x: model.detect(x, objects["image_sizes"], under_xla=True))(images)
found = dict(zip(("boxes", "labels", "scores", "valid", "masks"), found))
np.savez(sys.argv[2], **found, **step(model, x=images, y=objects, batch_size=2))
"""


def losses(model, images, objects):
    """{name: value} of one evaluation without training."""
    model.compile(jit_compile=False)
    values = {"loss": float(model.compute_loss(images, objects, model(images)))}
    return values | {tracker.name: float(tracker.result()) for tracker in model.loss_trackers}


def detections(model, **options):
    images, objects = batch()
    return [np.array(x) for x in model.detect(images, objects["image_sizes"], **options)]


def without_objects(objects):
    return objects | {"labels": np.full_like(objects["labels"], -1), "boxes": 0 * objects["boxes"]}


def test_an_untrained_mask_costs_log_2_and_is_part_of_the_sum():
    model = tiny(mask_loss_weight=0.5)
    layer = model.mask_head.get_layer("mask_logits")
    layer.kernel.assign(0 * layer.kernel)
    logs = losses(model, *batch())
    assert logs["mask_loss"] == pytest.approx(0.5 * np.log(2), rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(logs[name] for name in MaskRCNN.loss_names), rel=1e-5)


def test_a_batch_without_objects_costs_nothing_and_moves_no_mask():
    model = tiny()
    model.compile(jit_compile=False)
    images, objects = batch()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images, without_objects(objects), model(images))
    gradients = tape.gradient(loss, [x.value for x in model.mask_head.trainable_variables])
    assert float(model.loss_trackers[-1].result()) == 0
    assert not any(np.any(tf.convert_to_tensor(x)) for x in gradients)
    assert np.isfinite(float(loss))


def test_only_the_mask_of_the_objects_class_learns_and_background_regions_learn_nothing():
    images, objects = batch()  # of the labels 2 and 0, and a crowd of 1
    before = losses(tiny(), images, objects)["mask_loss"]
    for label, matters in ((0, True), (1, False), (2, True)):
        model = tiny()
        layer = model.mask_head.get_layer("mask_logits")
        layer.bias.assign(np.eye(3)[label] * 3.0)
        assert (losses(model, images, objects)["mask_loss"] != pytest.approx(before, abs=1e-6)) is matters


def test_an_object_whose_mask_has_no_pixel_is_found_but_its_mask_not_learned():
    images, objects = batch()
    crops = objects["masks"].copy()
    crops[0, 1] = 0
    alone = objects | {"labels": np.array([[2, -1, 1, -1], [-1] * 4], "int32")}
    logs, expected = (losses(tiny(), images, each) for each in (objects | {"masks": crops}, alone))
    assert logs["mask_loss"] == pytest.approx(expected["mask_loss"], rel=1e-3)
    assert logs["box_loss"] != pytest.approx(expected["box_loss"], rel=1e-3)


def test_ground_truth_without_masks_is_an_error_that_says_so():
    images, objects = batch()
    del objects["masks"]
    with pytest.raises(ValueError, match="no masks"):
        losses(tiny(), images, objects)


def test_every_weight_learns_in_one_step():
    model = tiny(spread=True)
    images, objects = batch()
    before = {x.path: np.array(x) for x in model.trainable_variables}
    step(model, x=images, y=objects)
    assert [x.path for x in model.trainable_variables if np.array_equal(before[x.path], x)] == []


def test_detections_have_masks_between_0_and_1_and_none_where_there_is_no_detection():
    _, _, _, valid, masks = detections(tiny(spread=True))
    assert masks.shape == (2, 100, 14, 14)
    assert 0 < valid.sum() < valid.size
    assert masks[valid].min() >= 0
    assert masks[valid].max() <= 1
    assert masks[valid].std() > 0.05
    assert not masks[~valid].any()


def test_masks_are_those_of_the_final_boxes():
    """Not those of the proposals: asked for the boxes that were found, the mask head says the same."""
    model = tiny(spread=True)
    images, _ = batch()
    boxes, labels, _, valid, masks = detections(model, max_detections=30)
    logits = model._mask_logits(model(images)["features"], boxes, np.maximum(labels, 0), False, False)
    expected = np.array(keras.ops.sigmoid(logits)).reshape(2, 30, 14, 14)
    np.testing.assert_allclose(masks[valid], expected[valid], atol=1e-5)


def test_no_detection_at_all_is_no_mask():
    assert not detections(tiny(spread=True), score_threshold=0.999)[4].any()


def test_one_graph_detects_and_xla_agrees():
    model = tiny(spread=True)
    images, objects = batch()
    expected = detections(model)
    found = tf.function(model.detect)(images, objects["image_sizes"])
    compiled = tf.function(lambda *x: model.detect(*x, under_xla=True), jit_compile=True)
    for result in (found, compiled(images, objects["image_sizes"])):
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_what_is_saved_as_keras_loads_and_detects_the_same(tmp_path):
    model = MaskRCNN(
        MaskRCNNOptions(
            backbone="resnet18", alpha=0.0625, weights=None, norm="batch", mask_channels=4, score_threshold=0.0
        ),
        3,
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    for ours, expected in zip(detections(loaded), detections(model), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_paths_of_variables_are_unique():
    model = tiny()
    assert len({x.path for x in model.variables}) == len(model.variables)


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
    expected = dict(zip(("boxes", "labels", "scores", "valid", "masks"), detections(model), strict=True))
    assert expected["valid"].sum() > 10
    expected |= step(model, x=images, y=objects, batch_size=2)
    assert set(results) == set(expected)
    for key, value in expected.items():
        atol = 1e-3 if key in ("boxes", "masks") else 1e-4
        np.testing.assert_allclose(results[key], value, atol=atol, rtol=1e-3, err_msg=key)


@pytest.mark.slow
def test_one_image_is_learned_to_a_mask_ap_of_1():
    """Three ellipses and a triangle of two classes, far from boxes' shapes; 300 steps, scored as COCO does."""
    height, width = 96, 128
    rows, columns = np.indices((height, width)) + 0.5
    ellipses = ((30, 30, 22, 14), (90, 28, 14, 22), (96, 74, 24, 12))  # x, y and half their width and height
    masks = [((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1 for x, y, a, b in ellipses]
    masks.append((rows > 56) & (columns < 60) & (rows - columns < 36))
    masks = np.array(masks, np.uint8)
    boxes, labels = boxes_of_masks(masks), np.array([0, 0, 1, 1])
    image = np.full((1, height, width, 3), 40, np.uint8)
    for mask, label in zip(masks, labels, strict=True):
        image[0, mask > 0] = (200, 60, 90) if label else (60, 180, 220)
    objects = {
        "boxes": boxes[None],
        "labels": labels[None].astype("int32"),
        "is_crowd": np.zeros((1, 4), bool),
        "image_sizes": np.array([[height, width]], "float32"),
        "masks": crop_masks(masks, boxes, CROP_SIZE)[None],
    }
    keras.utils.set_random_seed(0)
    small = SMALL | {"finest_stride": 4, "anchor_sizes": None, "fpn_channels": 32, "mask_channels": 32}
    options = MaskRCNNOptions(**small, mask_convolutions=2, anchor_scales=[0.5, 1.0])
    model = MaskRCNN(options, 2, backbone=tiny_backbone(width=32))
    model.compile(keras.optimizers.Adam(2e-3), jit_compile=False)
    data = tf.data.Dataset.from_tensors((image, objects)).repeat()
    model.fit(data, steps_per_epoch=300, epochs=1, verbose=0)
    found = DetectionInference(model)(image[0])
    scores = DetectionScores(("a", "b"), masks=True)
    scores.update(boxes, labels, found.boxes, found.labels, found.scores, true_masks=masks, masks=found.masks)
    result = scores.result()
    assert result["coco_masks"]["AP50"] == result["coco"]["AP50"] == 1
    assert result["coco_masks"]["AP75"] == 1
    assert result["coco_masks"]["AP"] > 0.95
