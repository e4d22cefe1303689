"""The dataset that a config's data section describes.

What every dataset offers (they share no base class, only this):

    len(dataset), dataset[i]    the number of samples; the i-th as a `Sample`, with image and labels of one size.
    image(i)                    its image, uint8 (H, W, channels). Like all that read, it raises UserError on a broken
                                file.
    classes                     tuple of K str: the name of each label.
    channels                    as in the config.
    split                       the config's name of the split: train, val or test.
    names, image_paths          list of str, unique, and list of Path, one a sample.
    labels_source(i)            str for messages: where the labels of a sample come from.
    label_files()               list of Path: the files that hold the labels of all samples.
    settings()                  JSON-able dict of what, beside the files, the samples depend on.

Those for segmentation, whose samples have a label_map:

    label_map(i)                uint8 (H, W) of indices into `classes` and ignore_label.
    ignore_label                as in the config.

Those for detection, whose samples have objects:

    objects(i)                  the `Objects` of an image, without reading the image.
    has_masks                   whether these have masks.
    true_instances(i)           (masks, labels, is_crowd) of the same objects; masks is a list of N compressed RLEs, or
                                None without masks.
    category_ids, image_ids     tuple of K and list of N: the source's ids of classes and images, for results files.
                                Where it has none, classes count from 1, and images have their names for ids.

Reading happens on access; nothing is kept in memory but names and annotations. A dataset is read-only and may be used
from several threads, and pickled.
"""

from detseg.data.readers.coco import CocoDetection
from detseg.data.readers.coco_segmentation import CocoSegmentation
from detseg.data.readers.folder import FolderSegmentation
from detseg.data.readers.instance_folder import InstanceFolder
from detseg.data.readers.voc import VOCDetection
from detseg.data.readers.voc_segmentation import VOCSegmentation
from detseg.errors import UserError

_SPLITS = ("train", "val", "test")


def create_dataset(data, split, task="segmentation"):
    """The dataset of one split.

    data:       the config's data section for the task, one of `detseg.config.data`.
    split:      "train", "val" or "test".
    task:       "segmentation" for label maps, "detection" for objects.
    Raises      UserError if the config has no such split, or it isn't of the format's form, or the data set's files
                are not as expected.
    """
    formats = _FORMATS[task]
    if data.format not in formats:
        lacks = "no semantic labels" if task == "segmentation" else "no boxes"
        raise UserError(f"data.format: {data.format!r} has {lacks}; expected one of {', '.join(formats)}")
    if getattr(data, split, None) is None:
        given = _lists(data)
        raise UserError(f"data.{split}: not set, so there is no split {split!r}. Set are: {', '.join(given) or 'none'}")
    return formats[data.format](data, split)


def check_classes(dataset, expected, owner):
    """UserError unless a dataset has exactly the classes that a model was made for: labels would be silently permuted.

    expected:  tuple of class names, index = label; `owner` says in the message whose they are.
    """
    if tuple(dataset.classes) != tuple(expected):
        raise UserError(
            f"data.{dataset.split}: its classes are {', '.join(dataset.classes)}, but those of {owner} are "
            f"{', '.join(expected)}. Names and order have to be the same; data.classes can select and order them"
        )


def _voc_segmentation(data, split):
    list_name = getattr(data, split)
    if not isinstance(list_name, str):
        raise UserError(f"data.{split}: expected the name of a list in ImageSets/Segmentation")
    return VOCSegmentation(data.root, list_name, split, **_label_settings(data), palette=data.palette)


def _folder_segmentation(data, split):
    return FolderSegmentation(
        data.root, *_folders(data, split, "images", "masks"), split, **_label_settings(data), palette=data.palette
    )


def _coco_segmentation(data, split):
    return CocoSegmentation(data.root, *_folders(data, split, "annotations", "images"), split, **_label_settings(data))


def _voc_detection(data, split):
    return VOCDetection(
        data.root,
        _lists(data),
        split,
        data.classes,
        data.channels,
        voc_boxes=data.voc_boxes,
        on_bad_box=data.on_bad_box,
        masks=data.masks,
    )


def _coco_detection(data, split):
    return CocoDetection(
        data.root,
        *_folders(data, split, "annotations", "images"),
        split,
        data.classes,
        data.channels,
        on_bad_box=data.on_bad_box,
        masks=data.masks,
    )


def _instance_folder(data, split):
    files = getattr(data, split)
    return InstanceFolder(
        data.root, files.images, files.instances, files.masks, split, **_label_settings(data), palette=data.palette
    )


def _label_settings(data):
    return {"classes": data.classes, "channels": data.channels, "ignore_label": data.ignore_label}


def _lists(data):
    """{split: what the config says of it} of the splits that are set."""
    return {name: getattr(data, name) for name in _SPLITS if getattr(data, name, None) is not None}


def _folders(data, split, *names):
    values = [getattr(getattr(data, split), name, None) for name in names]
    if None in values:
        raise UserError(f"data.{split}: expected {{{names[0]}: ..., {names[1]}: ...}}, relative to data.root")
    return values


_FORMATS = {
    "segmentation": {
        "voc-segmentation": _voc_segmentation,
        "folder": _folder_segmentation,
        "coco": _coco_segmentation,
    },
    "detection": {"voc": _voc_detection, "coco": _coco_detection, "folder": _instance_folder},
}
