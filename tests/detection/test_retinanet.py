"""RetinaNet: the same network as torchvision's, and trained, stored and restored by stock Keras on both backends."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_cases import best_candidates
from retinanet_cases import batch, tiny

from detseg.detection.boxes import clip_boxes, decode_boxes, iou
from detseg.detection.losses import box_losses
from detseg.detection.matching import FOREGROUND, IGNORED, match_boxes
from detseg.detection.nms import is_at_least, suppress
from detseg.detection.options import RetinaNetOptions
from detseg.detection.retinanet import RetinaNet

TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torchvision") and sys.executable)

TORCH_SCRIPT = """
import sys
import numpy as np, torch
from torchvision.models.detection import retinanet_resnet50_fpn

torch.manual_seed(0)
image = torch.from_numpy(np.load(sys.argv[1])).permute(2, 0, 1) / 255
options = {"detections_per_img": 100, "min_size": image.shape[1], "max_size": image.shape[2]}
model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=6, **options).eval()
for name, layer in model.named_modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
        torch.nn.init.uniform_(layer.running_mean, -0.2, 0.2)
        torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(layer.weight, *((0.1, 0.3) if name.endswith("bn3") else (0.8, 1.2)))
        torch.nn.init.uniform_(layer.bias, -0.2, 0.2)
classes, boxes = model.head.classification_head, model.head.regression_head
seen = {}
model.head.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
channels = []
classes.cls_logits.register_forward_hook(lambda module, inputs, output: channels.append(output[0].flatten(1)))
with torch.no_grad():
    for parts in (classes.conv, boxes.conv):
        for part in parts:
            torch.nn.init.kaiming_normal_(part[0].weight)  # 0.01 would leave nothing of what the image is
    model([image])  # once: what the scores are made of is scaled so that they lie on both sides of the threshold
    boxes.bbox_reg.weight *= 0.3 / seen["bbox_regression"].std()
    values = torch.cat(channels, 1)  # (A * K, positions)
    scale = 1.2 / values.std(1)
    classes.cls_logits.weight *= scale[:, None, None, None]
    classes.cls_logits.bias[:] = (classes.cls_logits.bias - values.mean(1)) * scale - 4
    found = model([image])[0]
results = {**model.state_dict(), **seen, **{f"found {key}": x for key, x in found.items()}}
np.savez(sys.argv[2], **{key: x.numpy() for key, x in results.items()})
"""


ON_JAX = """
import sys
import jax, keras, numpy as np
from retinanet_cases import batch, tiny

assert keras.backend.backend() == "jax"
images, targets = batch()
model = tiny(head_norm="batch", finest_stride=16)
model.load_weights(sys.argv[1])
found = jax.jit(lambda x: model.detect(x, targets["image_sizes"]))(images)
found = dict(zip(("boxes", "labels", "scores", "valid"), found))
model.compile(keras.optimizers.SGD(0.01))
logs = model.fit(images, targets, batch_size=2, verbose=0).history
results = {**found, **{f"log {key}": x[0] for key, x in logs.items()}}
np.savez(sys.argv[2], **results, **{x.path: np.array(x) for x in model.trainable_variables})
"""


# ----- against torchvision -------------------------------------------------------------------------------------------


def torch_name(name):
    """What torchvision's state calls the layer of ours."""
    parts = name.split("_")
    if parts[0] == "fpn":
        key = int("".join(filter(str.isdigit, parts[1])))
        if key > 32:
            return f"backbone.fpn.extra_blocks.p{6 if key == 64 else 7}"
        block = "inner_blocks" if "lateral" in name else "layer_blocks"
        return f"backbone.fpn.{block}.{int(np.log2(key)) - 3}.0"
    if parts[0] in ("class", "box"):
        head, last = {
            "class": ("head.classification_head", "cls_logits"),
            "box": ("head.regression_head", "bbox_reg"),
        }[parts[0]]
        return f"{head}.{last}" if parts[1] == "output" else f"{head}.conv.{int(parts[1][-1]) - 1}.0"
    if parts[0] == "conv1":
        return {"conv": "backbone.body.conv1", "bn": "backbone.body.bn1"}[parts[1]]
    stage, block, place, kind = int(parts[0][-1]) - 1, int(parts[1][5:]) - 1, int(parts[2]), parts[3]
    start = f"backbone.body.layer{stage}.{block}"
    return f"{start}.downsample.{int(kind == 'bn')}" if place == 0 else f"{start}.{kind}{place}"


