"""What a config's data section may say, for each task and format."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, Tag, model_validator

from detseg.fields import Byte, Color, Count, NotEmpty, Section, Several, Size, Text, written_as


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


ClassNames = Annotated[Several[Text], NotEmpty, AfterValidator(_distinct)]
Renaming = Annotated[dict[Text, Text], NotEmpty]
Classes = Annotated[
    Annotated[Literal["voc"], Tag("<text>")]
    | Annotated[ClassNames, Tag("<list>")]
    | Annotated[Renaming, Tag("<mapping>")],
    written_as("null, voc, a list of class names or {name in the data: our name}"),
]
Palette = Annotated[dict[Text, Color], NotEmpty, AfterValidator(_distinct_colours)] | None
_PALETTE = "For colour masks, {class name: [red, green, blue]}, `ignore` being void; null: masks hold class indices."


class SidesResize(Section):
    """Resize that keeps the aspect ratio."""

    shorter: Count = Field(description="Length of the shorter side in pixels, unless `longer` forbids it.")
    longer: Count = Field(description="The most that the longer side may have, in pixels.")

    @model_validator(mode="after")
    def _ordered(self):
        if self.shorter > self.longer:
            raise ValueError(f"shorter is {self.shorter}, longer is {self.longer}: expected shorter <= longer")
        return self


DataResize = Annotated[
    Annotated[Size, Tag("<list>")] | Annotated[SidesResize, Tag("<mapping>")],
    written_as("null, [height, width] or {shorter: PIXELS, longer: PIXELS}"),
]


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
    instances: Text = Field(
        description="The folder of PNGs, with the images' stems, in which a pixel is the number of its object, 0: none."
    )
    masks: Text | None = Field(
        default=None,
        description="The folder of masks, with the images' stems, that hold the objects' classes; null: there is only "
        "one class.",
    )


_FORMAT = "Layout of the data set."
_TRAIN = "The split to train on."
_VAL = "The split that chooses the best weights."
_TEST = "The split for the final score."


class _Data(Section):
    format: str = Field(description=_FORMAT)
    root: Text = Field(description="Folder of the data set, relative to the working directory.")
    classes: Classes | None = Field(
        default=None,
        description="null: the data set's own classes; voc: those of PASCAL VOC, for segmentation with the background "
        "first; a list selects and orders classes; {name in the data: our name} renames them.",
    )
    channels: Count = Field(default=3, description="Channels of an image; 3: RGB.")
    resize: DataResize | None = Field(
        default=None,
        description="Size that every image gets, in every split and in predict: [height, width], or "
        "{shorter: PIXELS, longer: PIXELS} with the aspect ratio kept. Results are mapped back to the original size.",
    )

    @model_validator(mode="after")
    def _has_a_split(self):
        if self.train is None and self.val is None and self.test is None:
            raise ValueError("at least one of train, val and test has to be given")
        return self


class _CocoFiles(Section):
    format: Literal["coco"] = Field(description=_FORMAT)
    train: CocoSplit | None = Field(default=None, description=_TRAIN)
    val: CocoSplit | None = Field(default=None, description=_VAL)
    test: CocoSplit | None = Field(default=None, description=_TEST)


class _LabelData(_Data):
    elsewhere: ClassVar = dict.fromkeys(("voc_boxes", "on_bad_box", "masks"), "it is for task: detection")
    ignore_label: Byte = Field(default=255, description="Mask value that is never trained or scored on.")


class VocSegmentationData(_LabelData):
    """A data set in the folders of PASCAL VOC, with segmentation masks."""

    format: Literal["voc-segmentation"] = Field(description=_FORMAT)
    train: Text | None = Field(default=None, description="NAME of ImageSets/Segmentation/NAME.txt to train on.")
    val: Text | None = Field(default=None, description="NAME of the split that chooses the best weights.")
    test: Text | None = Field(default=None, description="NAME of the split for the final score.")
    palette: Palette = Field(default=None, description=_PALETTE)


class CocoData(_CocoFiles, _LabelData):
    """A data set of COCO instances, painted to label maps."""


class FolderData(_LabelData):
    """A data set of image folders beside mask folders."""

    format: Literal["folder"] = Field(description=_FORMAT)
    train: FolderSplit | None = Field(default=None, description=_TRAIN)
    val: FolderSplit | None = Field(default=None, description=_VAL)
    test: FolderSplit | None = Field(default=None, description=_TEST)
    palette: Palette = Field(default=None, description=_PALETTE)


SegmentationData = VocSegmentationData | CocoData | FolderData

_NOT_FOR_BOXES = dict.fromkeys(("ignore_label", "palette"), "it is about label maps, for task: segmentation")


class _BoxData(_Data):
    elsewhere: ClassVar = _NOT_FOR_BOXES
    on_bad_box: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="What becomes of boxes that are empty, negative, no numbers or more than a pixel outside of their "
        "image: refuse ends the run with their list; drop leaves them out and logs the list.",
    )


class VocData(_BoxData):
    """A data set in the folders of PASCAL VOC, with boxes in XML files."""

    format: Literal["voc"] = Field(description=_FORMAT)
    train: Text | None = Field(default=None, description="NAME of ImageSets/Main/NAME.txt to train on.")
    val: Text | None = Field(default=None, description="NAME of the split that chooses the best weights.")
    test: Text | None = Field(default=None, description="NAME of the split for the final score.")
    voc_boxes: Literal["inclusive", "continuous"] = Field(
        default="inclusive",
        description="What the numbers of a bndbox are. inclusive: the devkit's, the first and the last pixel of the "
        "object, counted from 1; continuous: the box's edges, counted from 0, as labelImg, CVAT and others write them.",
    )
    masks: bool = Field(
        default=False,
        description="Read the objects' masks from SegmentationObject too; the lists are those of "
        "ImageSets/Segmentation then.",
    )


class CocoBoxData(_CocoFiles, _BoxData):
    """A data set of COCO instances."""

    elsewhere: ClassVar = {"voc_boxes": "COCO has only one kind of box", **_NOT_FOR_BOXES}
    masks: bool = Field(default=False, description="Read the objects' masks too.")


class InstanceFolderData(_Data):
    """A data set of image folders beside folders of object numbers."""

    elsewhere: ClassVar = dict.fromkeys(("voc_boxes", "on_bad_box", "masks"), "boxes are those of the masks")
    format: Literal["folder"] = Field(description=_FORMAT)
    train: InstanceFolderSplit | None = Field(default=None, description=_TRAIN)
    val: InstanceFolderSplit | None = Field(default=None, description=_VAL)
    test: InstanceFolderSplit | None = Field(default=None, description=_TEST)
    ignore_label: Byte = Field(default=255, description="Value of the class masks where a pixel is no object's.")
    palette: Palette = Field(default=None, description=_PALETTE)


DetectionData = VocData | CocoBoxData | InstanceFolderData
