"""Augmentation presets: functions of a sample and a random generator."""

import dataclasses
import functools
import inspect
import os
import threading
import warnings

import cv2
import numpy as np

from detseg.config import augmentation as schema
from detseg.data.elastic import elastic_maps, move_image, move_labels
from detseg.data.objects import MIN_VISIBILITY, Objects, clip_boxes
from detseg.data.pixels import cut_window, in_parts
from detseg.errors import UserError

_CROP_TRIES = 10  # as cat_max_ratio in MMSegmentation
_FLIP_AXES = {"horizontal": (1,), "vertical": (0,), "both": (1, 0)}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in cv2.cvtColor


def create_augmentation(items, ignore_label, class_pixels=None):
    """The steps of a config's `augmentation` section as one function (Sample, numpy Generator) -> Sample.

    class_pixels:  int (K,), pixels of each class in the training split, by which random_crop chooses rare classes.
    The result depends on the sample and the generator's state only. Label maps are never interpolated; what an image is
    padded with has label ignore_label.
    """
    steps = []
    for item in items:
        if isinstance(item, schema.Albumentations):
            steps.append(_albumentations_step(item, ignore_label, class_pixels))
        elif isinstance(item, schema.RandomCrop):
            steps.append(functools.partial(_random_crop, item, ignore_label, class_pixels))
        elif isinstance(item, schema.ObjectCrop):
            steps.append(functools.partial(_object_crop, item, ignore_label))
        else:
            steps.append(functools.partial(_STEPS[type(item)], item))

    def augment(sample, rng):
        for step in steps:
            sample = step(sample, rng)
        return sample

    return augment


def fill_colour(channels):
    """What images are padded with: ImageNet's mean, so that it is near zero after every backbone's normalisation."""
    return (124, 116, 104) if channels == 3 else 117


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
    return in_parts(lambda part: cv2.resize(part, (width, height), interpolation=interpolation), image)


def resized_size(resize, height, width):
    """The (height, width) that the config's data.resize gives an image of this size."""
    if resize is None:
        return height, width
    if not hasattr(resize, "shorter"):
        return tuple(resize)
    scale = min(resize.shorter / min(height, width), resize.longer / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scale_jitter(item, sample, rng):
    scale = rng.uniform(item.low, item.high)
    height, width = sample.image.shape[:2]
    return resize_sample(sample, max(1, round(height * scale)), max(1, round(width * scale)))


def _random_crop(item, ignore_label, class_pixels, sample, rng):
    label_map = sample.label_map
    for _ in range(_CROP_TRIES):
        pixel = None
        if item.rare_classes and rng.random() < item.rare_classes and label_map is not None:
            pixel = _pixel_of_rare_class(label_map, class_pixels, rng)
        starts = _window_starts(sample.image.shape[:2], item.size, pixel, rng)
        if item.max_class_share is None or label_map is None:
            break
        window = cut_window(label_map, starts, item.size, ignore_label)
        if _largest_class_share(window, ignore_label) <= item.max_class_share:
            break
    return _cropped(sample, starts, item.size, ignore_label)


def _object_crop(item, ignore_label, sample, rng):
    starts = _window_starts(sample.image.shape[:2], item.size, None, rng)
    return _cropped(sample, starts, item.size, ignore_label, item.min_visibility)


def _cropped(sample, starts, size, ignore_label, min_visibility=MIN_VISIBILITY):
    return sample.with_image(
        cut_window(sample.image, starts, size, fill_colour(sample.image.shape[2])),
        lambda labels: cut_window(labels, starts, size, ignore_label if labels is sample.label_map else 0),
        lambda objects: objects.cropped(starts, size, min_visibility),
    )


def _window_starts(image_size, window_size, pixel, rng):
    """A random (row, column) at which a window starts that contains `pixel`, if any; negative ones lie in padding."""
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


def _flip(item, sample, rng):
    flipped = [axis for axis in _FLIP_AXES[item.direction] if rng.random() < 0.5]
    if not flipped:
        return sample
    size = sample.image.shape[:2]
    return _rearranged(sample, lambda array: np.flip(array, flipped), lambda objects: objects.flipped(flipped, size))


def _rotate90(item, sample, rng):
    if rng.random() >= item.probability:
        return sample
    turns, size = int(rng.integers(1, 4)), sample.image.shape[:2]
    return _rearranged(sample, lambda array: np.rot90(array, turns), lambda objects: objects.turned(turns, size))


def _rearranged(sample, move, move_objects):
    """The sample with all pixels in other places; move is a function of arrays."""

    def moved(array):
        return np.ascontiguousarray(move(array))

    return sample.with_image(moved(sample.image), moved, move_objects)


def _elastic(item, sample, rng):
    maps = elastic_maps(*sample.image.shape[:2], rng, item.grid, item.sigma)
    return sample.with_image(
        move_image(sample.image, maps),
        lambda labels: move_labels(labels, maps),
        lambda objects: objects.deformed(maps),
    )


def _color_jitter(item, sample, rng):
    """Brightness, contrast, saturation and hue as one affine map of colours, so that values are clipped once only."""
    brightness, contrast, saturation = (
        rng.uniform(1 - strength, 1 + strength) for strength in (item.brightness, item.contrast, item.saturation)
    )
    hue = rng.uniform(-item.hue, item.hue)
    image = sample.image
    mean = brightness * float(image.mean())
    gain, offset = brightness * contrast, mean * (1 - contrast)
    if image.shape[2] == 3:
        blend = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))  # of a colour with its luma
        matrix = gain * blend @ _hue_matrix(hue)  # (3, 3)
        affine = np.concatenate([matrix, np.full((3, 1), offset)], axis=1).astype(np.float32)
        return dataclasses.replace(sample, image=cv2.transform(image, affine))
    table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
    return dataclasses.replace(sample, image=table[image])


