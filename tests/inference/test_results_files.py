import json
import logging
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from detseg.data.readers.voc import VOCDetection
from detseg.errors import UserError
from detseg.inference.prediction import Prediction
from detseg.inference.results_files import (
    coco_entries,
    read_coco_results,
    read_voc_results,
    write_coco_results,
    write_voc_annotation,
    write_voc_results,
)

SIZES = {7: (100, 200), 3: (50, 60)}
CATEGORY_IDS = (1, 18, 90)
CLASSES = ("cat", "Dining Table", "dog")
ENTRY = {"image_id": 7, "category_id": 18, "bbox": [150, 10, 20, 30], "score": 0.5}


def detections(boxes, labels, scores, masks=None):
    return Prediction(boxes=boxes, labels=labels, scores=scores, masks=masks)


def some_detections(seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (5, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 9, (5, 2))], 1).astype(np.float32)
    return detections(boxes, rng.integers(0, 3, 5), rng.random(5).astype(np.float32))


def none_found():
    return detections(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32))


def problems_of(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        read_coco_results(path, SIZES, CATEGORY_IDS)
    assert str(error.value).startswith(str(path))
    return str(error.value)


def test_coco_results_come_back_as_they_were_written(tmp_path):
    found = {7: some_detections(), 3: none_found()}
    entries = [entry for image_id in found for entry in coco_entries(found[image_id], image_id, CATEGORY_IDS, "a.png")]
    assert entries[0]["category_id"] in CATEGORY_IDS
    assert entries[0]["file_name"] == "a.png"
    write_coco_results(tmp_path / "found.json", entries)
    back = read_coco_results(tmp_path / "found.json", SIZES, CATEGORY_IDS)
    assert list(back) == [7, 3]
    assert back[3].boxes.shape == (0, 4)
    np.testing.assert_allclose(back[7].boxes, found[7].boxes, atol=0.0011)
    np.testing.assert_array_equal(back[7].labels, found[7].labels)
    np.testing.assert_array_equal(back[7].scores.astype(np.float32), found[7].scores)
    assert back[7].masks is None


def test_no_detections_are_a_file_too(tmp_path):
    write_coco_results(tmp_path / "found.json", [])
    assert json.loads((tmp_path / "found.json").read_text()) == []
    assert all(len(found.scores) == 0 for found in read_coco_results(tmp_path / "found.json", SIZES, ()).values())


def test_masks_are_written_as_text_and_give_boxes_where_there_are_none(tmp_path):
    mask = np.zeros((100, 200, 1), np.uint8, order="F")
    mask[20:30, 40:70] = 1
    found = detections(np.array([[40, 20, 70, 30]], np.float32), np.array([2]), np.array([0.25]), rle.encode(mask))
    entries = coco_entries(found, 7, CATEGORY_IDS)
    del entries[0]["bbox"]
    write_coco_results(tmp_path / "found.json", entries)
    back = read_coco_results(tmp_path / "found.json", SIZES, CATEGORY_IDS)[7]
    np.testing.assert_array_equal(rle.decode(back.masks), mask)
    assert back.boxes.tolist() == [[40, 20, 70, 30]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": 8}, "[1]: field image_id is 8, but the data have no such id. They have 7, 3"),
        ({"image_id": [7]}, "[1]: field image_id is [7]"),
        ({"category_id": 2}, "[1]: field category_id is 2, but the data have no such id. They have 1, 18, 90"),
        ({"score": float("nan")}, "[1]: field score is nan, expected a number"),
        ({"score": "high"}, "[1]: field score is 'high'"),
        ({"score": None}, "[1]: field score is None"),
        ({"bbox": [1, 2, 3]}, "[1]: field bbox is [1, 2, 3], expected four numbers"),
        ({"bbox": [1, 2, float("inf"), 3]}, "[1]: field bbox is [1, 2, inf, 3], expected four numbers"),
        ({"bbox": [10, 2, -3, 3]}, "[1]: field bbox is [10, 2, -3, 3]: a negative size"),
        ({"segmentation": [[0, 0, 1, 1, 2, 2]]}, "[1]: field segmentation is not RLE"),
        (
            {"segmentation": {"size": [100, 200], "counts": [19999]}},
            "[0]: field segmentation is missing, but 1 ",
        ),
    ],
)
def test_bad_entries_are_named_by_index_and_field(tmp_path, change, expected):
    assert expected in problems_of(tmp_path, [ENTRY, ENTRY | change])


