"""R-CNN's network: what regressors and classifiers see, its loss, saved and loaded, on both backends."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fast_rcnn_cases
import keras
import numpy as np
import pytest
import rcnn_cases
from rcnn_cases import SMALL, batch, tiny

from detseg.detection.rcnn import MAX_MAP_VALUES, RCNN
from detseg.detection.rcnn_options import RCNNOptions

ON_JAX = """
import sys, keras, numpy as np
import fast_rcnn_cases, rcnn_cases
assert keras.backend.backend() == "jax"
for cases in (rcnn_cases, fast_rcnn_cases):
    weights = np.load(f"{sys.argv[1]}/{cases.__name__}.npz")
    model = cases.tiny()
    for variable in model.variables:
        if variable.path in weights:
            variable.assign(weights[variable.path])
    np.savez(f"{sys.argv[1]}/{cases.__name__}_jax.npz", **cases.step(model))
"""


@pytest.mark.parametrize(
    ("backbone", "alpha", "crop_size", "values"),
    [
        ("mobilenetv2", 1.0, 128, 3 * 3 * 1280),  # 4 x 4 x 1280 would be more than 2 ** 14
        ("vgg16", 1.0, 224, 5 * 5 * 512),
        ("resnet50", 1.0, 224, 2 * 2 * 2048),
        ("mobilenetv2", 0.5, 64, 2 * 2 * 1280),
    ],
)
def test_regressors_see_a_map_of_a_size_that_can_be_solved_for_and_never_a_vector(backbone, alpha, crop_size, values):
    head = {"head_channels": 8} if backbone == "vgg16" else {}
    options = RCNNOptions(backbone=backbone, alpha=alpha, weights=None, norm="batch", crop_size=crop_size, **head)
    model = RCNN(options, 2)
    assert model.map_values == values <= MAX_MAP_VALUES
    height, width = model.extractor.outputs[0].shape[1:3]
    assert height > 1
    assert width > 1


def test_classifiers_see_the_mean_of_the_map_or_fc7s_of_a_vgg():
    mobilenet = tiny(backbone="mobilenetv2", alpha=0.35, norm="batch", head_channels=None)
    level = mobilenet.extractor(batch()[0])[0]
    assert np.allclose(mobilenet.describe(batch()[0])[1], np.array(level).mean(axis=(1, 2)), atol=1e-5)
    assert tiny().feature_count == 16


def test_the_loss_is_the_mean_log_loss_over_classes_and_background():
    model = tiny()
    squares, truth = batch()
    logits = np.array(model(squares))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(8), truth["labels"]]).mean()
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = model.fit(squares, truth, batch_size=8, verbose=0).history
    assert np.allclose([logs["loss"][0], logs["class_loss"][0]], expected, rtol=1e-5)


def test_the_network_saved_as_keras_loads_and_says_the_same(tmp_path):
    model = tiny()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.options == model.options
    for one, other in zip(model.describe(batch()[0]), loaded.describe(batch()[0]), strict=True):
        assert np.array_equal(np.array(one), np.array(other))


def test_dense_layers_of_a_vggs_weights_become_fc6_and_fc7(monkeypatch):
    rng = np.random.default_rng(0)
    dense = {
        name: (rng.normal(size=(rows, 4096)).astype("float32"), rng.normal(size=4096).astype("float32"))
        for name, rows in (("fc1", 7 * 7 * 32), ("fc2", 4096))
    }
    monkeypatch.setattr("detseg.detection.rcnn.dense_weights", lambda weights, backbone: dense)
    monkeypatch.setattr("detseg.detection.detector.create_configured_backbone", without_weights)
    options = RCNNOptions(backbone="vgg16", alpha=0.0625, weights="imagenet", crop_size=224)
    model = RCNN.create(options, 2)
    assert np.array_equal(model.extractor.get_layer("fc6").get_weights()[0], dense["fc1"][0])
    assert np.array_equal(model.extractor.get_layer("fc7").get_weights()[1], dense["fc2"][1])


def without_weights(options, channels, pretrained):
    from detseg.backbones.create import create_configured_backbone

    return create_configured_backbone(options, channels, pretrained=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 100}, "multiple of 32"),
        ({"backbone": "resnet18", "norm": "batch"}, "head_channels is 16, which needs a VGG"),
        ({"crop_size": 32}, "greater than or equal to 64"),
        ({"crop_size": 64, "context": 32}, "leaves no pixel"),
        ({"foreground_share": 1.0}, "both objects and background"),
    ],
)
def test_options_that_can_not_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RCNNOptions(**SMALL | options)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_trains_and_says_what_tensorflow_does_fast_rcnn_too(tmp_path):
    expected = {}
    for cases in (rcnn_cases, fast_rcnn_cases):
        model = cases.tiny()
        weights = {variable.path: np.array(variable) for variable in model.variables}
        np.savez(tmp_path / f"{cases.__name__}.npz", **weights)
        expected[cases.__name__] = cases.step(model)
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", ON_JAX, str(tmp_path)], env=environment, check=True, timeout=600)
    for name, results in expected.items():
        found = np.load(tmp_path / f"{name}_jax.npz")
        assert results.keys() == set(found.files)
        for key, value in results.items():
            np.testing.assert_allclose(found[key], value, atol=1e-3, rtol=1e-3, err_msg=key)
