"""The size of training images, which a batch needs to be one."""

from typing import NamedTuple

from detseg.config import augmentation as schema
from detseg.data.augment import resized_size
from detseg.errors import UserError


def training_size(config, scan):
    """(height, width) of all training images after augmentation, None where only albumentations knows it.

    scan:    what scan_split found in the training split.
    Raises   UserError where images have several sizes, with the ways out.
    """
    remedy = "add random_crop: [height, width] or resize: [height, width] to augmentation, or set data.resize"
    for item in reversed(config.augmentation):
        if isinstance(item, schema.Albumentations):
            return None
        if isinstance(item, schema.RandomCrop):
            return item.size
        if isinstance(item, schema.Resize):
            return item.height, item.width
        if isinstance(item, schema.ScaleJitter):
            raise UserError(f"augmentation: after scale_jitter images differ in size and form no batch; {remedy}")
    sizes = sorted({resized_size(config.data.resize, *size) for size in scan.image_sizes})
    if len(sizes) > 1:
        raise UserError(
            f"data.train: images have {len(sizes)} sizes, {sizes[0]} to {sizes[-1]} (height, width), and form no "
            f"batch; {remedy}"
        )
    return sizes[0]


class TrainingShapes(NamedTuple):
    """What augmentation makes of images' sizes."""

    size: tuple | None = None  # (height, width) that the last random_crop or resize gives all of them
    scale: float = 1.0  # by how much they are enlarged after that at most, from 1 on
    is_turned: bool = False  # whether height and width may be swapped after that
    varies: bool = False  # whether images may end in other sizes than `size`, or than they began with


def training_shapes(augmentation):
    """The TrainingShapes of a config's augmentation; what albumentations changes is not known here."""
    shapes = TrainingShapes()
    for item in augmentation:
        if isinstance(item, schema.RandomCrop | schema.ObjectCrop):
            shapes = TrainingShapes(item.size)
        elif isinstance(item, schema.Resize):
            shapes = TrainingShapes((item.height, item.width))
        elif isinstance(item, schema.ScaleJitter):
            shapes = shapes._replace(scale=shapes.scale * item.high, varies=True)
        elif isinstance(item, schema.Rotate90):
            shapes = shapes._replace(is_turned=True, varies=True)
        elif isinstance(item, schema.Albumentations):
            shapes = shapes._replace(varies=True)
    return shapes._replace(scale=max(shapes.scale, 1.0))