@pytest.mark.parametrize("field", ["image_id", "category_id", "bbox", "score"])
def test_missing_fields_are_named(tmp_path, field):
    entry = {key: value for key, value in ENTRY.items() if key != field}
    assert f"[0]: field {field} is missing" in problems_of(tmp_path, [entry])


def test_bad_files_are_named(tmp_path):
    assert "expected an object" in problems_of(tmp_path, [5])
    assert "a JSON dict with images, annotations, expected" in problems_of(tmp_path, {"images": [], "annotations": []})
    assert "expected COCO results JSON: Expecting property name" in problems_of(tmp_path, "[{]")
    assert "line 1 column 3" in problems_of(tmp_path, "[{]")
    assert "the detections cannot be read" in problems_of(tmp_path, "[" * 100_000)
    assert "its counts sum to 9, expected 100 x 200" in problems_of(
        tmp_path, [ENTRY | {"segmentation": {"size": [100, 200], "counts": [9]}}]
    )
    assert problems_of(tmp_path, [5] * 30).count("\n") == 21
    with pytest.raises(UserError, match=r"nowhere\.json: the detections cannot be read"):
        read_coco_results(tmp_path / "nowhere.json", SIZES, CATEGORY_IDS)


def test_corners_written_as_x_y_width_height_are_refused_and_boxes_beyond_the_edge_are_not(tmp_path):
    boxes = [[120, 40, 190, 90], [10, 10, 30, 30], [100, 5, 199, 95]] * 4
    message = problems_of(tmp_path, [ENTRY | {"bbox": box} for box in boxes])
    assert "[0]: field bbox is [120.0, 40.0, 190.0, 90.0]" in message
    assert "200x100 (width x height), like 8 of the 12 boxes" in message
    path = tmp_path / "fine.json"
    path.write_text(json.dumps([ENTRY | {"bbox": box} for box in ([-3, -2, 210, 106], [150, 60, 60, 45]) * 6]))
    assert read_coco_results(path, SIZES, CATEGORY_IDS)[7].boxes[0].tolist() == [-3, -2, 207, 104]


def test_voc_results_come_back_as_they_were_written(tmp_path):
    found = {"2007_000001": some_detections(), "a b": some_detections(1), "empty": none_found()}
    write_voc_results(tmp_path, "test", found, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comp4_det_test_Dining Table.txt",
        "comp4_det_test_cat.txt",
        "comp4_det_test_dog.txt",
    ]
    back = read_voc_results(tmp_path, "test", list(found), CLASSES)
    assert list(back) == list(found)
    for name, detections in found.items():
        order = np.argsort(detections.labels, kind="stable")
        np.testing.assert_allclose(back[name].boxes, detections.boxes[order], atol=0.0006)
        np.testing.assert_array_equal(back[name].labels, detections.labels[order])
        np.testing.assert_array_equal(back[name].scores.astype(np.float32), detections.scores[order])