def copy_weights(layers, state):
    """Sets the weights of Keras layers by torch's names; the epsilon of both sides' norms is 1e-5."""
    for layer in layers:
        if isinstance(layer, keras.Model):
            copy_weights(layer.layers, state)
        elif layer.weights:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            parts = ("weight", "bias", "running_mean", "running_var") if is_norm else ("weight", "bias")
            values = [state.get(f"{torch_name(layer.name)}.{part}") for part in parts[: len(layer.weights)]]
            layer.set_weights([x.transpose(2, 3, 1, 0) if x.ndim == 4 else x for x in values])


@pytest.mark.skipif(TORCH_PYTHON is None, reason="no torchvision here, and DETSEG_TORCH_PYTHON names no Python with it")
def test_detections_are_those_of_torchvisions_retinanet_resnet50_fpn(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (1, 14, 18, 3))
    image = np.array(tf.image.resize(coarse, (224, 288), "bicubic")[0]).clip(0, 255).round().astype("uint8")
    np.save(tmp_path / "image.npy", image)
    command = [TORCH_PYTHON, "-c", TORCH_SCRIPT, str(tmp_path / "image.npy"), str(tmp_path / "torch.npz")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    state = dict(np.load(tmp_path / "torch.npz"))

    sizes = [(x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)]
    anchors = {"anchor_sizes": sizes, "anchor_scales": (1.0,), "anchor_form": "torchvision"}
    model = RetinaNet(RetinaNetOptions(backbone="resnet50", variant="b", top_levels="conv_p5", **anchors), 6)
    copy_weights(model.layers, state)

    # measured: logits 4e-5 and targets 3e-6 of standard deviations 1.2 and 0.3, boxes 1.4e-4 pixels, scores 4e-6
    outputs = model(image[None])
    for name, theirs, width in (("class_logits", "cls_logits", 6), ("box_deltas", "bbox_regression", 4)):
        ours = np.concatenate([np.reshape(x, (-1, width)) for x in outputs[name]])
        error = np.abs(ours - state[theirs][0]).max()
        assert error < 1e-4
    boxes, labels, scores, valid = (np.array(x)[0] for x in model.detect(image[None], [[224, 288]]))
    assert valid.all()
    their_boxes = state["found boxes"]
    left = (their_boxes[:, 2:] > their_boxes[:, :2]).all(-1)  # torchvision keeps boxes of which nothing is in the image
    expected = [state[f"found {key}"][left] for key in ("boxes", "labels", "scores")]
    count = len(expected[0])
    assert 90 < count <= 100
    np.testing.assert_array_equal(labels[:count], expected[1])
    np.testing.assert_allclose(boxes[:count], expected[0], atol=1e-3)
    np.testing.assert_allclose(scores[:count], expected[2], atol=1e-4)


# ----- training ------------------------------------------------------------------------------------------------------


def dataset(images, targets):
    """Of one batch, its shapes unknown but for the channels."""
    signature = (
        tf.TensorSpec((None, None, None, 3), "uint8"),
        {
            "boxes": tf.TensorSpec((None, None, 4), "float32"),
            "labels": tf.TensorSpec((None, None), "int32"),
            "is_crowd": tf.TensorSpec((None, None), "bool"),
            "image_sizes": tf.TensorSpec((None, 2), "float32"),
        },
    )
    return tf.data.Dataset.from_generator(lambda: iter([(images, targets)]), output_signature=signature)


def gradients(model, images, targets):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images, targets, model(images, training=True))
    found = tape.gradient(loss, model.trainable_variables)
    return float(loss), {
        x.path: np.array(tf.convert_to_tensor(g)) for x, g in zip(model.trainable_variables, found, strict=True)
    }


