"""Augmentation presets: functions of a sample and a random generator."""

import dataclasses

import cv2
import numpy as np

from detseg import config as schema
from detseg.data.albumentations_step import create_albumentations_step
from detseg.data.elastic import elastic_maps, move_image, move_labels
from detseg.data.objects import MIN_VISIBILITY

# The ImageNet mean colour, so that padding is near zero after every backbone's normalisation.
_RGB_FILL = (124, 116, 104)
_GREY_FILL = 117

_CROP_TRIES = 10  # as cat_max_ratio in MMSegmentation

_FLIP_AXES = {"horizontal": (1,), "vertical": (0,), "both": (1, 0)}
# ITU-R BT.601 luma, as in cv2.cvtColor.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def create_augmentation(items, ignore_label, class_pixels=None):
    """The steps of a config's `augmentation` section as one function (Sample, numpy Generator) -> Sample.

    class_pixels:  int (K,), pixels of each class in the training split, which random_crop's rare_classes goes by.
    The result depends on the sample and the generator's state only. Label maps are never interpolated; what an image is
    padded with has label ignore_label.
    """
    steps = [_STEPS[type(item)](item, ignore_label, class_pixels) for item in items]

    def augment(sample, rng):
        for step in steps:
            sample = step(sample, rng)
        return sample

    return augment


def fill_colour(channels):
    """What images of so many channels are padded with."""
    return _RGB_FILL if channels == 3 else _GREY_FILL


def resize_sample(sample, height, width):
    """The sample at another size: the image by area or bilinear interpolation, labels by the nearest pixel centre."""
    if sample.image.shape[:2] == (height, width):
        return sample
    # INTER_NEAREST_EXACT: plain INTER_NEAREST is shifted by up to half a pixel.
    return sample.with_image(
        resize_image(sample.image, height, width),
        lambda labels: cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT),
        lambda objects: objects.resized(sample.image.shape[:2], (height, width)),
    )


