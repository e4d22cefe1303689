"""Drawing boxes and instance masks on images."""

import cv2
import numpy as np
from pycocotools import mask as rle

from detseg.report.drawing import as_rgb, class_colours

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_HEIGHT = 22  # pixels of a capital at scale 1
_SMALLEST_SIDE, _LONGEST_ENLARGED = 256, 1024  # pixels


def draw_detections(image, boxes, labels, classes, scores=None, masks=None, opacity=0.4):
    """The image with boxes, class names and scores on it, those of high scores on top.

    An image with a side below 256 pixels is enlarged by a whole factor (until the other side reaches 1024), so that
    there is room for names; lines and letters grow with the image.

    image:   uint8 (H, W, C); 1, 3 (RGB) or more channels, of which the first three are shown.
    boxes:   float (N, 4), as `detseg` states it; labels int (N,), indices of `classes`.
    scores:  float (N,), or None where there are none, as for ground truth.
    masks:   N compressed RLEs of (H, W), or None.
    Returns  uint8 (zoom * H, zoom * W, 3), RGB.
    """
    zoom = _zoom(image.shape[:2])
    colours = class_colours(classes)[np.asarray(labels, int) % 256].tolist()
    order = np.argsort(np.zeros(len(boxes)) if scores is None else scores, kind="stable")
    drawn = np.repeat(np.repeat(as_rgb(image), zoom, 0), zoom, 1)
    if masks is not None:
        for i in order:
            _draw_mask(drawn, masks[i], colours[i], zoom, opacity)
    corners = np.rint(np.asarray(boxes, np.float64).reshape(-1, 4) * zoom).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:] - 1, corners[:, :2])  # the last pixel that is inside
    for i in order:
        _draw_box(drawn, corners[i].tolist(), colours[i])
    taken = []
    for i in order[::-1]:  # the best label has first choice of its place
        text = classes[labels[i]] if scores is None else f"{classes[labels[i]]} {scores[i]:.2f}"
        taken.append(_draw_name(drawn, corners[i].tolist(), text, colours[i], taken))
    return drawn


def draw_side_by_side(drawings, titles):
    """Pictures of equal height with their titles above, such as ground truth and prediction.

    drawings:  uint8 (H, W, 3) each.
    Returns    uint8 (H + title height, sum of W + gaps, 3).
    """
    height = drawings[0].shape[0]
    scale = _font_scale(drawings[0].shape) * 1.2
    band, gap = round(2.2 * _FONT_HEIGHT * scale), max(2, height // 100)
    columns = []
    for drawing, title in zip(drawings, titles, strict=True):
        panel = np.full((band, drawing.shape[1], 3), 255, np.uint8)
        fitting = min(scale, 0.95 * drawing.shape[1] / _text_width(title, 1.0, 1))
        origin = (round(0.4 * band), round(0.7 * band))
        cv2.putText(panel, title, origin, _FONT, fitting, (30, 30, 30), _stroke(fitting), cv2.LINE_AA)
        columns += [np.concatenate([panel, drawing]), np.full((band + height, gap, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)


def _zoom(size):
    return int(np.clip(-(-_SMALLEST_SIDE // min(size)), 1, max(1, _LONGEST_ENLARGED // max(size))))


def _line_width(shape):
    return max(2, round(min(shape[:2]) / 300))


def _font_scale(shape):
    return max(0.4, min(shape[:2]) / 1100)


def _stroke(scale):
    return max(1, round(1.3 * scale))


def _text_width(text, scale, stroke):
    return cv2.getTextSize(text, _FONT, scale, stroke)[0][0]


def _draw_mask(drawn, mask, colour, zoom, opacity):
    x, y, width, height = rle.toBbox(mask).astype(int)
    if not width or not height:
        return
    inside = rle.decode(mask)[y : y + height, x : x + width]
    inside = inside.repeat(zoom, 0).repeat(zoom, 1)
    part = drawn[zoom * y : zoom * (y + height), zoom * x : zoom * (x + width)]
    blended = cv2.addWeighted(part, 1 - opacity, np.full_like(part, colour), opacity, 0)
    np.copyto(part, blended, where=inside[..., None] != 0)
    outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, colour, _line_width(drawn.shape), offset=(int(zoom * x), int(zoom * y)))


def _draw_box(drawn, corners, colour):
    line = _line_width(drawn.shape)
    x1, y1, x2, y2 = corners
    edge = line + 2 * max(1, round(line / 3))  # shows on any ground
    cv2.rectangle(drawn, (x1, y1), (x2, y2), _ink(colour), edge)
    cv2.rectangle(drawn, (x1, y1), (x2, y2), colour, line)


def _draw_name(drawn, corners, text, colour, taken):
    """Writes on a field of the class's colour at the box, inside the image; returns the field as x1 y1 x2 y2."""
    height, width = drawn.shape[:2]
    scale = min(_font_scale(drawn.shape), 0.95 * width / (_text_width(text, 1.0, 1) + _FONT_HEIGHT))
    margin = max(1, round(0.25 * _FONT_HEIGHT * scale))
    field_width = _text_width(text, scale, _stroke(scale)) + 2 * margin
    field_height = round(_FONT_HEIGHT * scale * 1.25) + 2 * margin
    x1, y1, x2, y2 = corners
    above, right = y1 - field_height, x2 - field_width
    fields = []
    for x, y in ((x1, above), (x1, y2), (right, above), (x1, y1), (right, y2)):
        x, y = max(0, min(x, width - field_width)), max(0, min(y, height - field_height))
        fields.append((x, y, x + field_width, y + field_height))
    field = min(fields, key=lambda field: sum(_shared_area(field, other) for other in taken))
    left, top, right, bottom = field
    cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, cv2.FILLED)
    baseline = bottom - margin - round(0.25 * _FONT_HEIGHT * scale)
    cv2.putText(drawn, text, (left + margin, baseline), _FONT, scale, _ink(colour), _stroke(scale), cv2.LINE_AA)
    return field


def _shared_area(field, other):
    width = min(field[2], other[2]) - max(field[0], other[0])
    height = min(field[3], other[3]) - max(field[1], other[1])
    return max(0, width) * max(0, height)


def _ink(colour):
    """Black or white, whichever stands out from the colour (ITU-R BT.601 luma)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
