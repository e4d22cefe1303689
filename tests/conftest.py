"""What several tests share: a small data set of shapes and quick configs on it."""

import logging
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

from detseg.config import load_config

QUICK_CONFIG = """
task: segmentation
data: {{format: voc-segmentation, root: {root}, train: train, val: val, test: test}}
augmentation: [{{scale_jitter: [0.8, 1.2]}}, {{random_crop: [64, 64]}}, {{flip: both}}]
model: {{name: fcn8s, backbone: vgg16, alpha: 0.0625, weights: null, head_channels: 8, dropout: 0.2}}
train:
  epochs: 2
  batch_size: 4
  optimizer: {{name: adam, learning_rate: 0.001}}
  schedule: {{name: poly, warmup_steps: 2}}
"""


@pytest.fixture(scope="session", autouse=True)
def scan_cache(tmp_path_factory):
    """Tests never read or write the user's cache."""
    old = os.environ.get("DETSEG_CACHE")
    os.environ["DETSEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("DETSEG_CACHE")
    if old is not None:
        os.environ["DETSEG_CACHE"] = old


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """The embedded data set with 12 train, 4 val and 4 test images."""
    from detseg.data.shapes_writer import make_shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, train=12, val=4, test=4)
    return root


@pytest.fixture
def quick_config_file(shapes_root, tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text(QUICK_CONFIG.format(root=shapes_root))
    return path


@pytest.fixture
def quick_config(quick_config_file):
    """Function of overrides ("a.b=c") -> a Config that trains in seconds."""
    return lambda *overrides: load_config(quick_config_file, overrides)


@pytest.fixture(autouse=True)
def seen_log():
    """The command line keeps its log to itself; each test starts with one that caplog sees."""
    logging.getLogger("detseg").propagate = True


@pytest.fixture(autouse=True)
def float32_policy():
    """Training sets Keras' global precision; each test starts with the default."""
    yield
    import sys

    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def trained_run(shapes_root, tmp_path_factory):
    """A run folder with a model that has seen the shapes for two epochs."""
    from detseg.training.fit import train

    folder = tmp_path_factory.mktemp("trained")
    config = folder / "quick.yaml"
    config.write_text(QUICK_CONFIG.format(root=shapes_root))
    return train(load_config(config), folder / "run").path
