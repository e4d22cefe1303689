"""The presets: whole models whose trained weights torchvision publishes. Imports without Keras.

A config says `model: {preset: NAME}`, which stands for the preset's keys and weights: coco.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# COCO's names by category id, from 1 on; None: an id that the data set doesn't use.
COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", None, "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", None, "backpack", "umbrella", None, None, "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", None, "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana"),
    *("apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", None, "dining table", None, None, "toilet", None, "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", None, "book", "clock", "vase"),
    *("scissors", "teddy bear", "hair drier", "toothbrush"),
)
COCO_CLASSES = tuple(name for name in COCO_NAMES if name is not None)
# Of torchvision's segmentation models: COCO's images with the labels of PASCAL VOC.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class Preset:
    """A model whose trained weights are published.

    task:     that of the config.
    file:     name of the file, which ends in the start of its sha256.
    model:    {key: value} of a config's model section that the weights need.
    names:    of the classifier's outputs, but for the background of a softmax over objects; None: of no class.
    figures:  what the publisher reports, on COCO's val2017.
    """

    task: str
    file: str
    model: Mapping[str, Any]
    names: tuple[str | None, ...]
    figures: str


_RESNET50 = {"backbone": "resnet50", "variant": "b"}
_MOBILENET = {"backbone": "mobilenetv3_large", "variant": "torchvision"}
_DETECTOR = {"anchor_form": "torchvision", "padding": "zeros"}
# The classes' statistics were frozen while these three were trained, with nothing added to their variances.
_ON_RESNET50 = {**_RESNET50, **_DETECTOR, "norm_epsilon": 0.0}
_REGIONS = {"roi_aligned": False}
_ON_MOBILENET = {
    "name": "faster_rcnn",
    **_MOBILENET,
    **_DETECTOR,
    **_REGIONS,
    "norm_epsilon": 1e-5,
    "pyramid_levels": ("bneck13", 32),
    "anchor_sizes": ((32, 64, 128, 256, 512),) * 3,
    "rpn_score_threshold": 0.05,
}
# Three sizes for each level as torchvision rounds them.
_SIZES = ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
_RETINANET = {"top_levels": "conv_p5", "anchor_sizes": _SIZES, "anchor_scales": (1.0,)}
_SEGMENTER = {"resize": "half_pixel", "padding": "none"}
_DEEPLAB = {"name": "deeplabv3", "head_convolutions": 1, **_SEGMENTER}
_FCN = {"name": "fcn", "output_stride": 8, **_SEGMENTER}
_DILATED = {"variant": "b", "output_stride": 8}


def _detector(file: str, figures: str, **model: Any) -> Preset:
    return Preset("detection", file, model, COCO_NAMES, figures)


def _segmenter(file: str, figures: str, **model: Any) -> Preset:
    return Preset("segmentation", file, model, VOC_CLASSES, figures)


PRESETS: Mapping[str, Preset] = {
    "fasterrcnn_resnet50_fpn_coco": _detector(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "AP 37.0", name="faster_rcnn", **_ON_RESNET50, **_REGIONS
    ),
    "fasterrcnn_mobilenet_v3_large_fpn_coco": _detector(
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", "AP 32.8", **_ON_MOBILENET
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn_coco": _detector(
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth", "AP 22.8", **_ON_MOBILENET, test_candidates=150,
        test_proposals=150,
    ),
    "maskrcnn_resnet50_fpn_coco": _detector(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "box AP 37.9, mask AP 34.6", name="mask_rcnn", **_ON_RESNET50,
        **_REGIONS,
    ),
    "retinanet_resnet50_fpn_coco": _detector(
        "retinanet_resnet50_fpn_coco-eeacb38b.pth", "AP 36.4", name="retinanet", **_ON_RESNET50, **_RETINANET
    ),
    "fcn_resnet50_coco": _segmenter(
        "fcn_resnet50_coco-1167a1af.pth", "mIoU 60.5", **_FCN, backbone="resnet50", variant="b"
    ),
    "fcn_resnet101_coco": _segmenter(
        "fcn_resnet101_coco-7ecb50ca.pth", "mIoU 63.7", **_FCN, backbone="resnet101", variant="b"
    ),
    "deeplabv3_resnet50_coco": _segmenter(
        "deeplabv3_resnet50_coco-cd0a2569.pth", "mIoU 66.4", **_DEEPLAB, backbone="resnet50", **_DILATED
    ),
    "deeplabv3_resnet101_coco": _segmenter(
        "deeplabv3_resnet101_coco-586e9e4e.pth", "mIoU 67.4", **_DEEPLAB, backbone="resnet101", **_DILATED
    ),
    "deeplabv3_mobilenet_v3_large_coco": _segmenter(
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth", "mIoU 60.3", **_DEEPLAB, **_MOBILENET, aspp_rates=(12, 24, 36)
    ),
}  # fmt: skip
