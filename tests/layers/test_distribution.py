"""Batch norm and losses over several devices."""

import subprocess
import sys

TWO_DEVICES = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from detseg.layers.norm import create_norm
from detseg.segmentation.losses import SegmentationLoss


def trained(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((None, None, 4))
        model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(create_norm("batch", 4)(inputs)))
        loss = SegmentationLoss([{"name": "cross_entropy"}, {"name": "dice", "per_image": True, "weight": 0.5}])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, jit_compile=False)
    images = np.random.default_rng(0).normal(2, 3, (4, 5, 5, 4)).astype("float32")
    images[:2] += 5  # the devices' halves differ
    labels = np.random.default_rng(1).integers(0, 3, (4, 5, 5)).astype("uint8")
    model.fit(images, labels, batch_size=4, epochs=3, verbose=0)
    return model


spread = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
alone = trained(tf.distribute.get_strategy())
assert spread.layers[1].synchronized and not alone.layers[1].synchronized
for ours, expected in zip(spread.get_weights(), alone.get_weights(), strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
"""


def test_two_devices_train_as_one_does():
    subprocess.run([sys.executable, "-c", TWO_DEVICES], check=True, timeout=300)
