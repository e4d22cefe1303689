"""Drawings of proposals, and of boxes before and after bounding-box regression."""

import cv2
import numpy as np

from detseg.metrics.voc import box_overlaps
from detseg.report.drawing import as_rgb, class_colours, draw_detections, line_width, zoom_of

_GREY, _GREEN = (150, 150, 150), (60, 180, 75)
_SHOWN = 200  # proposals, the first ones: more would hide the image


def draw_proposals(image, proposals, boxes):
    """The image with the first proposals in grey and, in green, of each object the one that overlaps it most.

    image:      uint8 (H, W, C); proposals float (P, 4), boxes float (G, 4) of the objects.
    Returns     uint8 (zoom * H, zoom * W, 3), RGB, enlarged as by `draw_detections`.
    """
    zoom = zoom_of(image)
    drawn = np.repeat(np.repeat(as_rgb(image), zoom, 0), zoom, 1)
    line = line_width(drawn.shape)
    for box in proposals[:_SHOWN]:
        cv2.rectangle(drawn, *_corners(box, zoom), _GREY, 1)
    overlaps = box_overlaps(boxes, proposals)  # (G, P)
    for index in overlaps.argmax(axis=1) if overlaps.size else ():
        cv2.rectangle(drawn, *_corners(proposals[index], zoom), _GREEN, line)
    return drawn


def draw_regression(image, proposals, boxes, labels, classes, scores):
    """Detections as `draw_detections` has them, each with the proposal it was moved from, thin and in its colour, and
    arrows from the proposal's corners to its own.

    proposals, boxes:  float (N, 4) each.
    """
    drawn, zoom = draw_detections(image, boxes, labels, classes, scores), zoom_of(image)
    colours = class_colours(classes)[np.asarray(labels, int) % 256].tolist()
    line = max(1, line_width(drawn.shape) // 2)
    for proposal, box, colour in zip(proposals, boxes, colours, strict=True):
        cv2.rectangle(drawn, *_corners(proposal, zoom), colour, line)
        for start, end in zip(_corners(proposal, zoom), _corners(box, zoom), strict=True):
            cv2.arrowedLine(drawn, start, end, (255, 255, 255), line + 2, cv2.LINE_AA, tipLength=0.3)
            cv2.arrowedLine(drawn, start, end, (0, 0, 0), line, cv2.LINE_AA, tipLength=0.3)
    return drawn


def _corners(box, zoom):
    x1, y1, x2, y2 = np.rint(np.asarray(box, np.float64) * zoom).astype(int).tolist()
    return (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1))