def _hue_matrix(turns):
    """Turns colours about the grey axis by a share of a full turn (Rodrigues' rotation)."""
    angle = 2 * np.pi * turns
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)


def _albumentations_step(item, ignore_label, class_pixels):
    """Any albumentations transform by its own name; what it pads is ignored unless its arguments say otherwise."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version
    import albumentations

    where = f"augmentation: albumentations {item.name}"
    known = {ignore_label, *range(256 if class_pixels is None else len(class_pixels))}
    transform = getattr(albumentations, item.name, None)
    if not (isinstance(transform, type) and issubclass(transform, albumentations.BasicTransform)):
        raise UserError(f"{where}: albumentations {albumentations.__version__} has no transform of this name")
    arguments = dict(item.arguments)
    fill_mask = inspect.signature(transform).parameters.get("fill_mask")
    if fill_mask is not None and fill_mask.default is not None:  # None: the transform leaves masks alone
        arguments.setdefault("fill_mask", ignore_label)

    @functools.lru_cache  # one for each thread of the loader, because a Compose holds its random state
    def create_compose(with_boxes, thread):
        form = {"label_fields": ["index"], "clip": True, "min_visibility": MIN_VISIBILITY}
        boxes = albumentations.BboxParams("pascal_voc", **form) if with_boxes else None
        more = {"bbox_params": boxes, "additional_targets": {"instance_ids": "mask"}}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # how albumentations reports an unknown argument
                return albumentations.Compose([transform(**arguments)], **more)
        except (TypeError, ValueError, UserWarning) as error:
            raise UserError(f"{where}: {str(error).splitlines()[0]}. Arguments given: {item.arguments}") from error

    # Wrong arguments are told here, before training starts.
    moves_boxes = "bboxes" in create_compose(False, threading.get_ident()).transforms[0].targets

    def step(sample, rng):
        with_boxes = moves_boxes and not (sample.objects is None and sample.proposals is None)
        compose = create_compose(with_boxes, threading.get_ident())
        compose.set_random_seed(int(rng.integers(2**31)))
        try:
            result = compose(**_targets(sample, with_boxes))
        except Exception as error:  # a target that it needs, or can't move; transforms raise whatever they like
            raise UserError(f"{where}: {sample.name}: {(str(error) or repr(error)).splitlines()[0]}") from error
        image = np.ascontiguousarray(result["image"])
        changed, size = {"image": image}, image.shape[:2]
        if image.dtype != np.uint8 or image.shape[2:] != sample.image.shape[2:]:
            raise UserError(f"{where}: turned an image into {image.dtype} {image.shape}, expected uint8 as before")
        if sample.label_map is not None:
            changed["label_map"] = labels = result["mask"]
            if labels.shape != size:
                raise UserError(f"{where}: made an image of {size} with a label map of {labels.shape}")
            strange = set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - known
            if strange:
                raise UserError(f"{where}: {sample.name}: label {min(strange)} is that of no class")
        if sample.instance_ids is not None:
            is_fill = result["mask"] == ignore_label  # fill_mask is no id
            changed["instance_ids"] = np.where(is_fill, 0, result["instance_ids"]).astype(np.int32)
        if with_boxes:
            changed |= _placed(sample, result, size)
        return dataclasses.replace(sample, **changed)

    return step


def _placed(sample, result, size):
    """The objects and proposals of a sample where albumentations put their boxes, as _targets numbered them."""
    boxes = clip_boxes(np.asarray(result["bboxes"], np.float32).reshape(-1, 4), size)
    index, changed = np.asarray(result["index"], int), {}
    count = 0 if sample.objects is None else len(sample.objects)
    of_objects = index < count
    if sample.objects is not None:
        has_masks = sample.objects.masks is not None
        masks = np.asarray(result.get("masks", ()), np.uint8).reshape(-1, *size) if has_masks else None
        changed["objects"] = sample.objects.placed(index[of_objects], boxes[of_objects], masks)
    if sample.proposals is not None:
        all_of_them = Objects(sample.proposals, np.zeros(len(sample.proposals), int))
        changed["proposals"] = all_of_them.placed(index[~of_objects] - count, boxes[~of_objects]).boxes
    return changed


def _targets(sample, with_boxes):
    targets = {"image": np.ascontiguousarray(sample.image)}
    if sample.label_map is not None:
        targets["mask"] = np.ascontiguousarray(sample.label_map)
    if sample.instance_ids is not None:
        targets["instance_ids"] = sample.instance_ids.astype(np.float32)  # OpenCV moves no int32
    if with_boxes:
        # The index says whose a box is: labels come back as floats, and padding by reflection doubles boxes.
        parts = [getattr(sample.objects, "boxes", None), sample.proposals]
        boxes = np.concatenate([part for part in parts if part is not None])
        targets |= {"bboxes": boxes, "index": np.arange(len(boxes))}
        if sample.objects is not None and sample.objects.masks is not None and len(sample.objects):
            targets["masks"] = sample.objects.masks
    return targets


_STEPS = {
    schema.ScaleJitter: _scale_jitter,
    schema.Flip: _flip,
    schema.Rotate90: _rotate90,
    schema.Elastic: _elastic,
    schema.ColorJitter: _color_jitter,
    schema.Resize: lambda item, sample, rng: resize_sample(sample, item.height, item.width),
}
