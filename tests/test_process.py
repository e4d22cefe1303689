"""What the machine's Keras settings are doesn't change what a model is, and loading a model changes no settings."""

import json
import os
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest

import detseg
from detseg.errors import UserError
from detseg.process import loader_threads, model_settings, start_backend

BUILD = """
import numpy as np
import detseg
config = detseg.load_config({"task": "segmentation", "data": {"format": "custom"},
    "model": {"name": "fcn8s", "backbone": "resnet18", "alpha": 0.125, "weights": None},
    "train": {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 0.1}}})
model = detseg.create_model(config, ["a", "b"])
print(model.output_shape, {w.dtype for w in model.weights}, np.asarray(model(np.zeros((1, 32, 32, 3), np.uint8))).dtype)
"""


def run(home, settings, *command):
    home.mkdir()
    (home / "keras.json").write_text(json.dumps(settings))
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(home)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def test_models_are_channels_last_and_float32_whatever_keras_json_says(tmp_path):
    settings = {"floatx": "float64", "epsilon": 1e-7, "backend": "tensorflow", "image_data_format": "channels_first"}
    done = run(tmp_path / "keras", settings, "-c", BUILD)
    assert done.stdout.split("\n")[0] == "(None, None, None, 2) {'float32'} float32", done.stderr


def test_a_backend_that_is_not_supported_is_one_line_and_exit_code_2(tmp_path):
    code = "import sys; from detseg.cli import main; sys.exit(main(['evaluate', '--run', 'x']))"
    done = run(tmp_path / "keras", {"backend": "torch"}, "-c", code)
    assert done.returncode == 2
    assert done.stderr == "error: KERAS_BACKEND (or ~/.keras/keras.json): torch; expected tensorflow or jax\n"


def test_a_backend_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("detseg.process._backend_name", lambda: "jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="jax is not installed"):
        start_backend()


def test_settings_are_as_before_after_a_command():
    before = cv2.getNumThreads()
    with model_settings("mixed_bfloat16"), loader_threads():
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        assert cv2.getNumThreads() in (0, 1)
    assert keras.config.dtype_policy().name == "float32"
    assert cv2.getNumThreads() == before


def test_loading_and_predicting_changes_no_setting_of_the_process(trained_run):
    keras.config.set_dtype_policy("float64")
    before = cv2.getNumThreads()
    predictor = detseg.load(trained_run)
    assert predictor.predict(np.zeros((40, 50, 3), np.uint8)).label_map.shape == (40, 50)
    assert keras.config.dtype_policy().name == "float64"
    assert {variable.dtype for variable in predictor.model.weights} == {"float32"}
    assert cv2.getNumThreads() == before


def test_the_package_loads_no_keras_and_shows_its_names():
    code = "import sys, detseg; assert 'keras' not in sys.modules and 'numpy' not in sys.modules; print(*dir(detseg))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"train", "evaluate", "load", "Dataset", "Sample", "metrics", "boxes", "losses"} <= set(names)
    assert all(getattr(detseg, name) is not None for name in names if not name.startswith("__"))


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="has no attribute 'segment'"):
        detseg.segment  # noqa: B018
