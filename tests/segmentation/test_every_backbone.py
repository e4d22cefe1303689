"""Every segmentation model trains on every backbone, comes back from its file to the bit, and takes any image."""

import keras
import numpy as np
import pytest

from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.create import create_backbone
from detseg.segmentation.deeplabv3 import create_deeplabv3
from detseg.segmentation.fcn import create_fcn
from detseg.segmentation.losses import SegmentationLoss
from detseg.segmentation.options import DeepLabV3PlusOptions, FCNOptions

CLASSES = 3


def small_backbone(name, **arguments):
    return create_backbone(name, alpha=0.125, **arguments)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def train_one_step(model, images):
    labels = np.random.default_rng(1).integers(0, CLASSES, images.shape[:3]).astype("uint8")
    model.compile(
        optimizer=keras.optimizers.SGD(0.01), loss=SegmentationLoss([{"name": "cross_entropy"}]), jit_compile=False
    )
    loss = float(model.train_on_batch(images, labels))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    return loss


VGGS = ("vgg16", "vgg19")  # whose fc6 and fc7 have 4096 channels unless the options say fewer
DEEP = ("resnet101", "resnet152", "resnet101v2", "resnet152v2")  # the blocks of resnet50 and 50v2, more of them


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in CATALOGUE])
def test_fcn8s_trains_and_is_saved_and_loaded_to_the_bit(name, tmp_path):
    options = FCNOptions(name="fcn8s", backbone=name, dropout=0.0, head_channels=8 if name in VGGS else None)
    model = create_fcn(options, small_backbone(name), CLASSES)
    loss = train_one_step(model, pictures(2, 64, 64, 3))
    assert np.isclose(loss, np.log(CLASSES), atol=1e-5), "score layers start at zero"
    for stride in (32, 16, 8):
        assert np.array(model.get_layer(f"score{stride}").kernel).any(), "and move"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = pictures(1, 50, 70, 3, seed=2)
    np.testing.assert_array_equal(np.array(model(images)), np.array(loaded(images)))
    assert model(images).shape == (1, 50, 70, CLASSES)


ONE_OF_EACH_FAMILY = ("vgg16", "resnet18", "mobilenetv3_small", "xception")


@pytest.mark.parametrize(
    "name", [n if n in ONE_OF_EACH_FAMILY else pytest.param(n, marks=pytest.mark.slow) for n in CATALOGUE]
)
def test_deeplabv3plus_trains(name):
    backbone = small_backbone(name, output_stride=16)
    heads = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4, "separable": True}
    model = create_deeplabv3(DeepLabV3PlusOptions(name="deeplabv3plus", backbone=name, **heads), backbone, CLASSES)
    before = np.array(model.get_layer("logits_conv").kernel)
    assert np.isfinite(train_one_step(model, pictures(2, 64, 64, 3)))
    assert (np.array(model.get_layer("logits_conv").kernel) != before).all()
