"""The dataset that a config's data section describes.

What every dataset offers (they share no base class, only this):

    len(dataset), dataset[i]    the number of samples; the i-th as a `Sample` with image and label map of one size.
    image(i), label_map(i)      its two halves: uint8 (H, W, channels); uint8 (H, W) of indices into `classes` and
                                ignore_label. Both raise UserError on a broken file.
    classes                     tuple of K str: the name of each label.
    channels, ignore_label      as in the config.
    split                       the config's name of the split: train, val or test.
    names, image_paths          list of str, unique, and list of Path, one a sample.
    labels_source(i)            str for messages: where the labels of a sample come from.
    label_files()               list of Path: the files that hold the labels of all samples.
    settings()                  JSON-able dict of what, beside the files, the samples depend on.

Reading happens on access; nothing is kept in memory but names and annotations. A dataset is read-only and may be used
from several threads, and pickled.
"""

from detseg.data.coco import CocoSegmentation
from detseg.data.folder import FolderSegmentation
from detseg.data.voc import VOCSegmentation
from detseg.errors import UserError


def create_dataset(data, split):
    """The dataset of one split.

    data:       the config's data section: format, root, train, val, test (str, or an object with annotations and
                images, or images and masks), classes, channels, ignore_label, palette
                (which coco has not).
    split:      "train", "val" or "test".
    Raises      UserError if the config has no such split, or it isn't of the format's form, or the data set's files
                are not as expected.
    """
    if data.format not in _FORMATS:
        raise UserError(f"data.format: {data.format!r} has no semantic labels; expected one of {', '.join(_FORMATS)}")
    files = getattr(data, split, None)
    if files is None:
        given = [name for name in ("train", "val", "test") if getattr(data, name, None) is not None]
        raise UserError(f"data.{split}: not set, so there is no split {split!r}. Set are: {', '.join(given) or 'none'}")
    settings = {
        "split": split,
        "classes": data.classes,
        "channels": data.channels,
        "ignore_label": data.ignore_label,
        "palette": getattr(data, "palette", None),  # the section of COCO has none
    }
    return _FORMATS[data.format](data.root, files, settings)


def check_classes(dataset, expected, owner):
    """UserError unless a dataset has exactly the classes that a model was made for: labels would be silently permuted.

    expected:  tuple of class names, index = label; `owner` says in the message whose they are.
    """
    if tuple(dataset.classes) != tuple(expected):
        raise UserError(
            f"data.{dataset.split}: its classes are {', '.join(dataset.classes)}, but those of {owner} are "
            f"{', '.join(expected)}. Names and order have to be the same; data.classes can select and order them"
        )


def _voc(root, files, settings):
    if not isinstance(files, str):
        raise UserError(f"data.{settings['split']}: expected the name of a list in ImageSets/Segmentation")
    return VOCSegmentation(root, files, **settings)


def _folder(root, files, settings):
    images, masks = _fields(files, ("images", "masks"), settings["split"])
    return FolderSegmentation(root, images, masks, **settings)


def _coco(root, files, settings):
    annotations, images = _fields(files, ("annotations", "images"), settings["split"])
    return CocoSegmentation(root, annotations, images, **settings)


def _fields(files, names, split):
    values = [getattr(files, name, None) for name in names]
    if None in values:
        raise UserError(f"data.{split}: expected {{{names[0]}: ..., {names[1]}: ...}}, relative to data.root")
    return values


_FORMATS = {"voc-segmentation": _voc, "folder": _folder, "coco": _coco}
