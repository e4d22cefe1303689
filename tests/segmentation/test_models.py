"""Models made from their options."""

import subprocess
import sys

import pytest

from detseg.errors import UserError
from detseg.segmentation.models import FACTORIES, create_segmentation_model
from detseg.segmentation.options import CustomOptions, FCNOptions, UNetOptions


def test_every_name_but_custom_has_a_factory():
    from typing import get_args

    from detseg.segmentation.options import SegmentationModel

    names = [
        name for options in get_args(SegmentationModel) for name in get_args(options.model_fields["name"].annotation)
    ]
    assert set(names) - {"custom"} == set(FACTORIES)


def test_a_model_of_ones_own_is_not_made_here():
    with pytest.raises(UserError, match=r"model\.name: custom: the model is given from Python: detseg\.train\(config"):
        create_segmentation_model(CustomOptions(name="custom"), 3)


def test_a_vgg_has_the_papers_fc6_and_fc7_and_others_have_none():
    vgg = FCNOptions(name="fcn32s", backbone="vgg16", alpha=0.0625, weights=None, head_channels=None)
    model, backbone = create_segmentation_model(vgg, 2)
    assert model.get_layer("fc6").filters == model.get_layer("fc7").filters == 4096
    assert backbone.name == "vgg16"
    model, _ = create_segmentation_model(
        FCNOptions(name="fcn32s", backbone="mobilenet", alpha=0.25), 2, 4, pretrained=False
    )
    assert "fc6" not in [layer.name for layer in model.layers]
    assert model.input_shape == (None, None, None, 4)


def test_a_frozen_norm_is_the_backbones_alone_and_strides_are_the_least_sizes():
    frozen = FCNOptions(name="fcn8s", backbone="resnet18", norm="frozen", output_stride=16)
    assert (frozen.head_norm, frozen.minimum_size) == ("batch", 16)
    assert FCNOptions(name="fcn8s", backbone="resnet18", norm="group").head_norm == "group"
    assert UNetOptions(name="unet", depth=3).minimum_size == 8
    assert UNetOptions(name="unet", backbone="vgg16").minimum_size == 32


def test_options_and_the_catalogue_import_without_keras():
    code = (
        "import sys, detseg.config, detseg.segmentation.options, detseg.detection.options, detseg.backbones.catalogue;"
        "sys.exit(bool({'keras', 'tensorflow', 'h5py'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
