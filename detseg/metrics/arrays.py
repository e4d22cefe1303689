"""What metrics are given, brought into one form, so that memory order and dtype change no figure; else UserError."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import DTypeLike, NDArray

from detseg.data.masks import encode_masks
from detseg.errors import UserError

Masks = Sequence[dict] | Array  # N compressed RLEs, or what `as_rles` makes RLEs of
Flags = Array | None  # bool (N,); None: none of them is


def _as_array(values, name, dtype=None):
    try:
        return np.asarray(values, dtype)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: expected an array of numbers: {error}") from error


def as_label_map(values: Array, name: str) -> NDArray:
    """Class indices as a C-contiguous array of whole numbers."""
    values = _as_array(values, name)
    if values.dtype.kind not in "iub":
        raise UserError(f"{name}: an array of {values.dtype}, expected class indices of an integer type or bool")
    return np.ascontiguousarray(values, np.uint8 if values.dtype == bool else None)


def check_same_shape(labels: NDArray, others: NDArray, name: str) -> None:
    if labels.shape != others.shape:
        raise UserError(f"labels are {labels.shape}, {name} {others.shape}: expected equal shapes")


def label_maps(labels: Array, predictions: Array, class_count: int, ignore_label: int | None):
    """True and predicted label maps of equal shape, whose values are 0..class_count-1 or, of labels, ignore_label."""
    labels, predictions = as_label_map(labels, "labels"), as_label_map(predictions, "predictions")
    check_same_shape(labels, predictions, "predictions")
    for values, name, ignored in ((labels, "labels", ignore_label), (predictions, "predictions", None)):
        is_known = (values >= 0) & (values < class_count)
        if ignored is not None:
            is_known |= values == ignored
        if not is_known.all():
            place = tuple(np.argwhere(~is_known)[0].tolist())
            also = "" if ignored is None else f" or ignore label {ignored}"
            raise UserError(f"{name}: {values[place]} at {place}, expected classes 0..{class_count - 1}{also}")
    return labels, predictions


def as_boxes(boxes: Array, name: str = "boxes") -> NDArray[np.float64]:
    """Boxes, C-contiguous float64 (N, 4); an empty list is none."""
    boxes = np.ascontiguousarray(_as_array(boxes, name, np.float64))
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise UserError(f"{name}: an array of shape {boxes.shape}, expected (N, 4): x1 y1 x2 y2")
    return boxes.reshape(-1, 4)


def to_xywh(boxes: NDArray) -> NDArray:
    """x1 y1 x2 y2 -> x y width height, (N, 4); C-contiguous, since pycocotools reads the buffer row by row."""
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dtype=np.float64).copy(order="C")


def as_column(values: Array | None, count: int, dtype: DTypeLike, name: str) -> NDArray:
    """A value for each of `count` objects, C-contiguous (count,); of bools, None: all False."""
    if values is None and dtype is bool:
        return np.zeros(count, dtype)
    given = _as_array(values, name)
    column = np.ascontiguousarray(_as_array(given, name, dtype))
    if given.shape != (count,) or (np.dtype(dtype).kind == "i" and (column != given).any()):
        raise UserError(
            f"{name}: {given.dtype} of shape {given.shape}, expected {np.dtype(dtype)} of shape ({count},), one for "
            "each box or mask"
        )
    return column


def as_labels(values: Array, count: int, known: Collection[int], name: str = "labels") -> NDArray[np.int64]:
    """Labels of `count` objects, int64 (count,), each one of `known`."""
    labels = as_column(values, count, np.int64, name)
    is_known = np.isin(labels, list(known))
    if not is_known.all():
        raise UserError(f"{name}: {labels[~is_known][0]}, expected labels of the classes: {', '.join(map(str, known))}")
    return labels


def as_rles(masks: Masks, name: str = "masks") -> list[dict]:
    """Masks as compressed RLEs for pycocotools.

    masks:  N compressed RLEs {"size": [H, W], "counts": bytes or str}, or (N, H, W), bool or numbers, 0 being outside.
    """
    if isinstance(masks, Sequence) and all(map(_is_rle, masks)):
        return list(masks)
    arrays = _as_array(masks, name)
    if arrays.ndim != 3 or arrays.dtype.kind not in "iub":
        got = f"{name}: an array of {arrays.dtype} of shape {arrays.shape}"
        raise UserError(got + ", expected compressed RLEs {size, counts}, or bool (N, H, W)")
    return encode_masks(arrays != 0)


def _is_rle(mask):
    return isinstance(mask, dict) and "size" in mask and isinstance(mask.get("counts"), bytes | str)


def mean_of_defined(values: Array) -> float:
    """The mean of what is not nan; nan where there is nothing."""
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
