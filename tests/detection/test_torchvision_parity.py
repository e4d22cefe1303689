"""The parts of a detector against torchvision's, where DETSEG_TORCH_PYTHON names a Python that has it."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_cases import postprocess

from detseg.detection.anchors import Anchors
from detseg.detection.boxes import ciou, decode_boxes, encode_boxes, giou, pairwise_iou
from detseg.detection.fpn import fpn
from detseg.detection.matching import BACKGROUND, FOREGROUND, IGNORED, match_boxes
from detseg.detection.nms import nms
from detseg.detection.proposals import select_proposals
from detseg.detection.roi_align import assign_levels, roi_align, roi_pool

TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torchvision") and sys.executable)
pytestmark = pytest.mark.skipif(
    TORCH_PYTHON is None, reason="no torchvision here, and DETSEG_TORCH_PYTHON names no Python with it"
)

TORCH_SCRIPT = """
import sys
from collections import OrderedDict
import numpy as np, torch
from torchvision import ops
from torchvision.models.detection import _utils, faster_rcnn, image_list, retinanet, roi_heads, rpn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

data = {key: torch.from_numpy(x) for key, x in np.load(sys.argv[1]).items()}
results = {}

# anchors: maps as the networks have them for this image size
for name, generator, first in (("faster", faster_rcnn, 4), ("retina", retinanet, 8)):
    strides = [first << i for i in range(5)]
    maps = [torch.zeros(1, 1, -(-320 // stride), -(-416 // stride)) for stride in strides]
    images = image_list.ImageList(torch.zeros(1, 3, 320, 416), [(320, 416)])
    results[f"anchors {name}"] = generator._default_anchorgen()(images, maps)[0]

a, b = data["a"], data["b"]
coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
results["encoded"] = coder.encode_single(a, b)
results["decoded"] = coder.decode_single(data["deltas"], b)
results["iou"] = ops.box_iou(a, b)
results["giou"] = ops.generalized_box_iou_loss(a, b)
predicted = a.clone().requires_grad_()
results["ciou"] = ops.complete_box_iou_loss(predicted, b)
results["ciou gradient"] = torch.autograd.grad(results["ciou"].sum(), predicted)[0]
for low_quality in (0, 1):
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=bool(low_quality))
    results[f"matched {low_quality}"] = matcher(ops.box_iou(data["objects"], data["anchors"]))

for threshold in (0.3, 0.7):
    results[f"nms {threshold}"] = ops.nms(a, data["scores"], threshold)
    results[f"batched nms {threshold}"] = ops.batched_nms(a, data["scores"], data["labels"], threshold)

rois = torch.cat([data["rois of"][:, None], data["rois"]], 1)
for name, pool in (
    ("align True 7", lambda x: ops.roi_align(x, rois, 7, 1 / 4, 2, True)),
    ("align False 7", lambda x: ops.roi_align(x, rois, 7, 1 / 4, 2, False)),
    ("align False 14", lambda x: ops.roi_align(x, rois, 14, 1 / 4, 2, False)),
    ("pool", lambda x: ops.roi_pool(x, rois, 7, 1 / 4)),
):
    maps = data["maps"].clone().requires_grad_()
    results[name] = pool(maps)
    results[f"{name} gradient"] = torch.autograd.grad((results[name] ** 2).sum(), maps)[0]
levels = {str(i): data[f"level {i}"] for i in range(4)}
pooler = ops.MultiScaleRoIAlign(list(levels), 7, 2)
results["multi-scale"] = pooler(levels, list(data["level rois"]), [(128, 160)] * 2)
results["levels"] = pooler.map_levels(list(data["level rois"]))

def select(objectness, deltas, anchors):
    counts = [x.shape[1] for x in objectness]
    network = rpn.RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, {"testing": 60}, {"testing": 40}, 0.7).eval()
    proposals = network.box_coder.decode(torch.cat(deltas, 1), [torch.cat(anchors)] * 2).view(2, -1, 4)
    return network.filter_proposals(proposals, torch.cat(objectness, 1), [(48, 60)] * 2, counts)

of_levels = [[data[f"rpn {part} {i}"] for i in range(2)] for part in ("objectness", "deltas", "anchors")]
for i, (boxes, scores) in enumerate(zip(*select(*of_levels))):
    results[f"proposals {i}"], results[f"objectness {i}"] = boxes, scores

heads = roi_heads.RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 30)
logits, deltas = data["class logits"], data["class deltas"]
found = heads.postprocess_detections(logits, deltas.flatten(1), [data["rpn anchors 0"]], [(48, 60)])
for key, values in zip(("boxes", "scores", "labels"), found):
    results[f"found {key}"] = values[0]

