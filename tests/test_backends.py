"""The same model on TensorFlow and on JAX."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.options import FCNOptions

STEP_ON_JAX = """
import sys
import keras, numpy as np
from detseg.backbones.create import create_backbone
from detseg.segmentation.fcn import create_fcn
from detseg.inference.prediction import SegmentationPredictionOptions
from detseg.segmentation.losses import SegmentationLoss
from detseg.segmentation.options import FCNOptions
from detseg.inference.segmentation import SegmentationInference

folder = sys.argv[1]
options = FCNOptions(name="fcn8s", backbone="vgg16", upsampling="learned", head_channels=8)
model = create_fcn(options, create_backbone("vgg16", alpha=0.0625), 3)
model.load_weights(f"{folder}/model.weights.h5")
image = np.load(f"{folder}/image.npy")
prediction = SegmentationInference(model, (48, 64))(image, SegmentationPredictionOptions(probabilities=True))
np.save(f"{folder}/jax.npy", prediction.probabilities)
model.compile(optimizer=keras.optimizers.SGD(0.01), loss=SegmentationLoss([{"name": "cross_entropy"}]))
loss = model.train_on_batch(image[None], np.zeros((1, *image.shape[:2]), "uint8"))
assert keras.backend.backend() == "jax" and np.isfinite(loss)
"""

FAMILIES_ON_JAX = """
import keras, numpy as np
from detseg.backbones.create import create_backbone
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.losses import SegmentationLoss
from detseg.segmentation.options import FCNOptions

images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
for name in ("resnet18", "mobilenetv2", "xception"):
    model = create_fcn(FCNOptions(name="fcn8s", backbone=name, dropout=0.0), create_backbone(name, alpha=0.125), 3)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=SegmentationLoss([{"name": "cross_entropy"}]))
    loss = model.train_on_batch(images, images[..., 0] % 3)
    assert np.isclose(loss, np.log(3), atol=1e-5), (name, loss)
    for stride in (32, 16, 8):
        assert np.array(model.get_layer(f"score{stride}").kernel).any(), (name, stride)
    assert all(np.isfinite(weight).all() for weight in model.get_weights()), name
assert keras.backend.backend() == "jax"
"""

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")


def run_on_jax(script, *arguments):
    quick = "--xla_backend_optimization_level=0"  # to compile
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    subprocess.run([sys.executable, "-c", script, *arguments], env=environment, check=True, timeout=600)


@needs_jax
def test_one_backbone_of_each_family_trains_on_jax():
    """(VGG does below.)"""
    run_on_jax(FAMILIES_ON_JAX)


@needs_jax
def test_a_model_trained_on_tensorflow_predicts_the_same_and_trains_on_jax(tmp_path):
    from detseg.inference.prediction import SegmentationPredictionOptions
    from detseg.inference.segmentation import SegmentationInference

    options = FCNOptions(name="fcn8s", backbone="vgg16", upsampling="learned", head_channels=8)
    model = create_fcn(options, create_backbone("vgg16", alpha=0.0625), 3)
    rng = np.random.default_rng(0)
    for stride in (32, 16, 8):
        layer = model.get_layer(f"score{stride}")
        layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    model.save_weights(tmp_path / "model.weights.h5")
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    run_on_jax(STEP_ON_JAX, str(tmp_path))
    expected = SegmentationInference(model, (48, 64))(
        image, SegmentationPredictionOptions(probabilities=True)
    ).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "jax.npy"), expected, atol=1e-4)
