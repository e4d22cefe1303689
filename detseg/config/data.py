"""What a config's data section may say, for each task and format."""

from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Tag, model_validator

from detseg.fields import (
    Byte,
    Color,
    Count,
    NotEmpty,
    Section,
    Several,
    Size,
    Text,
    Whole,
    checked,
    of_length,
    written_as,
)

Split = TypeVar("Split")


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the class name {twice[0]!r} is there twice")
    return names


def _distinct_colours(palette: dict[str, tuple[int, int, int]]) -> dict[str, tuple[int, int, int]]:
    owners: dict = {}
    for name, colour in palette.items():
        if owners.setdefault(colour, name) != name:
            raise ValueError(f"{owners[colour]!r} and {name!r} have the same colour {list(colour)}")
    return palette


Classes = Annotated[
    Annotated[Literal["voc"], Tag("<text>")]
    | Annotated[Several[Text], NotEmpty, AfterValidator(_distinct), Tag("<list>")]
    | Annotated[dict[Text, Text], NotEmpty, Tag("<mapping>")],
    written_as("null, voc, a list of class names or {name in the data: our name}"),
]
_PALETTE = "For colour masks, {class name: [red, green, blue]}, `ignore` being void; null: masks hold class indices."
Palette = Annotated[
    Annotated[dict[Text, Color], NotEmpty, AfterValidator(_distinct_colours)] | None, Field(description=_PALETTE)
]


class SidesResize(Section):
    """Resize that keeps the aspect ratio."""

    shorter: Count = Field(description="Length of the shorter side in pixels, unless `longer` forbids it.")
    longer: Count = Field(description="The most that the longer side may have, in pixels.")

    @model_validator(mode="after")
    def _ordered(self):
        self.refuse_unordered("shorter", "longer")
        return self


DataResize = Annotated[
    Annotated[Size, Tag("<list>")] | Annotated[SidesResize, Tag("<mapping>")],
    written_as("null, [height, width] or {shorter: PIXELS, longer: PIXELS}"),
]
Ordered = checked(lambda values: values[0] < values[1], "[low, high] with low < high")
ValueRange = Annotated[tuple[float, float], Field(strict=False), of_length("low", "high"), Ordered]
NotSet = checked(lambda value: value is None, "null: the data set is given from Python", BeforeValidator)
Null = Annotated[None, NotSet]


class CocoSplit(Section):
    """One split of a COCO data set."""

    annotations: Text = Field(description="The JSON file of instances, relative to data.root.")
    images: Text = Field(description="The folder of images, relative to data.root.")


class FolderSplit(Section):
    """One split of a data set of image and mask folders."""

    elsewhere: ClassVar = {"instances": "it is for task: detection"}
    images: Text = Field(description="The folder of images, relative to data.root.")
    masks: Text = Field(description="The folder of masks with the images' stems, relative to data.root.")


class InstanceFolderSplit(Section):
    """One split of a data set of image folders beside folders of object numbers."""

    images: Text = Field(description="The folder of images, relative to data.root.")
    instances: Text = Field(description="Folder of PNGs with the images' stems: a pixel is its object's number, or 0.")
    masks: Text | None = Field(
        None, description="Folder of masks with the images' stems: the objects' classes; null: there is only one."
    )


_FORMAT = "Layout of the data set."


class _Data(Section):
    format: str = Field(description=_FORMAT)
    root: Text = Field(description="Folder of the data set, relative to the working directory.")
    classes: Classes | None = Field(
        None,
        description="null: the data set's own classes; voc: those of PASCAL VOC, for segmentation with the background "
        "first; a list selects and orders classes; {name in the data: our name} renames them.",
    )
    channels: Count = Field(
        3,
        description="Channels of an image. 1 (grey), 3 (RGB) and 4 (RGB and alpha or near infrared) are made of one "
        "another; any other number must be that of the files, which are multi-band TIFF or .npy then.",
    )
    value_range: ValueRange | None = Field(
        None,
        description="[low, high]: the files' values that become 0 and 255 of an image, such as [0, 4095] for 12 "
        "bits; a value beyond them is an error. null: 0 to 255 or 65535 by the data type, 0 to 1 for floats.",
    )
    resize: DataResize | None = Field(
        None,
        description="Size that every image gets, in every split and in predict: [height, width], or "
        "{shorter: PIXELS, longer: PIXELS} with the aspect ratio kept. Results are mapped back to the original size.",
    )

    @model_validator(mode="after")
    def _has_a_split(self):
        if self.format != "custom" and self.train is None and self.val is None and self.test is None:
            raise ValueError("at least one of train, val and test has to be given")
        return self


class _Splits(Section, Generic[Split]):
    train: Split | None = Field(None, description="The split to train on.")
    val: Split | None = Field(None, description="The split that chooses the best weights.")
    test: Split | None = Field(None, description="The split for the final score.")


