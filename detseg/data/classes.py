"""Class names: where they come from and how a config selects among them."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detseg.errors import UserError

CLASSES_FILE = "classes.txt"
BACKGROUND = "background"
IGNORE = "ignore"  # the key of a palette that stands for the ignore label
LARGEST_CLASS_COUNT = 255  # label maps are uint8 and one value is the ignore label

# Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", in the order of the devkit's palette.
VOC_CLASSES = (
    BACKGROUND,
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
Selection = str | Sequence[str] | Mapping[str, str] | None  # see `select_classes`
Palette = Mapping[str | int, Sequence[int]] | None  # see `index_palette`


def read_class_names(path, most=LARGEST_CLASS_COUNT):
    """Names of a classes.txt, tuple of str: one a line, the first is index 0. Blank lines at the end are allowed.

    most:  classes that there may be, None: any number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise UserError(f"{path}: the class names cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save the class names as UTF-8") from error
    line_of = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            raise UserError(f"{path}:{number}: blank line; expected one class name a line: line 1 is index 0")
        if name in line_of:
            raise UserError(f"{path}:{number}: class {name!r} is given twice, first in line {line_of[name]}")
        line_of[name] = number
    if not line_of:
        raise UserError(f"{path}: no class names; expected one a line: line 1 is index 0")
    if most is not None and len(line_of) > most:
        raise UserError(f"{path}: {len(line_of)} classes, but label maps hold at most {most}")
    return tuple(line_of)


def index_class_names(root, classes):
    """What masks' indices mean, by a folder's classes.txt or data.classes: (tuple of names, their source's name)."""
    path, built_in = Path(root) / CLASSES_FILE, _built_in(classes)
    if built_in and not path.exists():
        return built_in, f"data.classes: {classes}"
    if not path.exists():
        raise UserError(
            f"{path}: no such file: it names the class indices of the masks, one a line (line 1 is index 0). "
            "Write it, or set data.classes to 'voc' if the masks have Pascal VOC's indices"
        )
    names = read_class_names(path)
    if built_in and names != built_in:
        raise UserError(f"data.classes: 'voc', but {path} names other classes. Set data.classes to null to use it")
    return names, str(path)


def object_class_names(root, classes):
    """As `index_class_names`, less the background; (None, None) where nothing names the classes but annotations."""
    path, built_in = Path(root) / CLASSES_FILE, _built_in(classes)
    if built_in:
        return list(built_in[1:]), f"data.classes: {classes}"
    if path.exists():
        return [name for name in read_class_names(path, most=None) if name.lower() != BACKGROUND], str(path)
    return None, None


def select_classes(source_names, selection, ignore_label, source):
    """Our classes and the table that maps the source's labels to them.

    source_names:   names of the source's indices 0..N-1.
    selection:      None or a built-in's name: the source's classes as they are.
                    A list of names selects and orders. All others become background: the source's own class of that
                    name (any case) keeps the place that the list gives it; otherwise a class `background` is put in
                    front, unless the list names every class.
                    A mapping {source name: our name} renames; classes that it doesn't name keep their names, and
                    classes that end with the same name are one class, at the place of the first of them.
    source:         says in messages where the source's names come from.
    Returns         (tuple of K names, uint8 (256,) table: source label -> our label; ignore_label stays itself).
    """
    names, ours = select_object_classes(source_names, selection, source)
    if None in ours:  # a list that doesn't name every class
        # The source's own background, if it has one, is meant even when the list leaves it out.
        background = next((name for name in (*names, *source_names) if name.lower() == BACKGROUND), BACKGROUND)
        names = names if background in names else (background, *names)
        rest = names.index(background)
        ours = [names.index(name) if name in names else rest for name in source_names]
    table = np.full(256, ignore_label, np.uint8)
    table[: len(ours)] = ours
    if any(our == ignore_label and index != ignore_label for index, our in enumerate(ours)):
        raise UserError(
            f"data.ignore_label: {ignore_label} is also the index of class {names[ignore_label]!r} after "
            f"data.classes. Order the classes otherwise, or use an ignore label outside of 0..{len(names) - 1}"
        )
    table[ignore_label] = ignore_label
    return names, table


def select_object_classes(source_names, selection, source):
    """As `select_classes`, of objects, which have no background: classes that a list doesn't name are left out.

    Returns     (tuple of K names, list: of each of the source's classes our label, or None where it's left out).
    """
    if selection is None or isinstance(selection, str):
        return tuple(source_names), list(range(len(source_names)))
    if not selection:
        raise UserError("data.classes: empty; list at least one class or set it to null")
    for name in selection:
        if name not in source_names:
            raise UserError(f"data.classes: {name!r} is not {not_among(source_names, name, source)}")
    if isinstance(selection, Mapping):
        renamed = [selection.get(name, name) for name in source_names]
        names = tuple(dict.fromkeys(renamed))
        return names, [names.index(name) for name in renamed]
    doubles = [name for name, count in Counter(selection).items() if count > 1]
    if doubles:
        raise UserError(f"data.classes: {doubles[0]!r} is listed twice")
    label_of = {name: label for label, name in enumerate(selection)}
    return tuple(selection), [label_of.get(name) for name in source_names]


def index_palette(palette, source_names, ignore_label, source):
    """A config's palette with the masks' labels for names.

    palette:        {class name or index: (red, green, blue)} or None. The key `ignore`, where no class has that name,
                    stands for ignore_label.
    source_names:   names of the labels 0..N-1; source says in messages where they come from.
    Returns         {label: (red, green, blue)} or None.
    """
    if palette is None:
        return None
    if not palette:
        raise UserError("data.palette: empty; give each class its colour, or null for masks of class indices")
    label_of = {IGNORE: ignore_label, **{name: label for label, name in enumerate(source_names)}}
    label_of |= {label: label for label in (*range(len(source_names)), ignore_label)}
    labels, owners = {}, {}
    for key, colour in palette.items():
        colour = tuple(colour)
        if key not in label_of:
            raise UserError(f"data.palette: {key!r} is neither {IGNORE!r} nor {not_among(source_names, key, source)}")
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
            raise UserError(f"data.palette: colour {list(colour)} of {key!r}, expected three numbers of 0..255")
        if owners.setdefault(colour, key) != key:
            raise UserError(f"data.palette: {owners[colour]!r} and {key!r} have the same colour {list(colour)}")
        if label_of[key] in labels:
            raise UserError(f"data.palette: {key!r} is given twice, by its name and by its index")
        labels[label_of[key]] = colour
    return labels


def _built_in(classes):
    """The names that "voc" stands for; None for other kinds of data.classes."""
    if isinstance(classes, str) and classes != "voc":
        raise UserError(f"data.classes: {classes!r}, expected 'voc', a list of names or {{source name: our name}}")
    return VOC_CLASSES if isinstance(classes, str) else None


def not_among(source_names, name, source):
    """The end of a message "NAME is not ..." that shows what names the source has, and a close one."""
    close = difflib.get_close_matches(str(name), source_names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {close[0]!r}?" if close else "."
    shown = ", ".join(source_names[:30]) + (", ..." if len(source_names) > 30 else "")
    return f"a class of {source}{suggestion} It has: {shown}"
