"""Class names and the selection among them."""

import numpy as np
import pytest

from detseg.data.classes import VOC_CLASSES, index_class_names, index_palette, read_class_names, select_classes
from detseg.errors import UserError

ROAD_SCENE = ("Sky", "Road", "Car", "Van")


def select(source, selection, ignore_label=255):
    names, table = select_classes(source, selection, ignore_label, "classes.txt")
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    assert table[ignore_label] == ignore_label
    return names, table[: len(source)].tolist()


def test_voc_has_its_21_names_background_first():
    assert len(VOC_CLASSES) == 21
    assert VOC_CLASSES[0] == "background"
    assert VOC_CLASSES[15] == "person"
    assert VOC_CLASSES[20] == "tvmonitor"


def test_names_are_stripped_and_byte_order_mark_and_last_blank_lines_do_not_matter(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffroad \n traffic light\r\nÄhre\n\n\n".encode())
    assert read_class_names(tmp_path / "classes.txt") == ("road", "traffic light", "Ähre")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"road\n\ncar\n", "classes.txt:2: blank line"),
        (b"road\ncar\n road\n", "classes.txt:3: class 'road' is given twice, first in line 1"),
        (b"\n \n", "classes.txt: no class names"),
        (b"caf\xe9\n", "classes.txt: not UTF-8 text (byte 3)"),
        ("\n".join(map(str, range(256))).encode(), "256 classes, but label maps hold at most 255"),
    ],
)
def test_mistakes_in_classes_txt_are_named_with_their_line(tmp_path, content, part):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"classes\.txt") as error:
        read_class_names(tmp_path / "classes.txt")
    assert part in str(error.value)


def test_without_a_selection_every_label_stays():
    assert select(ROAD_SCENE, None) == (ROAD_SCENE, [0, 1, 2, 3])


def test_a_list_selects_and_orders_and_the_rest_becomes_a_background_in_front():
    assert select(ROAD_SCENE, ["Car", "Road"]) == (("background", "Car", "Road"), [0, 2, 1, 0])


def test_a_list_of_all_classes_orders_without_a_background():
    assert select(ROAD_SCENE, ["Van", "Car", "Road", "Sky"]) == (("Van", "Car", "Road", "Sky"), [3, 2, 1, 0])


def test_the_sources_own_background_is_used_and_keeps_the_place_that_the_list_gives_it():
    assert select(("Background", "cat", "dog"), ["dog"]) == (("Background", "dog"), [0, 0, 1])
    assert select(("background", "cat", "dog"), ["dog", "background"]) == (("dog", "background"), [1, 1, 0])


def test_a_mapping_renames_and_merges():
    assert select(ROAD_SCENE, {"Van": "Car", "Sky": "heaven"}) == (("heaven", "Road", "Car"), [0, 1, 2, 2])


def test_unknown_and_double_names_are_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"'Rode' is not a class of classes\.txt; did you mean 'Road'"):
        select(ROAD_SCENE, ["Rode"])
    with pytest.raises(UserError, match="'bus' is not a class"):
        select(ROAD_SCENE, {"bus": "Car"})
    with pytest.raises(UserError, match="'Car' is listed twice"):
        select(ROAD_SCENE, ["Car", "Car"])
    with pytest.raises(UserError, match="empty"):
        select(ROAD_SCENE, [])


def test_an_ignore_label_within_the_classes_is_allowed_only_for_the_class_that_it_is():
    assert select(("void", "road", "car"), None, ignore_label=0) == (("void", "road", "car"), [0, 1, 2])
    with pytest.raises(UserError, match=r"data\.ignore_label: 0 is also the index of class 'car'"):
        select(("void", "road", "car"), ["car", "road", "void"], ignore_label=0)


def test_index_names_come_from_classes_txt_else_from_the_built_in(tmp_path):
    assert index_class_names(tmp_path, "voc")[0] == VOC_CLASSES
    with pytest.raises(UserError, match=r"classes.txt: no such file.*set data.classes to 'voc'"):
        index_class_names(tmp_path, None)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert index_class_names(tmp_path, ["b"]) == (("a", "b"), str(tmp_path / "classes.txt"))
    with pytest.raises(UserError, match=r"data\.classes: 'voc', but .*classes\.txt names other classes"):
        index_class_names(tmp_path, "voc")
    with pytest.raises(UserError, match=r"data\.classes: 'coco', expected 'voc'"):
        index_class_names(tmp_path, "coco")


def test_a_palettes_names_become_labels():
    palette = {"Road": [1, 2, 3], "ignore": (9, 9, 9), 0: (0, 0, 0)}
    assert index_palette(palette, ROAD_SCENE, 255, "classes.txt") == {1: (1, 2, 3), 255: (9, 9, 9), 0: (0, 0, 0)}
    assert index_palette({"ignore": (9, 9, 9)}, ("ignore", "road"), 255, "classes.txt") == {0: (9, 9, 9)}
    assert index_palette(None, ROAD_SCENE, 255, "classes.txt") is None


@pytest.mark.parametrize(
    ("palette", "part"),
    [
        ({}, "empty"),
        ({"Rode": (0, 0, 0)}, "'Rode' is neither 'ignore' nor a class of classes.txt; did you mean 'Road'?"),
        ({4: (0, 0, 0)}, "4 is neither 'ignore' nor a class of classes.txt"),
        ({"Car": (0, 0)}, "colour [0, 0] of 'Car', expected three numbers of 0..255"),
        ({"Car": (0, 0, 256)}, "colour [0, 0, 256] of 'Car'"),
        ({"Car": (1, 2, 3), "ignore": (1, 2, 3)}, "'Car' and 'ignore' have the same colour [1, 2, 3]"),
        ({"Car": (1, 2, 3), 2: (3, 2, 1)}, "2 is given twice"),
    ],
)
def test_palettes_that_make_no_sense_are_refused(palette, part):
    with pytest.raises(UserError, match=r"data\.palette") as error:
        index_palette(palette, ROAD_SCENE, 255, "classes.txt")
    assert part in str(error.value)
