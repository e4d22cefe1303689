"""Settings of the whole process: which backend runs, what Keras builds by default, who has threads.

The commands (train, evaluate, predict_files) set them for as long as they run; loading a model changes none of them.
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

from detseg.errors import UserError

BACKENDS = ("tensorflow", "jax")


def start_backend():
    """Imports Keras with its backend. TensorFlow's native start-up lines, which no setting silences, go nowhere.

    Raises UserError for a backend that detseg doesn't support or that isn't installed.
    """
    name = _backend_name()
    if name not in BACKENDS:
        raise UserError(f"KERAS_BACKEND (or ~/.keras/keras.json): {name}; expected {' or '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"KERAS_BACKEND (or ~/.keras/keras.json): {name} is not installed; pip install {name}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)  # grain's word that it found no JAX profiler
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        keras.distribution.list_devices()  # looks for GPUs, and says so
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _backend_name():
    """The backend that `import keras` takes, by Keras' own rules; a file that it can't read is no choice."""
    if "keras" in sys.modules:
        return sys.modules["keras"].backend.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        return json.loads((Path(home) / "keras.json").read_text(encoding="utf-8")).get("backend", BACKENDS[0])
    except (OSError, ValueError, AttributeError):
        return BACKENDS[0]


@contextlib.contextmanager
def model_settings(precision="float32"):
    """While inside, Keras makes what detseg's models are, whatever ~/.keras/keras.json says: channels last, float32
    variables, and the dtype policy `precision` ("float32", "mixed_bfloat16" or "mixed_float16").
    """
    start_backend()
    import keras

    before = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_image_data_format(before[0])
        keras.config.set_floatx(before[1])
        keras.config.set_dtype_policy(before[2])


@contextlib.contextmanager
def loader_threads():
    """While inside, OpenCV starts no threads of its own: in each of the loader's they halve its throughput."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def accelerators():
    """The names of the GPUs and TPUs that the backend sees."""
    import keras

    return [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]


def make_deterministic():
    """Has TensorFlow's kernels add up in one order, which exact resume needs, for the rest of the process.

    Only on CPUs, where it costs next to nothing. The environment variable is TensorFlow's own word for the same; it
    tells `detseg.detection.roi_align` that the kernel of its gradient is safe.
    """
    import keras

    if keras.backend.backend() != "tensorflow" or accelerators():
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
