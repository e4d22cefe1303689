"""Drawing results on images."""

import cv2
import numpy as np

from detseg.data.masks import decode_part
from detseg.data.palette import voc_palette
from detseg.data.pixels import say_once
from detseg.files import make_folder, written_whole

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_HEIGHT = 22  # pixels of a capital at scale 1
_SMALLEST_SIDE, _LONGEST_ENLARGED = 256, 1024  # pixels, of drawn detections

# Twenty colours that are told apart on a photo (Trubetskoy's list); the VOC palette is too dark for that.
_COLOURS = (
    *((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240)),
    *((240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200)),
    *((128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (128, 128, 128)),
)


def class_colours(classes):
    """The colours of drawn classes: uint8 (256, 3), RGB, index = label. A first class "background" is black."""
    colours = voc_palette()
    start = 1 if classes[0] == "background" else 0
    count = min(len(_COLOURS), 256 - start)
    colours[start : start + count] = _COLOURS[:count]
    return colours


def draw_label_map(image, label_map, classes, opacity=0.5):
    """The image with its label map over it and a legend of the classes that occur.

    image:      uint8 (H, W, C); 1, 3 (RGB) or more channels, of which the first three are shown.
    label_map:  uint8 (H, W); labels that name no class (ignore_label) are left uncoloured and marked by hatching, a
                first class "background" is left uncoloured.
    classes:    names, index = label.
    Returns     uint8 (H, W + legend width, 3), RGB.
    """
    image, colours = as_rgb(image), class_colours(classes)
    ignored = label_map >= len(classes)
    plain = ignored | (label_map == 0) if classes[0] == "background" else ignored
    alpha = np.where(plain, 0.0, opacity)[..., None].astype(np.float32)
    blended = np.rint(image * (1 - alpha) + colours[label_map] * alpha).astype(np.uint8)
    outlines = np.zeros(label_map.shape, bool)  # pixels whose right or lower neighbour has another label
    outlines[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    outlines[:-1] |= label_map[:-1] != label_map[1:]
    blended[outlines & ~ignored] = 255
    rows, columns = np.indices(label_map.shape, sparse=True)
    blended[ignored & ((rows + columns) % 8 == 0)] = 255
    shares = np.bincount(label_map.ravel(), minlength=256)[: len(classes)] / label_map.size
    present = [index for index in np.argsort(-shares) if shares[index] > 0]
    entries = [(tuple(colours[i].tolist()), f"{classes[i]} {100 * shares[i]:.1f}%") for i in present]
    return np.concatenate([blended, _legend(entries, image.shape[0])], axis=1)


class Overview:
    """A large image and its label map, reduced while they pass by in bands of rows.

    source:  has shape (H, W, C) and read(row, column, height, width) -> uint8 (height, width, C).
    """

    def __init__(self, source, longest=2048):
        self._source, self._row, self._bands = source, 0, []
        self._factor = -(-max(source.shape[:2]) // longest)

    def add(self, label_map):
        """Takes the next rows of the label map, uint8 (h, W), and returns them."""
        factor, row = self._factor, self._row
        for start in range(-row % factor, len(label_map), factor):
            height = min(factor, self._source.shape[0] - row - start)
            pixels = as_rgb(self._source.read(row + start, 0, height, self._source.shape[1]))
            image = cv2.resize(pixels, (-(-pixels.shape[1] // factor), 1), interpolation=cv2.INTER_AREA)
            self._bands.append((image, label_map[start : start + 1, ::factor]))
        self._row += len(label_map)
        return label_map

    @property
    def image(self):
        return np.concatenate([image for image, _ in self._bands])

    @property
    def label_map(self):
        return np.concatenate([labels for _, labels in self._bands])


def write_png(path, image):
    """Writes uint8 RGB (H, W, 3) as a PNG, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def as_rgb(image):
    """The first three channels of uint8 (H, W, C), of fewer than three the first one three times: (H, W, 3)."""
    if image.shape[-1] not in (1, 3, 4):
        say_once(f"of {image.shape[-1]} channels, drawings show the first {3 if image.shape[-1] > 3 else 'one'}")
    return np.ascontiguousarray(np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3])


def _legend(entries, height):
    """A panel of colour fields and texts, in a size that suits the image and columns where the height does not do."""
    scale = float(np.clip(height / 480, 0.6, 2.0)) * 0.6
    line = max(12, round(40 * scale))
    text_width = max((_text_width(text, scale, 1) for _, text in entries), default=0)
    column_width = text_width + 2 * line
    lines = max(1, height // line)
    columns = max(1, -(-len(entries) // lines))
    panel = np.full((height, columns * column_width, 3), 255, np.uint8)
    for position, (colour, text) in enumerate(entries):
        x, y = position // lines * column_width, position % lines * line
        field = (x + line // 4, y + line // 5), (x + line, y + line - line // 5)
        cv2.rectangle(panel, *field, colour, cv2.FILLED)
        cv2.rectangle(panel, *field, (90, 90, 90), 1)
        origin = (x + line + line // 3, y + round(0.72 * line))
        cv2.putText(panel, text, origin, _FONT, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return panel


# ----- detections ----------------------------------------------------------------------------------------------------


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
    zoom = zoom_of(image)
    colours = class_colours(classes)[np.asarray(labels, int) % 256].tolist()
    order = np.argsort(np.zeros(len(boxes)) if scores is None else scores, kind="stable")
    drawn = np.repeat(np.repeat(as_rgb(image), zoom, 0), zoom, 1)
    if masks is not None:
        for i in order:
            _draw_mask(drawn, masks[i], colours[i], zoom, opacity)
    corners = np.rint(np.asarray(boxes, np.float64).reshape(-1, 4) * zoom).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:] - 1, corners[:, :2])  # the last pixel that is inside
    line = line_width(drawn.shape)
    edge = line + 2 * max(1, round(line / 3))  # shows on any ground
    for i in order:
        cv2.rectangle(drawn, corners[i, :2].tolist(), corners[i, 2:].tolist(), _ink(colours[i]), edge)
        cv2.rectangle(drawn, corners[i, :2].tolist(), corners[i, 2:].tolist(), colours[i], line)
    taken = []
    for i in order[::-1]:  # the best label has first choice of its place
        text = classes[labels[i]] if scores is None else f"{classes[labels[i]]} {scores[i]:.2f}"
        taken.append(_draw_name(drawn, corners[i].tolist(), text, colours[i], taken))
    return drawn


def zoom_of(image):
    """By which whole factor drawings of boxes enlarge an image (H, W, C)."""
    longest, shortest = max(image.shape[:2]), min(image.shape[:2])
    return int(np.clip(-(-_SMALLEST_SIDE // shortest), 1, max(1, _LONGEST_ENLARGED // longest)))


def line_width(shape):
    return max(2, round(min(shape[:2]) / 300))


def _font_scale(shape):
    return max(0.4, min(shape[:2]) / 1100)


def _stroke(scale):
    return max(1, round(1.3 * scale))


def _text_width(text, scale, stroke):
    return cv2.getTextSize(text, _FONT, scale, stroke)[0][0]


def _draw_mask(drawn, mask, colour, zoom, opacity):
    (rows, columns), inside = decode_part(mask)
    if not inside.size:
        return
    y, x = zoom * rows.start, zoom * columns.start
    inside = inside.repeat(zoom, 0).repeat(zoom, 1)
    part = drawn[y : y + inside.shape[0], x : x + inside.shape[1]]
    blended = cv2.addWeighted(part, 1 - opacity, np.full_like(part, colour), opacity, 0)
    np.copyto(part, blended, where=inside[..., None] != 0)
    outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, colour, line_width(drawn.shape), offset=(int(x), int(y)))


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
    field = left, top, right, bottom = min(fields, key=lambda field: sum(_shared_area(field, other) for other in taken))
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


# ----- ground truth beside prediction --------------------------------------------------------------------------------


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


class TruthDrawings:
    """Files FOLDER/NAME.png, NAME being an image's in its split, with _ for what separates folders.

    task:   of `create_task`.
    count:  int, of images to be drawn, from the first on.
    """

    def __init__(self, task, folder, count):
        self.task, self.folder, self.count = task, folder, count
        make_folder(folder, "--drawings")

    def add(self, sample, found):
        """Draws a Sample beside the Prediction of its image."""
        drawings = self.task.draw_truth_and_found(sample, found)
        panels = [*zip(("ground truth", "prediction"), drawings, strict=True), *self.task.draw_more(sample, found)]
        titles, drawings = zip(*panels, strict=True)
        name = sample.name.replace("/", "_")  # a COCO file_name may be a path, also one that leads out of the folder
        write_png(self.folder / f"{name}.png", draw_side_by_side(drawings, titles))
