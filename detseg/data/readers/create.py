"""The data set that a config's data section describes."""

from detseg.data.dataset import Dataset
from detseg.data.readers.coco import CocoDetection, CocoSegmentation
from detseg.data.readers.folder import FolderSegmentation, InstanceFolder
from detseg.data.readers.voc import VOCDetection, VOCSegmentation
from detseg.errors import UserError
from detseg.fields import Section

# What a reader is given are the keys of its data section, by their names, but for these.
_NOT_OF_READERS = ("format", "root", "train", "val", "test", "resize", "proposals")
_READERS = {
    "segmentation": {"voc-segmentation": VOCSegmentation, "folder": FolderSegmentation, "coco": CocoSegmentation},
    "detection": {"voc": VOCDetection, "coco": CocoDetection, "folder": InstanceFolder},
}


def create_dataset(data: Section, split: str, task: str = "segmentation") -> Dataset:
    """The Dataset of one split.

    data:       the config's data section for the task, one of `detseg.config.data`.
    split:      "train", "val" or "test".
    task:       "segmentation" for label maps, "detection" for objects.
    Raises      UserError if the config has no such split, or the data set's files are not as expected.
    """
    if data.format == "custom":
        way = "detseg.train(config, run, train_set=..., val_set=...)"
        raise UserError(f"data.format: custom: the data set is given from Python: {way}")
    readers = _READERS[task]
    if data.format not in readers:
        lacks = "no semantic labels" if task == "segmentation" else "no boxes"
        raise UserError(f"data.format: {data.format!r} has {lacks}; expected one of {', '.join(readers)}")
    splits = {name: files for name, files in data if name in ("train", "val", "test") and files is not None}
    if split not in splits:
        given = ", ".join(splits) or "none"
        raise UserError(f"data.{split}: not set, so there is no split {split!r}. Set are: {given}")
    settings = {key: value for key, value in data if key not in _NOT_OF_READERS}
    if data.format == "voc":
        files = {"lists": splits}
    elif data.format == "voc-segmentation":
        files = {"list_name": splits[split]}
    else:
        files = dict(splits[split])
    return readers[data.format](data.root, **files, split=split, **settings)