@pytest.fixture(scope="module")
def annotate(tmp_path_factory):
    """Function of boxes and inclusive: what our reader finds in their annotation of an image of 50x60."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    cv2.imwrite(str(root / "JPEGImages/a.png"), np.zeros((50, 60, 3), np.uint8))
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    (root / "classes.txt").write_text("cat\n")

    def written_and_read(boxes, inclusive):
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        found = detections(boxes, np.zeros(len(boxes), int), np.full(len(boxes), 0.5, np.float32))
        write_voc_annotation(root / "Annotations/a.xml", "a.png", (50, 60, 3), found, ("cat",), inclusive)
        voc_boxes = "inclusive" if inclusive else "continuous"
        return VOCDetection(root, {"val": "val"}, "val", voc_boxes=voc_boxes).objects(0).boxes

    written_and_read.path = root / "Annotations/a.xml"
    return written_and_read


SIDES = st.one_of(st.floats(0.3, 2), st.floats(0.3, 30))
PLACES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))  # of the room that a side leaves


@given(st.lists(st.tuples(PLACES, PLACES, SIDES, SIDES), max_size=5))
@example([(0.5, 0.5, 1.0, 1.0), (1.0, 1.0, 0.4, 0.4), (0.0, 0.0, 0.3, 1.0)])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_voc_annotations_are_read_back_as_the_boxes(annotate, drawn):
    sides = np.array([row[2:] for row in drawn]).reshape(-1, 2)
    corners = np.array([row[:2] for row in drawn]).reshape(-1, 2) * ([60, 50] - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    np.testing.assert_allclose(annotate(boxes, inclusive=False), boxes, atol=0.0011)
    back = annotate(boxes, inclusive=True)
    assert back.shape == boxes.shape
    has_pixel = np.tile(sides >= 1, 2)  # inclusive corners can't tell less
    np.testing.assert_allclose(back[has_pixel], boxes[has_pixel], atol=0.0021)
    assert (back[:, :2] <= boxes[:, :2] + 0.0021).all()
    assert (back[:, 2:] >= boxes[:, 2:] - 0.0021).all()
    np.testing.assert_allclose(back[:, 2:] - back[:, :2], np.maximum(sides, 1), atol=0.0031)


def test_boxes_of_less_than_a_pixel_are_said_where_they_are_written_as_one(annotate, caplog):
    boxes = [[9, 9, 9.4, 20], [9, 9, 10, 20], [59.7, 9, 60, 9.5], [5, 5, 5, 20], [5, 5, 5.0004, 20]]
    with caplog.at_level(logging.WARNING, logger="detseg"):
        back = annotate(boxes, inclusive=True)
    np.testing.assert_allclose(back, [[9, 9, 10, 20], [9, 9, 10, 20], [59, 9, 60, 10]], atol=0.0011)
    (record,) = caplog.records
    assert f"{annotate.path}: boxes narrower or lower than a pixel, 2 of 5" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="detseg"):
        assert len(annotate(boxes, inclusive=False)) == 3
    assert not caplog.records


def test_inclusive_annotations_are_the_devkits_corners(annotate):
    annotate([[9, 4, 20, 50], [0, 0, 60, 50]], inclusive=True)
    written = [[field.text for field in box] for box in ElementTree.parse(annotate.path).iter("bndbox")]
    assert written == [["10", "5", "20", "50"], ["1", "1", "60", "50"]]


def test_voc_coordinates_are_inclusive_and_count_from_one(tmp_path):
    found = detections(np.array([[0, 0, 200, 100]], np.float32), np.array([0]), np.array([0.5], np.float32))
    write_voc_results(tmp_path, "val", {"a": found}, ("cat",))
    assert (tmp_path / "comp4_det_val_cat.txt").read_text() == "a 0.5 1.000 1.000 200.000 100.000\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a 0.5 1 2 3", "line 2: 5 fields, expected 6"),
        ("", "line 2: 0 fields"),
        ("b 0.5 1 2 3 4", "line 2: field name is 'b', but the split has no such image. It has a"),
        ("a nan 1 2 3 4", "line 2: field score is 'nan', expected a number"),
        ("a 0.5 1 2 x 4", "line 2: field xmax is 'x'"),
        ("a 0.5 10 2 5 4", "line 2: the box 10 2 5 4 has a negative size"),
    ],
)
def test_bad_voc_lines_are_named(tmp_path, line, expected):
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(f"a 0.5 1 2 3 4\n{line}\na 0.5 1 2 3 4\n")
    with pytest.raises(UserError) as error:
        read_voc_results(tmp_path, "test", ["a"], ("cat",))
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_missing_and_unknown_voc_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"comp4_det_test_cat\.txt is missing .* there are no \.txt files"):
        read_voc_results(tmp_path, "test", ["a"], ("cat",))
    write_voc_results(tmp_path, "test", {"a": none_found()}, ("cat", "dog"))
    with pytest.raises(UserError, match=r"comp4_det_test_dog\.txt: names no class of the data, which has cat"):
        read_voc_results(tmp_path, "test", ["a"], ("cat",))
    with pytest.raises(UserError, match=r"comp4_det_val_cat\.txt is missing .* comp4_det_test_cat\.txt"):
        read_voc_results(tmp_path, "val", ["a"], ("cat",))


def test_a_class_name_leads_into_no_other_folder(tmp_path):
    classes, folder = ("../../cat", "car/truck", "car"), tmp_path / "a" / "b"
    write_voc_results(folder, "test", {"a": some_detections()}, classes)
    assert len(list(tmp_path.rglob("*.txt"))) == len(list(folder.iterdir())) == 3
    back = read_voc_results(folder, "test", ["a"], classes)
    assert sorted(back["a"].labels.tolist()) == sorted(some_detections().labels.tolist())
    with pytest.raises(UserError, match="two classes would have one file of results"):
        write_voc_results(folder, "test", {}, ("car/truck", "car_truck"))
