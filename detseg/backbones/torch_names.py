"""What the layers of our backbones are called in torchvision's state_dicts: functions of layer name -> module name."""

import re

from detseg.backbones.mobilenet import MOBILENETV3
from detseg.backbones.vgg import CONVOLUTIONS


def of_vgg16(name):
    return _of_vgg(name, CONVOLUTIONS["vgg16"])


def of_vgg19(name):
    return _of_vgg(name, CONVOLUTIONS["vgg19"])


def _of_vgg(name, convolutions):
    """features counts convolutions, relus and pools."""
    if dense := {"fc1": "classifier.0", "fc2": "classifier.3"}.get(name):
        return dense
    block, index = map(int, re.fullmatch(r"block(\d)_conv(\d)", name).groups())
    return f"features.{sum(2 * count + 1 for count in convolutions[: block - 1]) + 2 * (index - 1)}"


def of_resnet(name):
    if name in ("conv1_conv", "conv1_bn"):
        return name.removesuffix("_conv").replace("conv1_bn", "bn1")
    stage, block, number, kind = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", name).groups()
    place = f"layer{int(stage) - 1}.{int(block) - 1}"
    return f"{place}.downsample.{int(kind == 'bn')}" if number == "0" else f"{place}.{kind}{number}"


def of_mobilenetv2(name):
    whole = {"Conv1": "0.0", "bn_Conv1": "0.1", "Conv_1": "18.0", "Conv_1_bn": "18.1"}
    if name in whole:
        return f"features.{whole[name]}"
    block, part, is_norm = re.fullmatch(r"(?:block_(\d+)|expanded_conv)_([a-z]+)(_BN)?", name).groups()
    first = 0 if block is None else 1  # the first bottleneck has no expansion
    place = {"expand": "0.", "depthwise": f"{first}.", "project": ""}[part]
    number = first + 1 + bool(is_norm) if part == "project" else int(bool(is_norm))
    return f"features.{int(block or 0) + 1}.conv.{place}{number}"


def of_mobilenetv3_small(name):
    return _of_mobilenetv3(name, MOBILENETV3["mobilenetv3_small"])


def of_mobilenetv3_large(name):
    return _of_mobilenetv3(name, MOBILENETV3["mobilenetv3_large"])


def _of_mobilenetv3(name, rows):
    whole = {"conv": "0.0", "conv_bn": "0.1", "conv_1": f"{len(rows) + 1}.0", "conv_1_bn": f"{len(rows) + 1}.1"}
    if name in whole:
        return f"features.{whole[name]}"
    pattern = r"expanded_conv_(?:(\d+)_)?(expand|depthwise|squeeze_excite|project)_?(bn|conv_1|conv)?"
    block, part, kind = re.fullmatch(pattern, name).groups()
    row = rows[int(block or 0)]
    parts = [
        *(["expand"] if row.expansion > 1 else []),
        "depthwise",
        *(["squeeze_excite"] if row.squeezes else []),
        "project",
    ]
    place = {"conv": "fc1", "conv_1": "fc2", "bn": "1", None: "0"}[kind]
    return f"features.{int(block or 0) + 1}.block.{parts.index(part)}.{place}"