@pytest.mark.parametrize(("box_loss", "deviations"), [("l1", (1, 1, 1, 1)), ("giou", (0.1, 0.1, 0.2, 0.2))])
def test_losses_are_sums_over_anchors_by_the_number_of_foreground_anchors(box_loss, deviations):
    model = tiny(spread=True, box_loss=box_loss, box_loss_weight=2.0, box_deviations=deviations)
    images, targets = batch()
    outputs = model(images)
    logits = np.concatenate([np.reshape(x, (2, -1, 3)) for x in outputs["class_logits"]], 1).astype("float64")
    deltas = np.concatenate([np.reshape(x, (2, -1, 4)) for x in outputs["box_deltas"]], 1)
    anchors = np.concatenate(model.level_anchors(images, outputs["class_logits"]))
    assert logits.shape[1] == deltas.shape[1] == len(anchors) == 9 * (12 * 8 + 6 * 4 + 3 * 2 + 2 + 1)

    valid = targets["labels"] >= 0
    matched, states = match_boxes(anchors, targets["boxes"], valid, 0.5, (0, 0.4), True, targets["is_crowd"])
    matched, states = np.array(matched), np.array(states)
    assert {FOREGROUND, IGNORED} < set(states[0])
    class_loss = box_total = 0.0
    for image, anchor in np.argwhere(states != IGNORED):
        true = np.zeros(3, bool)
        if states[image, anchor] == FOREGROUND:
            true[targets["labels"][image, matched[image, anchor]]] = True
            box = targets["boxes"][image, matched[image, anchor]]
            box_total += 2 * float(box_losses(box_loss, deltas[image, anchor], anchors[anchor], box, deviations))
        p = 1 / (1 + np.exp(-logits[image, anchor]))
        class_loss += np.where(true, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)).sum()
    count = (states == FOREGROUND).sum()
    total = float(model.compute_loss(images, targets, outputs))
    logs = {x.name: float(x.result()) for x in model.metrics}
    np.testing.assert_allclose(
        [logs["class_loss"], logs["box_loss"]], np.array([class_loss, box_total]) / count, rtol=1e-4
    )
    np.testing.assert_allclose(total, (class_loss + box_total) / count, rtol=1e-4)


def test_a_batch_without_objects_trains_the_classes_alone():
    model = tiny()
    images, targets = batch()
    loss, found = gradients(model, images, {**targets, "labels": np.full((2, 4), -1, "int32")})
    assert 0 < loss < 10
    assert all(np.isfinite(x).all() for x in found.values())
    assert not found["box_output/kernel"].any()
    assert found["class_output/kernel"].any()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_compiles_detections_and_a_step_of_stock_fit_and_gets_the_results_of_tensorflow(tmp_path):
    images, targets = batch()
    model = tiny(spread=True, head_norm="batch", finest_stride=16)
    model.save_weights(tmp_path / "tiny.weights.h5")
    found = model.detect(images, targets["image_sizes"])
    expected = dict(zip(("boxes", "labels", "scores", "valid"), found, strict=True))
    assert np.array(expected["valid"]).sum() > 10
    expected["log loss"], slopes = gradients(model, images, targets)
    expected |= {f"log {x.name}": x.result() for x in model.metrics}
    expected |= {x.path: x - 0.01 * slopes[x.path] for x in model.trainable_variables}

    quick = "--xla_backend_optimization_level=0"  # to compile
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    files = [str(tmp_path / "tiny.weights.h5"), str(tmp_path / "jax.npz")]
    subprocess.run([sys.executable, "-c", ON_JAX, *files], env=environment, check=True, timeout=600)
    on_jax = np.load(files[1])
    assert set(on_jax) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(on_jax[key], value, rtol=1e-3, atol=1e-3, err_msg=key)


def test_stock_fit_of_unknown_shapes_learns_one_image():
    image = np.full((1, 64, 64, 3), 90, "uint8")
    image[:, 8:40, 4:30], image[:, 30:60, 36:60] = (250, 40, 40), (30, 60, 240)
    targets = {
        "boxes": np.array([[[4, 8, 30, 40], [36, 30, 60, 60], [0, 0, 0, 0]]], "float32"),
        "labels": np.array([[1, 0, -1]], "int32"),
        "is_crowd": np.zeros((1, 3), bool),
        "image_sizes": np.array([[64, 64]], "float32"),
    }
    model = tiny(2, fpn_channels=32, finest_stride=16, anchor_sizes=[32, 64, 128, 256])
    model.compile(keras.optimizers.Adam(3e-3))
    logs = model.fit(dataset(image, targets).repeat(), steps_per_epoch=60, verbose=0).history
    assert set(logs) == {"loss", "class_loss", "box_loss"}
    np.testing.assert_allclose(logs["loss"][0], logs["class_loss"][0] + logs["box_loss"][0], rtol=1e-5)
    boxes, labels, scores, _ = (np.array(x)[0] for x in model.detect(image, [[64, 64]]))
    assert sorted(labels[:2]) == [0, 1]
    assert scores[1] > 0.5
    assert scores[2] < scores[1] - 0.1
    assert np.array(iou(boxes[:2], targets["boxes"][0, 1 - labels[:2]])).min() > 0.8


def test_mixed_float16_says_float32_and_has_finite_gradients():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    images, targets = batch()
    outputs = model(images)
    assert {x.dtype for level in outputs.values() for x in level} == {tf.float32}
    loss, found = gradients(model, images, targets)
    assert 0 < loss < 20
    assert all(np.isfinite(x).all() for x in found.values())


