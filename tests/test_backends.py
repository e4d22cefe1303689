"""The same model on TensorFlow and on JAX."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from detseg.backbones import create_backbone
from detseg.segmentation.fcn import create_fcn

STEP_ON_JAX = """
import sys
import keras, numpy as np
from detseg.backbones import create_backbone
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.losses import CrossEntropy
from detseg.inference import SegmentationInference

folder = sys.argv[1]
model = create_fcn("fcn8s", create_backbone("vgg16", alpha=0.0625), 3, "learned", head_channels=8)
model.load_weights(f"{folder}/model.weights.h5")
image = np.load(f"{folder}/image.npy")
prediction = SegmentationInference(model, (48, 64), probabilities=True)(image)
np.save(f"{folder}/jax.npy", prediction.probabilities)
model.compile(optimizer=keras.optimizers.SGD(0.01), loss=CrossEntropy())
loss = model.train_on_batch(image[None], np.zeros((1, *image.shape[:2]), "uint8"))
assert keras.backend.backend() == "jax" and np.isfinite(loss)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_a_model_trained_on_tensorflow_predicts_the_same_and_trains_on_jax(tmp_path):
    from detseg.inference import SegmentationInference

    model = create_fcn("fcn8s", create_backbone("vgg16", alpha=0.0625), 3, "learned", head_channels=8)
    rng = np.random.default_rng(0)
    for stride in (32, 16, 8):
        layer = model.get_layer(f"score{stride}")
        layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    model.save_weights(tmp_path / "model.weights.h5")
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    quick = "--xla_backend_optimization_level=0"  # to compile
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    subprocess.run([sys.executable, "-c", STEP_ON_JAX, str(tmp_path)], env=environment, check=True)
    expected = SegmentationInference(model, (48, 64), probabilities=True)(image).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "jax.npy"), expected, atol=1e-4)
