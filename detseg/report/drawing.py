"""Drawing results on images."""

import cv2
import numpy as np

from detseg.data.palette import voc_palette
from detseg.files import written_whole

_FONT = cv2.FONT_HERSHEY_SIMPLEX

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
    image = as_rgb(image)
    colours = class_colours(classes)
    ignored = label_map >= len(classes)
    plain = ignored | (label_map == 0) if classes[0] == "background" else ignored
    alpha = np.where(plain, 0.0, opacity)[..., None].astype(np.float32)
    blended = image * (1 - alpha) + colours[label_map] * alpha
    blended = np.rint(blended).astype(np.uint8)
    blended[_outlines(label_map) & ~ignored] = 255
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
        self._source = source
        self._factor = -(-max(source.shape[:2]) // longest)
        self._row = 0
        self._bands = []

    def add(self, label_map):
        """Takes the next rows of the label map, uint8 (h, W), and returns them."""
        factor, row = self._factor, self._row
        first = -row % factor  # of the band's rows that the overview keeps
        for start in range(first, len(label_map), factor):
            height = min(factor, self._source.shape[0] - row - start)
            pixels = self._source.read(row + start, 0, height, self._source.shape[1])
            image = cv2.resize(pixels, (-(-pixels.shape[1] // factor), 1), interpolation=cv2.INTER_AREA)
            self._bands.append((image.reshape(1, image.shape[1], -1), label_map[start : start + 1, ::factor]))
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
    """The first three channels of uint8 (H, W, C), a single one three times: (H, W, 3)."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def _outlines(label_map):
    """True on pixels whose right or lower neighbour has another label."""
    outlines = np.zeros(label_map.shape, bool)
    outlines[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    outlines[:-1] |= label_map[:-1] != label_map[1:]
    return outlines


def _legend(entries, height):
    """A panel of colour fields and texts, in a size that suits the image and columns where the height does not do."""
    scale = float(np.clip(height / 480, 0.6, 2.0)) * 0.6
    line = max(12, round(40 * scale))
    text_width = max((cv2.getTextSize(text, _FONT, scale, 1)[0][0] for _, text in entries), default=0)
    column_width = text_width + 2 * line
    lines = max(1, height // line)
    columns = -(-len(entries) // lines) if entries else 1
    panel = np.full((height, columns * column_width, 3), 255, np.uint8)
    for position, (color, text) in enumerate(entries):
        x, y = position // lines * column_width, position % lines * line
        cv2.rectangle(panel, (x + line // 4, y + line // 5), (x + line, y + line - line // 5), color, cv2.FILLED)
        cv2.rectangle(panel, (x + line // 4, y + line // 5), (x + line, y + line - line // 5), (90, 90, 90), 1)
        origin = (x + line + line // 3, y + round(0.72 * line))
        cv2.putText(panel, text, origin, _FONT, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return panel
