"""The size of training images, which a batch needs to be one."""

from detseg import config as schema
from detseg.data.augment import resized_size
from detseg.errors import UserError


def training_size(config, scan):
    """(height, width) of all training images after augmentation, None where only albumentations knows it.

    scan:    what scan_split found in the training split.
    Raises   UserError where images have several sizes, with the ways out.
    """
    remedy = "add random_crop: [height, width] or resize: [height, width] to augmentation, or set data.resize"
    size, last = last_size(config.augmentation)
    if last is not None and size is None:
        if isinstance(last, schema.ScaleJitter):
            raise UserError(f"augmentation: after scale_jitter images differ in size and form no batch; {remedy}")
        return None
    if size is not None:
        return size
    sizes = sorted({resized_size(config.data.resize, *size) for size in scan.image_sizes})
    if len(sizes) > 1:
        raise UserError(
            f"data.train: images have {len(sizes)} sizes, {sizes[0]} to {sizes[-1]} (height, width), and form no "
            f"batch; {remedy}"
        )
    return sizes[0]


def last_size(augmentation):
    """What the last item that sets the size of images makes of it.

    Returns  ((height, width) or None where it isn't one for all, that item or None where there is none).
    """
    for item in reversed(augmentation):
        if isinstance(item, schema.RandomCrop | schema.ObjectCrop):
            return item.size, item
        if isinstance(item, schema.Resize):
            return (item.height, item.width), item
        if isinstance(item, schema.ScaleJitter | schema.Albumentations):
            return None, item
    return None, None


def largest_scale(augmentation):
    """By how much scale_jitter enlarges images at most, from 1 on."""
    scale = 1.0
    for item in augmentation:
        if isinstance(item, schema.ScaleJitter):
            scale *= item.high
    return max(scale, 1.0)


def sizes_vary(augmentation):
    """Whether images may have other shapes after augmentation than before, and not one for all."""
    changing = (schema.ScaleJitter, schema.Rotate90, schema.Albumentations)
    size, _ = last_size(augmentation)
    return size is None and any(isinstance(item, changing) for item in augmentation)
