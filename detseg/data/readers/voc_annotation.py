"""One annotation file of Pascal VOC."""

from pathlib import Path
from typing import NamedTuple

from defusedxml import DefusedXmlException, ElementTree

from detseg.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOCObject(NamedTuple):
    """An <object>.

    name:       as written.
    difficult:  bool.
    corners:    xmin, ymin, xmax, ymax as written, nan for what is missing or no number.
    problem:    what is wrong with the form of its bndbox, or None.
    """

    name: str
    difficult: bool
    corners: tuple
    problem: str | None


class VOCAnnotation(NamedTuple):
    """A file.

    size:     (height, width), or None where the file doesn't say (or says 0).
    objects:  list of VOCObject, in the file's order; messages name them as object[0], object[1] and so on.
    """

    size: tuple | None
    objects: list


def read_voc_annotation(path):
    """The VOCAnnotation in an XML file. An object's box is its own bndbox, not that of a <part> of it.

    Raises  UserError for what is no such file, entities, and objects without name; bad boxes are left to the caller.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise UserError(f"{path}: the root element is <{root.tag}>, expected <annotation>")
    objects = [_read_object(element, f"{path}: object[{k}]") for k, element in enumerate(root.findall("object"))]
    return VOCAnnotation(_read_size(root, path), objects)


def _parse(path):
    try:
        return ElementTree.fromstring(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the annotation cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path}:{error.position[0]}: not valid XML: {error}") from error
    except DefusedXmlException as error:
        raise UserError(
            f"{path}: defines entities ({type(error).__name__}), which can blow up to any size or read other files; "
            "annotations need none. Take them out"
        ) from error
    except (ValueError, LookupError) as error:  # encodings that aren't known or don't fit
        raise UserError(f"{path}: not valid XML: {error}") from error


def _read_size(root, path):
    sides = []
    for field in ("height", "width"):
        text = (root.findtext(f"size/{field}") or "0").strip()
        if not text.isdecimal():
            raise UserError(f"{path}: field size/{field} is {text!r}, expected a whole number of pixels")
        sides.append(int(text))
    return tuple(sides) if all(sides) else None


def _read_object(element, place):
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{place}: field name is missing or empty, expected a class name")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise UserError(f"{place} ({name}): field difficult is {difficult!r}, expected 0 or 1")
    return VOCObject(name, difficult == "1", *_read_corners(element.find("bndbox")))


def _read_corners(bndbox):
    """(corners, problem or None)."""
    if bndbox is None:
        return (float("nan"),) * 4, "field bndbox is missing"
    corners, problem = [], None
    for field in CORNERS:
        text = (bndbox.findtext(field) or "").strip()
        try:
            corners.append(float(text))
        except ValueError:
            corners.append(float("nan"))
            found = f"is {text!r}, expected a number" if text else "is missing or empty"
            problem = problem or f"field bndbox/{field} {found}"
    return tuple(corners), problem
