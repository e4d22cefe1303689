"""Kernels that give the same bits each time."""

import os

import keras

from detseg.training.run_folder import accelerators


def make_deterministic():
    """Has TensorFlow's kernels add up in one order, which exact resume needs, for the rest of the process.

    Only on CPUs, where it costs next to nothing. The environment variable is TensorFlow's own word for the same; it
    tells `detseg.detection.roi_align` that the kernel of its gradient is safe.
    """
    if keras.backend.backend() != "tensorflow" or accelerators():
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