def resize_image(image, height, width):
    """uint8 (H, W, C) to (height, width, C): averaged where it shrinks in both directions, else bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    parts = [  # cv2 takes at most four channels, and drops the axis of a single one
        cv2.resize(image[..., start : start + 4], (width, height), interpolation=interpolation).reshape(
            height, width, -1
        )
        for start in range(0, image.shape[2], 4)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def resized_size(resize, height, width):
    """The (height, width) that the config's data.resize gives an image of this size."""
    if resize is None:
        return height, width
    if not hasattr(resize, "shorter"):
        return tuple(resize)
    scale = min(resize.shorter / min(height, width), resize.longer / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scale_jitter(item, ignore_label, class_pixels):
    def step(sample, rng):
        scale = rng.uniform(item.low, item.high)
        height, width = sample.image.shape[:2]
        return resize_sample(sample, max(1, round(height * scale)), max(1, round(width * scale)))

    return step


def _resize(item, ignore_label, class_pixels):
    return lambda sample, rng: resize_sample(sample, item.height, item.width)


def _random_crop(item, ignore_label, class_pixels):
    """Cuts a window at a random place; what is too small is padded, at random shares on both sides."""

    def draw_starts(sample, rng):
        pixel = None
        if item.rare_classes and rng.random() < item.rare_classes and sample.label_map is not None:
            pixel = _pixel_of_rare_class(sample.label_map, class_pixels, rng)
        return _window_starts(sample.image.shape[:2], item.size, pixel, rng)

    def step(sample, rng):
        for _ in range(_CROP_TRIES):
            starts = draw_starts(sample, rng)
            if item.max_class_share is None or sample.label_map is None:
                break
            label_map = _window(sample.label_map, starts, item.size, ignore_label)
            if _largest_class_share(label_map, ignore_label) <= item.max_class_share:
                break
        return _cropped(sample, starts, item.size, ignore_label)

    return step


def _object_crop(item, ignore_label, class_pixels):
    """Cuts a window at a random place, with the objects of which enough is in it."""

    def step(sample, rng):
        starts = _window_starts(sample.image.shape[:2], item.size, None, rng)
        return _cropped(sample, starts, item.size, ignore_label, item.min_visibility)

    return step


def _cropped(sample, starts, size, ignore_label, min_visibility=MIN_VISIBILITY):
    """The window of `size` that starts at (row, column) `starts`; padding has the mean colour and the ignore label."""
    label_map, instance_ids, objects = sample.label_map, sample.instance_ids, sample.objects
    return dataclasses.replace(
        sample,
        image=_window(sample.image, starts, size, fill_colour(sample.image.shape[2])),
        label_map=None if label_map is None else _window(label_map, starts, size, ignore_label),
        instance_ids=None if instance_ids is None else _window(instance_ids, starts, size, 0),
        objects=None if objects is None else objects.cropped(starts, size, min_visibility),
    )


def _window_starts(image_size, window_size, pixel, rng):
    """A random (row, column) at which a window starts, among those where it has `pixel` in it, if that isn't None.

    A negative start lies in the padding.
    """
    starts = []
    for axis, (old, new) in enumerate(zip(image_size, window_size, strict=True)):
        low, high = min(0, old - new), max(0, old - new)
        if pixel is not None:
            low, high = max(low, pixel[axis] - new + 1), min(high, pixel[axis])
        starts.append(int(rng.integers(low, high + 1)))
    return starts


def _pixel_of_rare_class(label_map, class_pixels, rng):
    """(row, column) of a random pixel of a class c that is drawn among those in the label map by
    p_c = (1 / n_c) / sum_k (1 / n_k), n_c being c's pixels in the training split; None where there is no class.
    """
    present = np.bincount(label_map.ravel(), minlength=256)[: len(class_pixels)] > 0  # (K,)
    weights = np.where(present & (class_pixels > 0), 1 / np.maximum(class_pixels, 1), 0)  # ignored pixels: n = 0
    if not weights.any():
        return None
    label = rng.choice(len(weights), p=weights / weights.sum())
    pixels = np.flatnonzero(label_map == label)
    return divmod(int(rng.choice(pixels)), label_map.shape[1])


def _largest_class_share(label_map, ignore_label):
    """The share of the commonest class in the labelled pixels; 1 where there are none."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    counts[ignore_label] = 0
    return counts.max() / counts.sum() if counts.any() else 1.0


def _window(array, starts, size, fill):
    """The window of `size` that starts at (row, column) `starts`, filled where it leaves the array."""
    (row, column), (height, width) = starts, size
    inside = array[max(row, 0) : row + height, max(column, 0) : column + width]
    if inside.shape[:2] == size:
        return np.ascontiguousarray(inside)
    window = np.empty((height, width, *array.shape[2:]), array.dtype)
    window[:] = fill
    top, left = max(-row, 0), max(-column, 0)
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window


def _flip(item, ignore_label, class_pixels):
    """Each direction for itself with probability one half."""
    axes = _FLIP_AXES[item.direction]

    def step(sample, rng):
        flipped = [axis for axis in axes if rng.random() < 0.5]
        if not flipped:
            return sample

        def mirror(array):
            return np.ascontiguousarray(np.flip(array, flipped))

        size = sample.image.shape[:2]
        return sample.with_image(mirror(sample.image), mirror, lambda objects: objects.flipped(flipped, size))

    return step


def _rotate90(item, ignore_label, class_pixels):
    def step(sample, rng):
        if rng.random() >= item.probability:
            return sample
        turns = int(rng.integers(1, 4))

        def turn(array):
            return np.ascontiguousarray(np.rot90(array, turns))

        size = sample.image.shape[:2]
        return sample.with_image(turn(sample.image), turn, lambda objects: objects.turned(turns, size))

    return step


def _elastic(item, ignore_label, class_pixels):
    def step(sample, rng):
        maps = elastic_maps(*sample.image.shape[:2], rng, item.grid, item.sigma)
        return sample.with_image(
            move_image(sample.image, maps),
            lambda labels: move_labels(labels, maps),
            lambda objects: objects.deformed(maps),
        )

    return step


def _color_jitter(item, ignore_label, class_pixels):
    """Brightness, contrast, saturation and hue as one affine map of colours, so that values are clipped once only."""

    def step(sample, rng):
        brightness, contrast, saturation = (
            rng.uniform(1 - strength, 1 + strength) for strength in (item.brightness, item.contrast, item.saturation)
        )
        hue = rng.uniform(-item.hue, item.hue)
        image = sample.image
        mean = brightness * float(image.mean())
        gain, offset = brightness * contrast, mean * (1 - contrast)
        if image.shape[2] == 3:
            matrix = gain * _saturation_matrix(saturation) @ _hue_matrix(hue)  # (3, 3)
            affine = np.concatenate([matrix, np.full((3, 1), offset)], axis=1).astype(np.float32)
            jittered = cv2.transform(image, affine)
        else:
            table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
            jittered = table[image]
        return dataclasses.replace(sample, image=jittered)

    return step


def _saturation_matrix(saturation):
    """Blends a colour with its luma."""
    return saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))


def _hue_matrix(turns):
    """Turns colours about the grey axis by a share of a full turn (Rodrigues' rotation)."""
    angle = 2 * np.pi * turns
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


_STEPS = {
    schema.ScaleJitter: _scale_jitter,
    schema.RandomCrop: _random_crop,
    schema.ObjectCrop: _object_crop,
    schema.Flip: _flip,
    schema.Rotate90: _rotate90,
    schema.Elastic: _elastic,
    schema.ColorJitter: _color_jitter,
    schema.Resize: _resize,
    schema.Albumentations: create_albumentations_step,
}