# ----- detections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_candidates", "threshold"), [(10, 0.05), (1000, 0.05), (1000, 0.0)])
def test_detections_are_each_levels_best_above_the_threshold(max_candidates, threshold):
    model = tiny(spread=True, max_candidates=max_candidates)
    images, targets = batch()
    sizes = targets["image_sizes"]
    outputs = model(images)
    candidates = []
    levels = outputs["class_logits"], outputs["box_deltas"], model.level_anchors(images, outputs["class_logits"])
    for logits, deltas, anchors in zip(*levels, strict=True):
        boxes = decode_boxes(tf.reshape(deltas, (2, -1, 4)), anchors)[:, :, None]
        scores = tf.sigmoid(tf.reshape(logits, (2, -1, 3)))
        boxes, labels, scores, valid = best_candidates(boxes, scores, threshold, max_candidates)
        boxes = clip_boxes(boxes, sizes)
        candidates.append((boxes, labels, scores, valid & is_at_least(boxes, 1e-2)))
    joined = [tf.concat(parts, 1) for parts in zip(*candidates, strict=True)]
    expected = suppress(*joined, 0.5, 60)
    found = model.detect(images, sizes, threshold, 60)
    assert np.array(found[3]).sum() > 20
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    boxes = np.array(found[0])
    limits = sizes[:, None][..., [1, 0, 1, 0]]
    assert ((boxes >= 0) & (boxes <= limits)).all()


def test_one_trace_detects_in_images_of_every_size():
    model = tiny(spread=True, anchor_form="torchvision", finest_stride=16)
    shapes = tf.TensorSpec((None, None, None, 3), "uint8"), tf.TensorSpec((None, 2), "float32")
    detect = tf.function(model.detect, input_signature=shapes)
    images, targets = batch()
    for some, sizes in ((images, targets["image_sizes"]), (images[:1, :33, :47], np.array([[33, 47]], "float32"))):
        for ours, eager in zip(detect(some, sizes), model.detect(some, sizes), strict=True):
            np.testing.assert_allclose(ours, eager, rtol=1e-4, atol=1e-3)
    assert detect.experimental_get_tracing_count() == 1


# ----- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_every_score_starts_near_the_prior(prior):
    outputs = tiny(prior=prior)(batch()[0])
    scores = np.concatenate([np.ravel(tf.sigmoid(x)) for x in outputs["class_logits"]])
    np.testing.assert_allclose(scores, prior, rtol=0.2)
    np.testing.assert_allclose(scores.mean(), prior, rtol=0.01)


def test_convolutions_of_the_heads_are_shared_and_differ_and_batch_norms_belong_to_a_level():
    model = tiny(head_convolutions=2, head_norm="batch")
    kernels = [x for x in model.trainable_variables if x.path.startswith(("class_", "box_")) and x.name == "kernel"]
    assert len(kernels) == 2 * 3
    towers = [np.array(x) for x in kernels if x.shape[-1] == 16]
    assert len(towers) == 4
    assert all((towers[0] != x).any() for x in towers[1:])
    norms = [x for x in model.head.layers if "_norm" in x.name and x.name.startswith(("class_", "box_"))]
    assert len(norms) == 2 * 2 * 5
    grouped = tiny(head_convolutions=2, head_norm="group")
    assert sum("_norm" in x.name and not x.name.startswith("fpn") for x in grouped.head.layers) == 2 * 2


def test_weights_have_one_name_each_and_come_back_from_a_file(tmp_path):
    model, other = tiny(head_norm="batch", spread=True), tiny(head_norm="batch")
    paths = [x.path for x in model.variables]
    assert len(set(paths)) == len(paths)
    model.compile("sgd")
    tree = model.get_state_tree()
    stored = [x for part in ("trainable_variables", "non_trainable_variables") for x in keras.tree.flatten(tree[part])]
    assert len(stored) == len(paths)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    for ours, theirs in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", [{"finest_stride": 4}, {"finest_stride": 16, "top_levels": "conv_p5"}])
def test_levels_that_are_dilated_keep_their_anchors_sizes(options):
    model = tiny(output_stride=16, **options)
    strides = [4, 8, 16, 16, 32, 64] if options["finest_stride"] == 4 else [16, 16, 32, 64]
    outputs = model(np.zeros((1, 64, 128, 3), "uint8"))
    assert [tuple(x.shape[1:3]) for x in outputs["class_logits"]] == [(64 // s, 128 // s) for s in strides]
    levels = model.level_anchors(np.zeros((1, 64, 128, 3)), outputs["class_logits"])
    sides = [float(level[3, 2] - level[3, 0]) for level in levels]  # ratio 1, scale 1
    np.testing.assert_allclose(sides, [4 * options["finest_stride"] * 2**i for i in range(len(levels))], rtol=1e-6)
