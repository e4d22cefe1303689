"""A detector that is saved whole, or whose weights are, loads and detects the same."""

import h5py
import keras
import numpy as np
import pytest
from retinanet_cases import batch, tiny

from detseg.config import load_config
from detseg.detection.faster_rcnn import FasterRCNN
from detseg.detection.retinanet import RetinaNet
from detseg.tasks import create_task
from detseg.training.fit import compile_model

CONFIG = """
task: detection
seed: 3
data: {{format: voc, root: r, train: train}}
model: {{backbone: resnet18, alpha: 0.0625, weights: null, norm: batch, score_threshold: 0.0, {model}}}
train:
  epochs: 1
  batch_size: 2
  precision: {precision}
  ema: 0.9
  backbone_learning_rate_factor: 0.5
  optimizer: {{name: sgd, learning_rate: 0.01, momentum: 0.9, weight_decay: 0.001}}
"""
SMALL = "fpn_channels: 8, finest_stride: 16"
MODELS = {
    "retinanet": "name: retinanet, head_convolutions: 1, head_norm: batch, " + SMALL,
    "faster_rcnn": "name: faster_rcnn, head_channels: 8, anchor_sizes: [[32, 48], [64, 96], [128, 200]], " + SMALL,
    "single map": "name: faster_rcnn, neck: none, rpn_channels: 8, head_norm: group, roi_samples: 8",
}


def detections(model):
    images, objects = batch()
    return [np.array(x) for x in model.detect(images, objects["image_sizes"])]


@pytest.mark.parametrize(
    ("name", "precision"),
    [("retinanet", "float32"), ("retinanet", "mixed_bfloat16"), ("faster_rcnn", "float32"), ("single map", "float32")],
)
def test_a_trained_detector_saved_as_keras_loads_and_detects_the_same(name, precision, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(model=MODELS[name], precision=precision))
    config = load_config(path)
    keras.config.set_dtype_policy(precision)
    model, backbone = create_task(config, ("a", "b", "c")).create_model(pretrained=False)
    compile_model(model, backbone, None, config, 1)
    model.run_eagerly = name != "single map"  # whose gradients TensorFlow's graph optimizer once got wrong
    images, objects = batch()
    model.fit(images, objects, batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    found = detections(model)
    assert found[3].any()

    keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras.config.dtype_policy().name == "float32"
    assert type(loaded) is type(model) is {"retinanet": RetinaNet}.get(name, FasterRCNN)
    assert loaded.options == model.options == config.model.resolved()
    assert loaded.get_config() == model.get_config()
    assert (loaded.class_count, loaded.channels, loaded.seed) == (3, 3, 3)
    for ours, expected in zip(detections(loaded), found, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_backbone_that_the_options_do_not_describe_cannot_be_saved():
    with pytest.raises(ValueError, match="backbone tiny is not that of the options, resnet18"):
        tiny().get_config()


def test_weights_of_a_retinanet_that_was_one_functional_model_load(tmp_path):
    """Runs from before RetinaNet had sub-models have all layers in one list, numbered for each class."""
    options = {"head_norm": "batch", "head_convolutions": 2, "finest_stride": 4, "top_levels": "conv_p5"}
    model, other = tiny(spread=True, **options), tiny(**options)
    flat = model._load_weights_of_one_list.__self__
    flat.save_weights(tmp_path / "old.weights.h5")
    with h5py.File(tmp_path / "old.weights.h5") as file:
        assert "extractor" not in file
        assert {"preprocess", "functional", "conv2d", "conv2d_10"} <= set(file["layers"])
    other.load_weights(tmp_path / "old.weights.h5")
    for ours, theirs in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "new.weights.h5") as file:
        assert {"extractor", "head"} <= set(file)
        assert "layers" not in file