torch.manual_seed(0)
for name, extra in (("pool", LastLevelMaxPool()), ("conv_p5", LastLevelP6P7(6, 6)), ("conv_c5", LastLevelP6P7(5, 6))):
    network = ops.FeaturePyramidNetwork([3, 4, 5], 6, extra)
    out = network(OrderedDict((str(i), data[f"fpn {i}"]) for i in range(3)))
    results |= {f"fpn {name} {i}": x for i, x in enumerate(out.values())}
    results |= {f"fpn {name} {key}": x for key, x in network.state_dict().items()}
np.savez(sys.argv[2], **{key: x.detach().numpy() for key, x in results.items()})
"""


def random_boxes(rng, *shape, low=0.0, high=100.0, size=60.0):
    corners = rng.uniform(low, high, (*shape, 2))
    return np.concatenate([corners, corners + rng.uniform(1, size, (*shape, 2))], -1).astype("float32")


def nchw(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    grid = np.stack(np.meshgrid(np.arange(0, 96, 8), np.arange(0, 64, 8)), -1).reshape(-1, 2)
    anchors = np.concatenate([grid - 16, grid + 16], -1)
    edges = np.array(
        [
            *([0, 0, 80, 60], [-30, -20, 40, 30], [60, 40, 130, 100], [-99, -99, 200, 200], [200, 200, 220, 210]),
            *([10, 10, 10.5, 10.2], [0, 0, 0, 0], [79.9, 59.9, 80, 60], [-4, -4, 5, 5], [80, 60, 90, 70]),
        ]
    )
    arrays = {
        "a": random_boxes(rng, 200), "b": random_boxes(rng, 200), "deltas": normal(200, 4) * 3,
        "scores": rng.permutation(200).astype("float32") / 200, "labels": rng.integers(0, 3, 200),
        "objects": np.array([[4, 4, 36, 36], [20, 20, 52, 44], [50, 8, 90, 30], [22, 20, 50, 44]]),
        "anchors": anchors, "maps": normal(2, 15, 20, 5), "rois": np.concatenate([random_boxes(rng, 40), edges]),
        "rois of": rng.integers(0, 2, 50).astype("float32"), "level rois": random_boxes(rng, 2, 60, size=600),
        **{f"level {i}": normal(2, 32 >> i, 40 >> i, 3) for i in range(4)},
        **{f"rpn objectness {i}": normal(2, count) for i, count in enumerate((100, 30))},
        **{f"rpn deltas {i}": normal(2, count, 4) * 0.5 for i, count in enumerate((100, 30))},
        **{f"rpn anchors {i}": random_boxes(rng, count, high=50, size=30) for i, count in enumerate((100, 30))},
        "class logits": normal(100, 4), "class deltas": normal(100, 4, 4),
        **{f"fpn {i}": normal(2, *size, 3 + i) for i, size in enumerate(((17, 12), (9, 6), (5, 3)))},
    }  # fmt: skip
    return {key: x.astype("float32") if x.dtype == "float64" else x for key, x in arrays.items()}


@pytest.fixture(scope="module")
def torch_results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    is_map = {key: key.startswith(("maps", "level ", "fpn")) and x.ndim == 4 for key, x in data.items()}
    np.savez(folder / "data.npz", **{key: nchw(x) if is_map[key] else x for key, x in data.items()})
    # in a process of its own: torch and TensorFlow side by side crash with some builds
    command = [TORCH_PYTHON, "-c", TORCH_SCRIPT, str(folder / "data.npz"), str(folder / "torch.npz")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return np.load(folder / "torch.npz")


def assert_close(ours, theirs, tolerance):
    """The error is relative to 1 or to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / max(1, np.abs(theirs).max())
    assert error <= tolerance


