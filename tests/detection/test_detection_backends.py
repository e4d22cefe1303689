"""The parts of a detector on TensorFlow, under XLA, and on JAX."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from detection_cases import STRIDES, detect, inputs, postprocess

from detseg.detection.roi_align import roi_align

ON_JAX = """
import sys
import jax, keras, numpy as np
from detection_cases import detect, inputs

assert keras.backend.backend() == "jax"
step = jax.jit(jax.value_and_grad(detect, has_aux=True))
(total, results), gradients = step({key: jax.numpy.asarray(x) for key, x in inputs().items()})
np.savez(sys.argv[1], **results, **{f"gradient {key}": x for key, x in gradients.items()})
"""


@pytest.fixture(scope="module")
def eager():
    """Results and gradients by name, as `ON_JAX` stores them."""
    arrays = {key: tf.constant(x) for key, x in inputs().items()}
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        total, results = detect(arrays)
    names = ("fine", "coarse", "deltas")
    gradients = tape.gradient(total, [arrays[name] for name in names])
    gradients = {f"gradient {key}": tf.convert_to_tensor(x) for key, x in zip(names, gradients, strict=True)}
    return {key: np.array(x) for key, x in {**results, **gradients}.items()}


def test_the_cases_test_something(eager):
    assert (eager["states"][0] == 1).any()
    assert (eager["states"][1] == -1).any()
    assert 5 < eager["valid"].sum() < 40
    assert list(eager["foreground"]) == [2, 0]
    for name in ("fine", "coarse", "deltas"):
        assert np.isfinite(eager[f"gradient {name}"]).all()
        assert np.abs(eager[f"gradient {name}"]).max() > 1e-4


def test_what_avoids_tensorflows_kernels_compiles_under_xla(eager):
    arrays = inputs()

    def pool_and_suppress(fine, coarse, proposals, scores):
        pooled = roi_align([fine, coarse], proposals, STRIDES, 3, 1, False, (16, 2), under_xla=True)
        return pooled, postprocess(proposals[:, :, None], scores, 0.85, 0.5, 20, 60, under_xla=True)

    compiled = tf.function(pool_and_suppress, jit_compile=True)
    pooled, found = compiled(arrays["fine"], arrays["coarse"], eager["proposals"], arrays["scores"])
    np.testing.assert_allclose(pooled, eager["not aligned"], atol=2e-5)
    for result, name in zip(found, ("found", "labels", "scores", "valid"), strict=True):
        np.testing.assert_array_equal(result, eager[name])


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_compiles_all_parts_and_gets_the_results_of_tensorflow(eager, tmp_path):
    quick = "--xla_backend_optimization_level=0"  # to compile
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    file = tmp_path / "jax.npz"
    subprocess.run([sys.executable, "-c", ON_JAX, str(file)], env=environment, check=True, timeout=600)
    results = np.load(file)
    for key, expected in eager.items():
        np.testing.assert_allclose(results[key], expected, atol=1e-4, rtol=1e-4, err_msg=key)
