"""Batches of images with objects, padded to one of a few shapes, so that few shapes are compiled."""

import itertools

import numpy as np

from detseg.data.augment import fill_colour, resized_size
from detseg.data.masks import crop_masks
from detseg.data.pixels import cut_window
from detseg.errors import UserError

STRIDE = 32  # of a backbone's coarsest map


def shape_buckets(resize, final_size, image_sizes=None, largest_scale=1.0, is_turned=False):
    """The shapes that training batches can have.

    resize:         the config's data.resize.
    final_size:     (height, width) of all images where augmentation ends in one size, else None.
    image_sizes:    N (height, width) of the split; needed where both of these are None.
    largest_scale:  by how much augmentation enlarges images at most after that, from 1 on.
    is_turned:      bool, whether it may swap height and width after that.
    Returns         tuple of (height, width), multiples of 32, by rising area. Under `shorter` and `longer` there are
                    shapes for upright and for lying images; the last and largest holds a batch of both.
    """
    if final_size is None and resize is not None and not hasattr(resize, "shorter"):
        final_size = resize
    if final_size is not None:
        sides = final_size
    elif resize is not None:
        sides = resize.shorter, resize.longer
    else:
        sides = max(min(size) for size in image_sizes), max(max(size) for size in image_sizes)
    first, second = (_rounded_up(round(side * largest_scale)) for side in sides)
    longer, middle = max(first, second), _rounded_up((first + second) / 2)
    shapes = {(first, second)}
    if final_size is None or is_turned:
        shapes |= {(second, first), (longer, longer)}
    if final_size is None:
        shapes |= {(first, first), (first, middle), (middle, first)}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


def bucket_for(sizes, buckets, names=None):
    """The first of `buckets` that holds images of all these sizes, N (height, width), or UserError with their names."""
    for bucket in buckets:
        if np.less_equal(sizes, bucket).all():
            return bucket
    images = list(zip(names or ["an image"] * len(sizes), sizes, strict=True))
    too_large = [(name, size) for name, size in images if not np.less_equal(size, buckets).all(axis=1).any()]
    described = ", ".join(f"{name}: {height}x{width} pixels" for name, (height, width) in too_large or images)
    raise UserError(
        f"{described}: fits none of the shapes of training batches, {_listed(buckets)}: augmentation enlarges it too "
        "far. End augmentation with random_crop or resize: [height, width], or lower the scale of its transforms"
    )


def single_image_shape(resize, size):
    """The (height, width) to which one image of `size`, as data.resize makes it, is padded for prediction."""
    if hasattr(resize, "shorter"):
        return bucket_for([size], shape_buckets(resize, None))
    return tuple(_rounded_up(side) for side in size)


def bucket_groups(image_sizes, resize, buckets):
    """int (N,): the index of the smallest bucket for each image of N sizes, at the size that data.resize gives it."""
    if len(buckets) == 1:
        return np.zeros(len(image_sizes), int)
    indices = {size: buckets.index(bucket_for([resized_size(resize, *size)], buckets)) for size in set(image_sizes)}
    return np.array([indices[size] for size in image_sizes], int)


def describe_buckets(buckets, groups, batch_size):
    """One line of text: which shapes training batches can have. groups: None where augmentation changes sizes."""
    if groups is None:
        return f"batches have up to {len(buckets)} shapes (height x width): {_listed(buckets)}"
    shares = np.bincount(groups, minlength=len(buckets)) / len(groups)  # (buckets,)
    present = {bucket: f"{share:.1%} of the images" for bucket, share in zip(buckets, shares, strict=True) if share}
    pairs = itertools.product(present, repeat=2) if batch_size > 1 else ()
    shapes = {bucket_for(pair, buckets): "mixed batches only" for pair in pairs} | present
    if len(shapes) == 1:
        return f"batches have one shape (height x width): {_listed(shapes)}"
    listed = ", ".join(f"{_listed([bucket])} ({shapes[bucket]})" for bucket in buckets if bucket in shapes)
    return f"batches have up to {len(shapes)} shapes (height x width): {listed}"


def object_arrays(sample, mask_size=None):
    """What `object_batch` makes a batch of: (name, image, boxes, labels, is_crowd, masks, proposals) of a Sample.

    mask_size:  of the masks, which are kept as `crop_masks`; None: there are none.
    """
    objects = sample.objects
    masks = None if mask_size is None else crop_masks(objects.masks, objects.boxes, mask_size)
    return sample.name, sample.image, objects.boxes, objects.labels, objects.is_crowd, masks, sample.proposals


def object_batch(samples, buckets, max_objects, max_proposals=None):
    """B tuples of `object_arrays` as x and y of Model.fit.

    buckets:      of `shape_buckets`; images lie at the top left of the smallest that holds all of them.
    max_objects:  G >= 1, room for the objects of an image.
    max_proposals: P >= 1, of an image, the first ones; None: batches have none.
    Returns       images uint8 (B, height, width, C), and a dict of "boxes" float32 (B, G, 4), "labels" int32 (B, G),
                  -1 where there is no object, "is_crowd" bool (B, G), "image_sizes" float32 (B, 2), the height and
                  width of the image inside, and maybe "masks" uint8 (B, G, S, S), as of `crop_masks`, and "proposals"
                  float32 (B, P, 4), of no size where there is none.
    """
    names, images, boxes, labels, is_crowd, masks, proposals = zip(*samples, strict=True)
    sizes = [image.shape[:2] for image in images]
    for name, of_image in zip(names, labels, strict=True):
        if len(of_image) > max_objects:
            raise UserError(
                f"{name}: it has {len(of_image)} objects, but model.max_objects leaves room for {max_objects}. Set it "
                f"to {len(of_image)} or more, or to null: the training split's largest number"
            )
    truth = {
        "boxes": _padded(boxes, max_objects, np.float32, 0),
        "labels": _padded(labels, max_objects, np.int32, -1),
        "is_crowd": _padded(is_crowd, max_objects, bool, False),
        "image_sizes": np.array(sizes, np.float32),
    }
    if masks[0] is not None:
        truth["masks"] = _padded(masks, max_objects, np.uint8, 0)
    if max_proposals is not None:
        without = [name for name, each in zip(names, proposals, strict=True) if each is None]
        if without:
            raise UserError(f"{without[0]}: its sample has no proposals, which this model is given; expected (P, 4)")
        truth["proposals"] = _padded([each[:max_proposals] for each in proposals], max_proposals, np.float32, 0)
    return padded_images(images, bucket_for(sizes, buckets, names)), truth


def padded_images(images, shape):
    """uint8 (B, height, width, C) of B images of up to this shape."""
    return np.stack([cut_window(image, (0, 0), shape, fill_colour(image.shape[2])) for image in images])


def _padded(arrays, length, dtype, fill):
    """(B, length, ...) of B arrays (up to length, ...)."""
    batch = np.full((len(arrays), length, *arrays[0].shape[1:]), fill, dtype)
    for padded, array in zip(batch, arrays, strict=True):
        padded[: len(array)] = array
    return batch


def _rounded_up(side):  # to a multiple of the stride
    return -(-int(np.ceil(side)) // STRIDE) * STRIDE


def _listed(shapes):
    return ", ".join(f"{height}x{width}" for height, width in shapes)