@pytest.mark.parametrize(
    ("name", "sizes", "strides"),
    [
        ("faster", (32, 64, 128, 256, 512), (4, 8, 16, 32, 64)),
        (
            "retina",
            tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)),
            (8, 16, 32, 64, 128),
        ),
    ],
)
def test_anchors_are_exactly_those_of_fasterrcnn_and_retinanet_resnet50_fpn(torch_results, name, sizes, strides):
    maps = [(-(-320 // stride), -(-416 // stride)) for stride in strides]
    levels = Anchors(sizes, strides, form="torchvision")((320, 416), maps)
    np.testing.assert_array_equal(np.concatenate(levels), torch_results[f"anchors {name}"])


def test_targets_and_overlaps(data, torch_results):
    deviations = {"deviations": (0.1, 0.1, 0.2, 0.2)}
    assert_close(encode_boxes(data["a"], data["b"], **deviations), torch_results["encoded"], 1e-6)
    assert_close(decode_boxes(data["deltas"], data["b"], **deviations), torch_results["decoded"], 1e-6)
    assert_close(pairwise_iou(data["a"], data["b"]), torch_results["iou"], 1e-6)
    assert_close(1 - giou(data["a"], data["b"]), torch_results["giou"], 1e-6)
    predicted = tf.constant(data["a"])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = 1 - ciou(predicted, data["b"])
    assert_close(loss, torch_results["ciou"], 1e-5)
    assert_close(tape.gradient(loss, predicted), torch_results["ciou gradient"], 1e-5)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches(data, torch_results, low_quality):
    objects = data["objects"][None]
    matched, states = match_boxes(data["anchors"], objects, np.ones((1, 4), bool), 0.7, (0.0, 0.3), low_quality)
    ours = np.select([states == FOREGROUND, states == BACKGROUND, states == IGNORED], [matched, -1, -2])
    np.testing.assert_array_equal(ours[0], torch_results[f"matched {int(low_quality)}"])
    assert len(set(ours[0])) >= (5 if low_quality else 2)


@pytest.mark.parametrize("under_xla", [False, True], ids=["kernel", "other"])
class TestBothWays:
    @pytest.mark.parametrize("threshold", [0.3, 0.7])
    def test_nms(self, data, torch_results, threshold, under_xla):
        for name, labels in (("nms", None), ("batched nms", data["labels"][None])):
            indices, kept = nms(data["a"][None], data["scores"][None], threshold, 200, None, labels, under_xla)
            np.testing.assert_array_equal(np.array(indices)[np.array(kept)], torch_results[f"{name} {threshold}"])

    @pytest.mark.parametrize(("aligned", "size"), [(True, 7), (False, 7), (False, 14)])
    def test_roi_align(self, data, torch_results, aligned, size, under_xla):
        def pool(maps, boxes):
            return roi_align([maps], boxes, [4], size, 2, aligned, under_xla=under_xla)

        assert_same_pooling(pool, data, torch_results, f"align {aligned} {size}", 1e-4)

    def test_multi_scale_roi_align(self, data, torch_results, under_xla):
        boxes = data["level rois"]
        np.testing.assert_array_equal(np.array(assign_levels(boxes, 2, 5)).ravel(), torch_results["levels"])
        assert set(torch_results["levels"]) == {0, 1, 2, 3}
        pooled = roi_align([data[f"level {i}"] for i in range(4)], boxes, (4, 8, 16, 32), under_xla=under_xla)
        assert_close(nchw(np.reshape(pooled, (-1, 7, 7, 3))), torch_results["multi-scale"], 1e-4)

    def test_proposals(self, data, torch_results, under_xla):
        of_levels = [[data[f"rpn {part} {i}"] for i in range(2)] for part in ("objectness", "deltas", "anchors")]
        boxes, scores, valid = select_proposals(*of_levels, [[48, 60]] * 2, 60, 40, 0.7, under_xla=under_xla)
        for i in range(2):
            of_image = np.array(valid[i])
            assert_close(np.array(boxes[i])[of_image], torch_results[f"proposals {i}"], 1e-6)
            assert_close(tf.sigmoid(scores[i])[of_image], torch_results[f"objectness {i}"], 1e-6)

    def test_detections(self, data, torch_results, under_xla):
        boxes = decode_boxes(data["class deltas"], data["rpn anchors 0"][:, None], deviations=(0.1, 0.1, 0.2, 0.2))
        boxes = tf.clip_by_value(boxes, 0, [60.0, 48, 60, 48])[None]
        scores = tf.nn.softmax(data["class logits"])[None]
        found, labels, values, valid = postprocess(boxes[:, :, 1:], scores[..., 1:], 0.05, 0.5, 30, under_xla=under_xla)
        of_image = np.array(valid[0])
        assert_close(np.array(found[0])[of_image], torch_results["found boxes"], 1e-6)
        assert_close(np.array(values[0])[of_image], torch_results["found scores"], 1e-6)
        np.testing.assert_array_equal(np.array(labels[0])[of_image] + 1, torch_results["found labels"])


def test_roi_pool(data, torch_results):
    assert_same_pooling(lambda maps, boxes: roi_pool(maps, boxes, 4), data, torch_results, "pool", 0)


def assert_same_pooling(pool, data, torch_results, name, tolerance):
    """Values and gradients of `pool`, a function of maps (B, H, W, C) and boxes (B, R, 4)."""
    boxes, image = np.stack([data["rois"]] * 2), data["rois of"].astype(int)  # every region in both images
    maps = tf.constant(data["maps"])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        pooled = tf.gather_nd(pool(maps, boxes), np.stack([image, np.arange(len(image))], -1))
        total = tf.reduce_sum(pooled**2)
    assert_close(nchw(pooled), torch_results[name], tolerance)
    assert_close(nchw(tf.convert_to_tensor(tape.gradient(total, maps))), torch_results[f"{name} gradient"], 1e-4)


@pytest.mark.parametrize("extra", ["pool", "conv_p5", "conv_c5"])
def test_feature_pyramid(data, torch_results, extra):
    maps = {8 << i: data[f"fpn {i}"] for i in range(3)}
    inputs = {key: keras.Input(x.shape[1:]) for key, x in maps.items()}
    levels, strides = fpn(inputs, {8: 8, 16: 16, 32: 32}, 6, extra)
    model = keras.Model(list(inputs.values()), list(levels.values()))
    parts = {"lateral": "inner_blocks", "output": "layer_blocks"}
    names = {f"fpn_{ours}{8 << i}": f"{theirs}.{i}.0" for ours, theirs in parts.items() for i in range(3)}
    names |= {"fpn_output64": "extra_blocks.p6", "fpn_output128": "extra_blocks.p7"}
    for layer in model.layers:
        if layer.weights:
            kernel, bias = (torch_results[f"fpn {extra} {names[layer.name]}.{part}"] for part in ("weight", "bias"))
            layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    for i, level in enumerate(model(list(maps.values()))):
        assert_close(nchw(level), torch_results[f"fpn {extra} {i}"], 1e-5)
    assert f"fpn {extra} {len(strides)}" not in torch_results