class _NoFiles(Section):
    format: Literal["custom"] = Field(description=_FORMAT)
    root: Null = Field(None, description="Always null.")
    classes: Null = Field(None, description="Always null: the data set has its own.")
    train: Null = Field(None, description="Always null.")
    val: Null = Field(None, description="Always null.")
    test: Null = Field(None, description="Always null.")


class _LabelData(_Data):
    elsewhere: ClassVar = dict.fromkeys(("voc_boxes", "on_bad_box", "masks", "proposals"), "it is for task: detection")
    ignore_label: Byte = Field(255, description="Mask value that is never trained or scored on.")


class VocSegmentationData(_Splits[Text], _LabelData):
    """A data set in the folders of PASCAL VOC, with segmentation masks."""

    format: Literal["voc-segmentation"] = Field(description=_FORMAT)
    train: Text | None = Field(None, description="NAME of ImageSets/Segmentation/NAME.txt to train on.")
    palette: Palette = None


class CocoData(_Splits[CocoSplit], _LabelData):
    """A data set of COCO instances, painted to label maps."""

    format: Literal["coco"] = Field(description=_FORMAT)


class FolderData(_Splits[FolderSplit], _LabelData):
    """A data set of image folders beside mask folders."""

    format: Literal["folder"] = Field(description=_FORMAT)
    palette: Palette = None


class CustomLabelData(_NoFiles, _LabelData):
    """A data set of label maps that is given from Python, where no format of files is read."""


SegmentationData = VocSegmentationData | CocoData | FolderData | CustomLabelData


class ProposalFiles(Section):
    """Where proposals are, and how they are made."""

    folder: Text = Field(description="Folder of the files, relative to the working directory.")
    mode: Literal["fast", "quality", "file"] = Field(
        "fast",
        description="fast, quality: Selective Search with few or many groupings, in SPLIT_MODE.npz, which `detseg "
        "proposals` makes; file: anybody's, SPLIT.json (COCO results) or SPLIT.mat (of the VOC authors).",
    )
    seed: Whole = Field(0, description="Of Selective Search's order.")


_PROPOSALS = "Boxes that may hold objects, for the models that are given them (rcnn, fast_rcnn); null: none."
Proposals = Annotated[ProposalFiles | None, Field(description=_PROPOSALS)]

_NOT_FOR_BOXES = dict.fromkeys(("ignore_label", "palette"), "it is about label maps, for task: segmentation")


_BY_MODEL = "a model that learns from them, mask_rcnn, makes it true where it isn't set."


class _BoxData(_Data):
    elsewhere: ClassVar = _NOT_FOR_BOXES
    proposals: Proposals = None
    on_bad_box: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What becomes of boxes that are empty, negative, no numbers or more than a pixel outside of their "
        "image: refuse ends the run with their list; drop leaves them out and logs the list.",
    )


class VocData(_Splits[Text], _BoxData):
    """A data set in the folders of PASCAL VOC, with boxes in XML files."""

    format: Literal["voc"] = Field(description=_FORMAT)
    train: Text | None = Field(None, description="NAME of ImageSets/Main/NAME.txt to train on.")
    voc_boxes: Literal["inclusive", "continuous"] = Field(
        "inclusive",
        description="What the numbers of a bndbox are. inclusive: the devkit's, the first and the last pixel of the "
        "object, counted from 1; continuous: the box's edges, counted from 0, as labelImg, CVAT and others write them.",
    )
    masks: bool = Field(
        False,
        description="Read the objects' masks from SegmentationObject too, and the lists of ImageSets/Segmentation; "
        f"{_BY_MODEL}",
    )


class CocoBoxData(_Splits[CocoSplit], _BoxData):
    """A data set of COCO instances."""

    elsewhere: ClassVar = {"voc_boxes": "COCO has only one kind of box", **_NOT_FOR_BOXES}
    format: Literal["coco"] = Field(description=_FORMAT)
    masks: bool = Field(False, description=f"Read the objects' masks too; {_BY_MODEL}")


class InstanceFolderData(_Splits[InstanceFolderSplit], _Data):
    """A data set of image folders beside folders of object numbers."""

    elsewhere: ClassVar = dict.fromkeys(("voc_boxes", "on_bad_box", "masks"), "boxes are those of the masks")
    format: Literal["folder"] = Field(description=_FORMAT)
    ignore_label: Byte = Field(255, description="Value of the class masks where a pixel is no object's.")
    palette: Palette = None
    proposals: Proposals = None


class CustomData(_NoFiles, _Data):
    """A data set of objects that is given from Python, where no format of files is read."""

    elsewhere: ClassVar = _NOT_FOR_BOXES
    proposals: Proposals = None


DetectionData = VocData | CocoBoxData | InstanceFolderData | CustomData
