"""Faster R-CNN against torchvision's, where DETSEG_TORCH_PYTHON names a Python that has it."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.options import FasterRCNNOptions

TORCH_PYTHON = os.environ.get("DETSEG_TORCH_PYTHON") or (importlib.util.find_spec("torchvision") and sys.executable)
pytestmark = pytest.mark.skipif(
    TORCH_PYTHON is None, reason="no torchvision here, and DETSEG_TORCH_PYTHON names no Python with it"
)
CLASSES = 3

# Random weights everywhere, batch norm's statistics too; the last layers are scaled so that scores and moves spread.
TORCH_SCRIPT = """
import sys
import numpy as np, torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

torch.manual_seed(0)
images = torch.from_numpy(np.load(sys.argv[1]))
height, width = images.shape[-2:]
options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": height, "max_size": width}
model = fasterrcnn_resnet50_fpn(**options).eval()
for name, module in model.named_modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        assert module.eps == 1e-5
        torch.nn.init.normal_(module.running_mean, std=0.1)
        torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(module.weight, 0.1, 0.4 if name.endswith("bn3") else 1.5)
        torch.nn.init.normal_(module.bias, std=0.1)
    elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and module.bias is not None:
        torch.nn.init.normal_(module.bias, std=0.1)

deviations = {
    model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.4,
    model.roi_heads.box_predictor.cls_score: 2.0, model.roi_heads.box_predictor.bbox_pred: 1.0,
}
def spread(module, inputs, output):
    deviation, mean = torch.std_mean(output, [i for i in range(output.ndim) if i != 1])
    factor = deviations[module] / deviation
    module.weight *= factor.view(-1, *[1] * (module.weight.ndim - 1))
    module.bias -= mean
    module.bias *= factor
    hooks.pop(module).remove()
    return module(*inputs)

hooks = {module: module.register_forward_hook(spread) for module in deviations}
with torch.no_grad():
    model([images[0]])
    assert not hooks
    results = {}
    for i, found in enumerate(model(list(images))):
        results |= {f"{key} {i}": x for key, x in found.items()}
    features = model.backbone(model.transform(list(images))[0].tensors)
    results |= {f"feature {key}": x for key, x in features.items()}
np.savez(sys.argv[2], **{key: x.numpy() for key, x in {**model.state_dict(), **results}.items()})
"""


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(0, 224, (2, 8, 10, 3)), np.ones((1, 32, 32, 1), int))
    return (patches + rng.integers(0, 32, patches.shape)).astype("uint8")


@pytest.fixture(scope="module")
def theirs(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    np.save(folder / "images.npy", np.moveaxis(images.astype("float32") / 255, -1, 1))
    command = [TORCH_PYTHON, "-c", TORCH_SCRIPT, str(folder / "images.npy"), str(folder / "torch.npz")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return np.load(folder / "torch.npz")


def torch_name(name):
    """Their name of our layer, and the names of its weights in our order."""
    norm = ("weight", "bias", "running_mean", "running_var")
    if name in ("conv1_conv", "conv1_bn"):
        return f"backbone.body.{'bn1' if name.endswith('bn') else 'conv1'}", norm if name.endswith("bn") else norm[:1]
    if name.startswith("conv"):
        stage, block, number, kind = name.split("_")
        place = f"backbone.body.layer{int(stage[4:]) - 1}.{int(block[5:]) - 1}"
        kind, weights = ("bn", norm) if kind == "bn" else ("conv", norm[:1])
        if number == "0":
            return f"{place}.downsample.{'01'[kind == 'bn']}", weights
        return f"{place}.{kind}{number}", weights
    if name.startswith("fpn"):
        part, key = name.removeprefix("fpn_lateral"), name.removeprefix("fpn_output")
        part, key = ("inner", part) if part != name else ("layer", key)
        return f"backbone.fpn.{part}_blocks.{int(key).bit_length() - 3}.0", norm[:2]
    heads = {
        "rpn_conv": "rpn.head.conv.0.0", "rpn_objectness": "rpn.head.cls_logits", "rpn_boxes": "rpn.head.bbox_pred",
        "fc6": "roi_heads.box_head.fc6", "fc7": "roi_heads.box_head.fc7",
        "class_logits": "roi_heads.box_predictor.cls_score", "class_boxes": "roi_heads.box_predictor.bbox_pred",
    }  # fmt: skip
    return heads[name], norm[:2]


def converted(name, array):
    """Their array for our layer of this name."""
    if name == "class_logits":
        array = np.roll(array, -1, axis=0)  # background is our last
    if name == "class_boxes":
        array = array[4:]  # and has no boxes
    if name == "fc6" and array.ndim == 2:
        array = array.reshape(-1, 256, 7, 7).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def layers_with_weights(model):
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from layers_with_weights(layer)
        elif layer.weights:
            yield layer


@pytest.fixture(scope="module")
def ours(theirs):
    options = {"backbone": "resnet50", "variant": "b", "anchor_form": "torchvision", "roi_aligned": False}
    model = FasterRCNN(FasterRCNNOptions(**options), CLASSES)
    copied = set()
    for layer in layers_with_weights(model):
        name, weights = torch_name(layer.name)
        layer.set_weights([converted(layer.name, theirs[f"{name}.{weight}"]) for weight in weights])
        copied |= {f"{name}.{weight}" for weight in weights}
        assert getattr(layer, "epsilon", 1e-5) == 1e-5
    parts = ("backbone", "rpn", "roi_heads")
    assert copied == {x for x in theirs if x.startswith(parts) and not x.endswith("num_batches_tracked")}
    return model


def test_feature_levels_are_torchvisions(ours, theirs, images):
    for level, name in zip(ours.extractor(images), ("0", "1", "2", "3", "pool"), strict=True):
        expected = np.moveaxis(theirs[f"feature {name}"], 1, -1)
        error = np.abs(level - expected).max() / np.abs(expected).max()
        assert error < 1e-4


def test_boxes_and_scores_are_torchvisions(ours, theirs, images):
    boxes, labels, scores, valid = (np.array(x) for x in ours.detect(images, [[256.0, 320.0]] * 2))
    for i in range(2):
        assert 20 < valid[i].sum() == len(theirs[f"scores {i}"])
        assert len(set(labels[i][valid[i]])) == CLASSES
        np.testing.assert_array_equal(labels[i][valid[i]] + 1, theirs[f"labels {i}"])
        box_error, score_error = (
            np.abs(array[i][valid[i]] - theirs[f"{key} {i}"]).max()
            for array, key in ((boxes, "boxes"), (scores, "scores"))
        )
        assert box_error <= 5e-3  # pixels
        assert score_error <= 1e-3
