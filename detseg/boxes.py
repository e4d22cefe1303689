"""Boxes: formats, areas, overlaps, and the regression targets of R-CNN; see `detseg` for the format."""

from detseg.detection.boxes import (
    box_area,
    ciou,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
    giou,
    iou,
    pairwise_coverage,
    pairwise_iou,
)
from detseg.detection.matching import match
from detseg.detection.nms import nms

__all__ = [
    "box_area",
    "ciou",
    "clip_boxes",
    "convert_boxes",
    "decode_boxes",
    "encode_boxes",
    "giou",
    "iou",
    "match",
    "nms",
    "pairwise_coverage",
    "pairwise_iou",
]
