"""Pascal VOC's detection layout."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.data.classes import VOC_CLASSES
from detseg.data.masks import boxes_of_masks
from detseg.data.readers.coco import CocoDetection
from detseg.data.readers.voc import VOCDetection, read_voc_annotation
from detseg.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
HEIGHT, WIDTH = 40, 60


def shared(name):
    path = SHARED / "datasets" / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


def bndbox(*corners):
    fields = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<bndbox>{''.join(f'<{field}>{value}</{field}>' for field, value in fields)}</bndbox>"


def item(name, *corners, more=""):
    return f"<object><name>{name}</name>{more}{bndbox(*corners) if corners else ''}</object>"


def xml(*objects, size=(HEIGHT, WIDTH)):
    height, width = size
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>x.jpg</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path):
    """Images a, b and c; a and b in train, c in val; b without objects."""
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"JPEGImages/{name}.jpg")
    write(
        tmp_path, a=xml(item("dog", 11, 6, 30, 20), item("cat", 1, 1, 60, 40)), b=xml(), c=xml(item("Cow", 5, 5, 9, 9))
    )
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    return tmp_path


def write(root, **annotations):
    for name, text in annotations.items():
        (root / f"Annotations/{name}.xml").write_text(text)


def opened(root, split="train", **data):
    return VOCDetection(root, {"train": "train", "val": "val"}, split, **data)


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


# ---- what is read -------------------------------------------------------------------------------------------------


def test_inclusive_boxes_are_first_and_last_pixel_counted_from_one(root):
    objects = opened(root).objects(0)
    assert objects.boxes.tolist() == [[10, 5, 30, 20], [0, 0, 60, 40]]
    assert objects.boxes.dtype == np.float32
    assert objects.areas.tolist() == [20 * 15, 60 * 40]
    assert objects.masks is None


def test_continuous_boxes_are_taken_as_written(root):
    write(root, a=xml(item("dog", 0, 0, 60, 40), item("dog", 10.5, 6.25, 30.75, 20)))
    boxes = opened(root, voc_boxes="continuous").objects(0).boxes
    assert boxes.tolist() == [[0, 0, 60, 40], [10.5, 6.25, 30.75, 20]]


def test_a_sample_has_image_and_objects_and_no_label_map(root):
    sample = opened(root)[0]
    assert (sample.name, sample.path) == ("a", root / "JPEGImages/a.jpg")
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    assert sample.label_map is None
    assert sample.objects.labels.tolist() == [2, 1]


def test_an_image_without_objects_has_arrays_of_none(root):
    objects = opened(root)[1].objects
    assert len(objects) == 0
    assert objects.boxes.shape == (0, 4)
    assert objects.labels.dtype == np.int64


def test_classes_are_the_sorted_names_in_all_splits(root):
    assert opened(root).classes == opened(root, "val").classes == ("Cow", "cat", "dog")
    assert opened(root, "val").objects(0).labels.tolist() == [0]
    assert opened(root).category_ids == (1, 2, 3)
    assert opened(root).image_ids == ["a", "b"]


def test_classes_txt_names_and_orders_the_classes_without_its_background(root):
    (root / "classes.txt").write_text("background\ndog\nhorse\ncat\n")
    dataset = opened(root)
    assert dataset.classes == ("dog", "horse", "cat")
    assert dataset.objects(0).labels.tolist() == [0, 2]


def test_classes_voc_are_the_twenty_objects(root):
    dataset = opened(root, classes="voc")
    assert dataset.classes == VOC_CLASSES[1:]
    assert dataset.objects(0).labels.tolist() == [11, 7]
    refused(
        lambda: opened(root, "val", classes="voc"), "object[0]: field name 'Cow': not a class", "did you mean 'cow'?"
    )


def test_a_list_selects_and_orders_and_a_mapping_renames_and_merges(root):
    dataset = opened(root, classes=["dog", "Cow"])
    assert dataset.classes == ("dog", "Cow")
    assert dataset.objects(0).labels.tolist() == [0]
    merged = opened(root, classes={"dog": "pet", "cat": "pet"})
    assert merged.classes == ("Cow", "pet")
    assert merged.objects(0).labels.tolist() == [1, 1]
    refused(lambda: opened(root, classes=["dgo"]), "data.classes: 'dgo' is not a class of", "did you mean 'dog'?")


def test_names_are_taken_as_written_but_for_space_around_them(root):
    write(root, a=xml(item("\n  Traffic light ", 5, 5, 9, 9), item("traffic light", 5, 5, 9, 9)), c=xml())
    assert opened(root).classes == ("Traffic light", "traffic light")


def test_difficult_objects_are_kept_and_marked(root):
    more = "<difficult>1</difficult>"
    write(root, a=xml(item("dog", 5, 5, 9, 9, more=more), item("dog", 5, 5, 9, 9, more="<difficult>0</difficult>")))
    assert opened(root).objects(0).difficult.tolist() == [True, False]


def test_the_boxes_of_parts_are_left_alone(root):
    part = f"<part><name>head</name>{bndbox(1, 1, 2, 2)}</part>"
    write(root, a=xml(item("person", 5, 5, 9, 9, more=part)))
    dataset = opened(root)
    assert dataset.classes == ("Cow", "person")
    assert dataset.objects(0).boxes.tolist() == [[4, 4, 9, 9]]
    write(root, a=xml(item("person", more=part)))
    refused(lambda: opened(root), "object[0] (person): field bndbox: missing")


def test_the_order_of_fields_and_the_spelling_of_numbers_do_not_matter(root):
    box = "<bndbox><ymax> 20 </ymax><xmin>11.0</xmin><xmax>3e1</xmax><ymin>6</ymin></bndbox>"
    write(root, a=xml(f"<object>{box}<name>dog</name></object>"))
    assert opened(root).objects(0).boxes.tolist() == [[10, 5, 30, 20]]


@pytest.mark.parametrize("text", ["<annotation>{}</annotation>", "<annotation><size/>{}</annotation>"])
def test_the_size_is_the_images_where_the_file_does_not_say(root, text):
    write(root, a=text.format(item("dog", 5, 5, 62, 9)))
    refused(lambda: opened(root), "object[0] (dog)", "2 px outside of its image of 60x40")
    write(root, b=xml(size=(0, 0)))
    write(root, a=text.format(item("dog", 5, 5, 9, 9)))
    assert len(opened(root)[1].objects) == 0


def test_masks_come_from_the_numbers_in_segmentation_object(root):
    (root / "SegmentationObject").mkdir()
    (root / "ImageSets/Segmentation").mkdir()
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[5:20, 10:30] = 1
    ids[8, 12] = 255
    ids[30:35, 40:50] = 3
    Image.fromarray(ids).save(root / "SegmentationObject/a.png")
    write(root, a=xml(item("dog", 11, 6, 30, 20), item("cat", 5, 5, 5, 9), item("dog", 41, 31, 50, 35)))
    dataset = opened(root, masks=True, on_bad_box="drop")  # the second object is empty
    assert dataset.names == ["a"]
    objects = dataset[0].objects
    np.testing.assert_array_equal(objects.masks, np.stack([ids == 1, ids == 3]))
    assert objects.masks.dtype == np.uint8
    np.testing.assert_array_equal(boxes_of_masks(objects.masks), objects.boxes)
    rles, labels, crowds = dataset.true_instances(0)
    assert (len(rles), labels.tolist(), crowds.tolist()) == (2, [1, 1], [False, False])
    ids[0, 7] = 4
    Image.fromarray(ids).save(root / "SegmentationObject/a.png")
    refused(lambda: dataset.objects(0), "a.png: object number 4 at row 0, column 7", "a.xml has 3 objects")
    Image.fromarray(ids.T.copy()).save(root / "SegmentationObject/a.png")
    refused(lambda: dataset.objects(0), "a.png: 60x40", "a.jpg is 40x60")


def test_a_dataset_can_be_pickled_and_offers_what_messages_and_scans_need(root):
    dataset = pickle.loads(pickle.dumps(opened(root)))
    assert len(dataset) == 2
    assert dataset.labels_source(0) == str(root / "Annotations/a.xml")
    assert dataset.label_paths == [root / "Annotations/a.xml", root / "Annotations/b.xml"]
    assert dataset.fingerprint() == opened(root).fingerprint() != opened(root, channels=1).fingerprint()
    assert (dataset.split, dataset.channels, dataset.has_masks) == ("train", 3, False)


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corners", "part"),
    [
        ((9, 5, 9, 20), "zero width"),
        ((9, 5, 20, 5), "zero height"),
        ((9, 5, 9, 5), "bndbox xmin 9 ymin 5 xmax 9 ymax 5: zero width and height"),
        ((20, 5, 9, 20), "negative width"),
        ((20, 25, 9, 20), "negative width and height"),
        (("nan", 5, 9, 20), "not all finite numbers"),
        ((1, 5, "inf", 20), "not all finite numbers"),
        (("ten", 5, 9, 20), "field bndbox/xmin 'ten': expected a number"),
        ((1, 5, "", 20), "field bndbox/xmax '': missing or empty"),
        ((100, 50, 120, 60), "60 px outside of its image of 60x40 (width x height)"),
        ((10, 10, 63, 20), "3 px outside of its image"),
        ((-3, 10, 20, 20), "px outside of its image"),
        ((), "field bndbox: missing"),
    ],
)
def test_bad_boxes_are_refused_or_dropped_by_file_object_and_field(root, corners, part, caplog):
    write(root, a=xml(item("dog", 11, 6, 30, 20), item("cat", *corners)))
    for voc_boxes in ("inclusive", "continuous"):
        refused(
            lambda voc_boxes=voc_boxes: opened(root, voc_boxes=voc_boxes),
            "split 'train': 1 bad box of 2",
            "data.on_bad_box: drop",
            "a.xml: object[1] (cat)",
        )
    refused(lambda: opened(root), part)
    with caplog.at_level(logging.WARNING, logger="detseg"):
        dataset = opened(root, on_bad_box="drop")
    assert dataset.objects(0).boxes.tolist() == [[10, 5, 30, 20]]
    (record,) = caplog.records
    assert "split 'train': 1 bad box of 2 dropped" in record.getMessage()
    assert part in record.getMessage()


def test_boxes_up_to_a_pixel_outside_are_clipped_and_counted(root, caplog):
    write(root, a=xml(item("dog", 11, 6, 61, 40.75), item("cat", 5, 5, 9, 9)))
    with caplog.at_level(logging.WARNING, logger="detseg"):
        boxes = opened(root).objects(0).boxes
    assert boxes.tolist() == [[10, 5, 60, 40], [4, 4, 9, 9]]
    assert "1 box of 2, which reached up to a pixel out of the image, clipped" in caplog.text
    assert "a.xml: object[0] (dog)" in caplog.text
    assert "by 1 px" in caplog.text


def test_a_box_that_clipping_would_empty_is_bad(root):
    write(root, a=xml(item("dog", 61, 6, 61.5, 20)))
    refused(lambda: opened(root), "object[0] (dog)", "outside of its image")


@pytest.mark.parametrize("corners", [(59.9999999, 5, 60.5, 20), (10.0000001, 5, 10.0000002, 20)])
def test_a_box_that_single_precision_would_empty_is_bad(root, corners):
    write(root, a=xml(item("dog", 11, 6, 30, 20), item("cat", *corners)))
    refused(
        lambda: opened(root, voc_boxes="continuous"),
        "a.xml: object[1] (cat)",
        "nothing of it in its image of 60x40 (width x height), to the precision of float32",
    )
    dropped = opened(root, voc_boxes="continuous", on_bad_box="drop")
    assert dropped.objects(0).boxes.tolist() == [[11, 6, 30, 20]]


@pytest.mark.parametrize("corners", [(0, 5, 9, 20), (5, 0, 9, 20), (0.5, 5, 9, 20)])
@pytest.mark.parametrize("on_bad_box", ["refuse", "drop"])
def test_coordinates_from_zero_are_no_inclusive_boxes(root, corners, on_bad_box):
    write(root, a=xml(item("dog", 11, 6, 30, 20), item("cat", *corners)))
    refused(
        lambda: opened(root, on_bad_box=on_bad_box),
        "a.xml: object[1] (cat)",
        "xmin or ymin is below 1 (1 of 2",
        "voc_boxes: continuous",
    )
    assert opened(root, voc_boxes="continuous").objects(0).boxes.tolist()[1] == list(corners)


def test_a_refusal_lists_twenty_problems_and_counts_the_rest_and_the_log_lists_all(root, caplog):
    write(root, a=xml(*(item("dog", 5, 5, 5, 9) for _ in range(23))))
    with caplog.at_level(logging.WARNING, logger="detseg"):
        opened(root, on_bad_box="drop")
    assert "23 bad boxes of 23 dropped" in caplog.text
    assert [f"object[{k}] (dog)" in caplog.text for k in range(23)] == [True] * 23
    assert "more" not in caplog.text
    with pytest.raises(UserError, match="23 bad boxes of 23") as error:
        opened(root)
    assert str(error.value).count("zero width") == 20
    assert str(error.value).endswith("... and 3 more")


def test_objects_of_classes_that_are_left_out_are_not_looked_at(root):
    write(root, a=xml(item("dog", 11, 6, 30, 20), item("cat", 9, 9, 9, 9)))
    assert len(opened(root, classes=["dog"]).objects(0)) == 1


def test_unknown_classes_are_named_with_the_nearest(root):
    (root / "classes.txt").write_text("dog\nbird\n")
    refused(lambda: opened(root), "a.xml: object[1]: field name 'cat': not a class", "classes.txt", "It has: dog, bird")


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation><name>&y;</name></annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<annotation>", "a.xml:1: not valid XML: no element found"),
        ("", "a.xml:1: not valid XML"),
        ("<annotations/>", "the root element is <annotations>, expected <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml: not valid XML: unknown encoding: klingon"),
        (BOMB, "a.xml: defines entities (EntitiesForbidden)"),
        (OUTSIDE, "a.xml: defines entities (EntitiesForbidden)"),
        (xml("<object/>"), "a.xml: object[0]: field name is missing or empty"),
        (xml(item("dog", 1, 1, 2, 2, more="<difficult>Unspecified</difficult>")), "field difficult is 'Unspecified'"),
        (xml().replace("<height>40", "<height>forty"), "field size/height is 'forty'"),
    ],
)
def test_files_that_are_no_annotations_are_refused_together(root, text, part):
    write(root, a=text, b="<annotation")
    refused(lambda: opened(root), "Annotations: 2 problems", part, "b.xml:1: not valid XML")


def test_an_entity_bomb_in_utf_16_is_refused_too(tmp_path):
    (tmp_path / "a.xml").write_bytes(BOMB.encode("utf-16"))
    refused(lambda: read_voc_annotation(tmp_path / "a.xml"), "defines entities")


def test_names_without_image_or_annotation_and_absent_lists_are_refused(root):
    (root / "JPEGImages/b.jpg").unlink()
    lists = root / "ImageSets/Main"
    refused(lambda: opened(root), f"JPEGImages: no file for 1 name (b) in {lists / 'train.txt'}")
    (root / "Annotations/a.xml").unlink()
    refused(
        lambda: opened(root, "val"),  # whose classes come from the annotations of both
        f"Annotations: no file for 1 name (a) in {lists / 'train.txt'}; expected NAME.xml",
    )
    (root / "Annotations/c.xml").unlink()
    refused(lambda: opened(root, "val"), f"1 name (a) in {lists / 'train.txt'} and 1 name (c) in {lists / 'val.txt'};")
    refused(lambda: opened(root, "val", classes="voc"), f"no file for 1 name (c) in {lists / 'val.txt'};")
    refused(lambda: VOCDetection(root, {"train": "trainval"}), "trainval.txt: no such list", "train, val")
    refused(lambda: opened(root, masks=True), "ImageSets/Segmentation/train.txt: no such list")


def test_a_list_of_one_class_is_refused(root):
    (root / "ImageSets/Main/train.txt").write_text("a  1\nb -1\nc  0\n")
    refused(lambda: opened(root), "train.txt: every line ends in -1, 0 or 1", "expected one with image names only")


def test_an_image_of_another_size_is_refused(root):
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "JPEGImages/a.jpg")
    refused(lambda: opened(root)[0], "a.xml: 40x60", "a.jpg is 60x40")


def test_data_without_any_object_has_no_classes(root):
    write(root, a=xml(), c=xml())
    refused(lambda: opened(root), "Annotations: no object in any of the 3 annotations")


# ---- data sets ----------------------------------------------------------------------------------------------------

ARRAYS = ("boxes", "labels", "is_crowd", "difficult", "areas")


def check_equal_objects(first, second, names=ARRAYS):
    for name in names:
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_shapes_are_the_same_objects_in_every_layout(shapes_root):
    lists = {split: split for split in ("train", "val", "test")}
    for split in lists:
        plain = VOCDetection(shapes_root, lists, split)
        masked = VOCDetection(shapes_root, lists, split, masks=True)
        coco = CocoDetection(shapes_root, f"annotations/instances_{split}.json", "JPEGImages", split, masks=True)
        assert plain.names == masked.names == coco.names
        assert plain.classes == masked.classes == coco.classes
        for i in range(len(plain)):
            sample, exact = masked[i], coco[i]
            check_equal_objects(plain.objects(i), sample.objects)
            check_equal_objects(sample.objects, exact.objects, ("boxes", "labels", "is_crowd", "difficult"))
            np.testing.assert_array_equal(boxes_of_masks(exact.objects.masks), exact.objects.boxes)
            np.testing.assert_array_equal(exact.objects.masks.sum(axis=(1, 2)), exact.objects.areas)
            # SegmentationObject has a void border around each object.
            assert (sample.objects.masks <= exact.objects.masks).all()
            void = ~(sample.objects.masks.any(axis=0)) & exact.objects.masks.any(axis=0)
            np.testing.assert_array_equal(sample.objects.masks, exact.objects.masks * ~void)


def test_bccd_is_the_same_in_xml_and_json(caplog):
    root, classes = shared("bccd"), ["RBC", "WBC", "Platelets"]
    lists = {split: split for split in ("train", "val", "test")}
    counts = {"train": [2381, 214, 209], "val": [967, 87, 83], "test": [805, 71, 69]}
    for split in lists:
        with caplog.at_level(logging.WARNING, logger="detseg"):
            voc = VOCDetection(root, lists, split, classes, voc_boxes="continuous", on_bad_box="drop")
        coco = CocoDetection(root, f"instances_{split}.json", "JPEGImages", split, classes)
        assert (voc.names, voc.classes, voc.image_paths) == (coco.names, coco.classes, coco.image_paths)
        for i in range(len(voc)):
            check_equal_objects(voc.objects(i), coco.objects(i))
        np.testing.assert_array_equal(voc[0].image, coco[0].image)
        assert np.bincount(voc._all.labels).tolist() == counts[split]
    messages = [record.getMessage() for record in caplog.records]  # the two flaws of the data set's README
    assert len(messages) == 2
    assert "BloodImage_00343.xml: object[3] (RBC): field bndbox xmin 181 ymin 329 xmax 181 ymax 329" in messages[0]
    assert "BloodImage_00338.xml: object[12] (RBC): field bndbox xmin 504 ymin 337 xmax 504 ymax 337" in messages[1]
    refused(lambda: VOCDetection(root, lists, "val", voc_boxes="continuous"), "object[12] (RBC)", "on_bad_box: drop")


def test_the_range_of_values_reaches_the_images_also_where_the_xml_says_no_size(root):
    Image.fromarray(np.full((HEIGHT, WIDTH), 4095, np.uint16)).save(root / "JPEGImages/a.png")
    (root / "JPEGImages/a.jpg").unlink()
    write(root, a="<annotation/>", b=xml(), c=xml(item("Cow", 5, 5, 9, 9)))
    dataset = opened(root, channels=1, value_range=(0, 4095))
    assert dataset[0].image.min() == 255
    assert dataset.fingerprint() != opened(root, channels=1).fingerprint()
