"""The base class of data sets."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detseg.data.masks import encode_masks
from detseg.data.objects import Objects
from detseg.errors import UserError


class Dataset:
    """The images of one split with their labels. A data set of one's own derives from this and defines

        classes           tuple of K str: the name of each label, which is its index.
        __len__()         the number of samples.
        __getitem__(i)    the i-th as a `Sample`, with a label_map for segmentation, with objects for detection.

    All the rest has the defaults below. What is read is read on access, by several threads at once, so a data set is
    not changed once it is there. It can be pickled where worker processes read it.
    """

    classes: Sequence[str] = ()
    split: str = "train"  # its name in messages and results
    channels: int = 3  # of the images
    ignore_label: int = 255  # of label maps: never trained or scored on

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """List of N str, unique: what messages and results call the images. By default "0", "1", ..."""
        return [str(i) for i in range(len(self))]

    @functools.cached_property
    def image_paths(self) -> Sequence[Path | None]:
        """List of N Path or None: the image files, where there are files."""
        return [None] * len(self)

    @functools.cached_property
    def image_ids(self) -> Sequence[int | str]:
        """List of N unique int or str: the source's ids of the images, for results files. By default 1..N."""
        return list(range(1, len(self) + 1))

    @functools.cached_property
    def category_ids(self) -> tuple[int, ...]:
        """Tuple of K int: the source's ids of the classes, for results files. By default 1..K."""
        return tuple(range(1, len(self.classes) + 1))

    @functools.cached_property
    def has_masks(self) -> bool:
        """Whether objects have masks. By default those of the first sample tell."""
        objects = self[0].objects if len(self) else None
        return objects is not None and objects.masks is not None

    def image(self, i: int) -> np.ndarray:
        """uint8 (H, W, channels): the image alone."""
        return self[i].image

    def label_map(self, i: int) -> np.ndarray | None:
        """uint8 (H, W) of indices into `classes` and ignore_label, or None: the label map alone."""
        return self[i].label_map

    def objects(self, i: int) -> Objects | None:
        """The `Objects` of an image alone, or None."""
        return self[i].objects

    def proposals(self, i: int) -> np.ndarray | None:
        """float32 (P, 4): the proposals in an image alone, best first, or None."""
        return self[i].proposals

    def true_instances(self, i: int) -> tuple | None:
        """(masks, labels, is_crowd) of the objects that masks are scored by; None where there are no masks.

        masks: list of N compressed RLEs; labels: int (N,); is_crowd: bool (N,).
        """
        objects = self.objects(i) if self.has_masks else None
        return None if objects is None else (encode_masks(objects.masks), objects.labels, objects.is_crowd)

    def labels_source(self, i: int) -> str:
        """str for messages: where the labels of an image come from."""
        return f"{type(self).__name__}[{i}] ({self.names[i]})"

    def fingerprint(self) -> str | None:
        """str that changes with everything that the samples depend on, so that results of a scan may be kept under it.
        None: not known, and the data set is scanned at every start.
        """
        return None


def check_classes(dataset, expected, owner):
    """UserError unless a dataset has exactly the classes that a model, the `owner`, was made for, in their order."""
    if tuple(dataset.classes) != tuple(expected):
        raise UserError(
            f"data.{dataset.split}: its classes are {', '.join(dataset.classes)}, but those of {owner} are "
            f"{', '.join(expected)}. Names and order have to be the same; data.classes can select and order them"
        )
