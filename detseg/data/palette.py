"""The VOC colour map, and label maps written as palette PNGs with it."""

import numpy as np
from PIL import Image

from detseg.files import written_whole


def voc_palette(n=256):
    """The colours of the first `n` label values: uint8 (n, 3), RGB (PASCAL VOC devkit, VOClabelcolormap.m).

    Bits 0, 1, 2 of a label become the high bits of red, green and blue, bits 3, 4, 5 the next lower ones, and so on:
    0 is black, 1 is (128, 0, 0) and 255, the void label, is (224, 224, 192).
    """
    bits = np.unpackbits(np.arange(n, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # (n, 8), lowest bit first
    bits = np.pad(bits, ((0, 0), (0, 1))).reshape(n, 3, 3)  # (n, which of three bits, channel)
    return (bits << np.array([7, 6, 5], np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)  # (n, 3)


def write_index_png(path, label_map, palette):
    """Write a label map, uint8 (H, W), as a palette PNG whose pixels are the labels; the file appears by rename.

    palette:    uint8 (n, 3), RGB, n <= 256, a colour for every label that occurs.
    """
    label_map, palette = np.asarray(label_map), np.asarray(palette)
    if label_map.dtype != np.uint8 or label_map.ndim != 2:
        raise ValueError(f"a label map is uint8 (H, W), not {label_map.dtype} {label_map.shape}")
    if palette.dtype != np.uint8 or palette.ndim != 2 or palette.shape[1] != 3 or len(palette) > 256:
        raise ValueError(f"a palette is uint8 (n, 3) with n <= 256, not {palette.dtype} {palette.shape}")
    if label_map.size and label_map.max() >= len(palette):
        raise ValueError(f"label {label_map.max()} has no colour in a palette of {len(palette)}")
    picture = Image.fromarray(label_map)
    picture.putpalette(palette.tobytes())
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG")
