"""Pascal VOC's segmentation layout."""

from collections import Counter
from pathlib import Path

from detseg.data.images import IMAGE_SUFFIXES
from detseg.data.readers.folder import MaskFiles, check_folder, list_files, some_of
from detseg.errors import UserError

_LISTS = Path("ImageSets") / "Segmentation"
IMAGES = "JPEGImages"
_MASKS = "SegmentationClass"


class VOCSegmentation(MaskFiles):
    """ROOT/ImageSets/Segmentation/LIST.txt names the images, ROOT/JPEGImages and ROOT/SegmentationClass hold them.

    root:           the data set's folder. Its classes.txt names the masks' indices, or data.classes is "voc".
    list_name:      name of the list without .txt, such as "train".
    split:          the split's name, the list's unless given.
    Images are NAME.jpg, or .jpeg, .png, .bmp, .tif, .webp where there is no .jpg; masks are NAME.png.
    Raises          UserError for a missing folder or list, an empty one, names listed twice or without their files.
    """

    def __init__(self, root, list_name, split=None, **data):
        root, split = Path(root), split or list_name
        check_folder(root, "data.root")
        path = root / _LISTS / f"{list_name}.txt"
        names = read_list(path, f"data.{split}")
        images = find_files(root / IMAGES, {path: names})
        masks = find_files(root / _MASKS, {path: names}, (".png",))
        super().__init__(split, names, [images[name] for name in names], [masks[name] for name in names], root, **data)


def read_list(path, field):
    """The names in a list of images, one a line; `field` of the config leads to it."""
    if not path.is_file():
        lists = sorted(other.stem for other in path.parent.glob("*.txt"))
        there = f"there are: {', '.join(lists)}" if lists else "there are no lists in that folder"
        raise UserError(f"{path}: no such list of images ({field}); expected one name a line; {there}")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected one image name a line") from error
    names = [name for name in names if name]
    if not names:
        raise UserError(f"{path}: the split is empty ({field}); expected one image name a line")
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise UserError(f"{path}: {some_of(doubles, 'name', 'names')} listed more than once")
    return names


def find_files(folder, lists, suffixes=IMAGE_SUFFIXES):
    """{name: Path} of the names in `lists`, {Path of a list: its names}; NAME with slashes lies in subfolders.

    Raises  UserError that names the lists whose names have no file.
    """
    listings, found = {}, {}
    for name in dict.fromkeys(name for names in lists.values() for name in names):
        parent = (folder / name).parent
        if parent not in listings:
            listings[parent] = list_files(parent, "data.root", suffixes)
        # The stem by hand: a name may hold dots.
        found[name] = next(iter(listings[parent].get(name.rsplit("/", 1)[-1], [])), None)
    missing = {path: [name for name in names if found[name] is None] for path, names in lists.items()}
    shown = [f"{some_of(names, 'name', 'names')} in {path}" for path, names in missing.items() if names]
    if shown:
        expected = "NAME.jpg (or .jpeg, .png, .bmp, .tif, .webp)" if len(suffixes) > 1 else f"NAME{suffixes[0]}"
        raise UserError(
            f"{folder}: no file for {' and '.join(shown)}; expected {expected}. Add the files or take the names out of "
            "the list"
        )
    return found
