"""COCO instances as objects."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from detseg.data.coco_checks import looks_like_corners
from detseg.data.readers.coco import CocoDetection
from detseg.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
HEIGHT, WIDTH = 40, 60


def shared(name):
    path = SHARED / "datasets" / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


def entry(identifier, bbox, category=7, image=1, **more):
    return {"id": identifier, "image_id": image, "category_id": category, "bbox": bbox, **more}


def content(*annotations):
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 9001, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 90, "name": "tooth"}, {"id": 7, "name": "bird"}, {"id": 3, "name": "cat"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def write(tmp_path):
    """Writes instances.json with its two images and opens it as a dataset."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"images/{name}.png")

    def opened(what, **data):
        (tmp_path / "instances.json").write_text(json.dumps(what))
        return CocoDetection(tmp_path, "instances.json", "images", **data)

    return opened


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


# ---- what is read -------------------------------------------------------------------------------------------------


def test_boxes_become_corners_and_ids_keep_their_gaps(write):
    dataset = write(content(entry(5, [10.5, 5, 20, 10], area=77.5), entry(2, [0, 0, 60, 40], 90)))
    sample = dataset[0]
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    assert sample.objects.boxes.tolist() == [[10.5, 5, 30.5, 15], [0, 0, 60, 40]]
    assert sample.objects.labels.tolist() == [1, 2]
    assert sample.objects.areas.tolist() == [77.5, 2400]
    assert not sample.objects.is_crowd.any()
    assert not sample.objects.difficult.any()
    assert sample.objects.masks is None
    assert dataset.classes == ("cat", "bird", "tooth")
    assert dataset.category_ids == (3, 7, 90)
    assert dataset.image_ids == [1, 9001]


def test_an_image_without_annotations_has_no_objects(write):
    dataset = write(content(entry(5, [1, 1, 2, 2])))
    assert len(dataset[1].objects) == 0
    assert dataset[1].objects.boxes.shape == (0, 4)
    masked = write(content(entry(5, [1, 1, 2, 2], segmentation=[[1, 1, 3, 1, 3, 3]])), masks=True)
    assert masked[1].objects.masks.shape == (0, HEIGHT, WIDTH)
    assert masked.true_instances(1)[0] == []


def test_selected_and_renamed_classes_keep_the_files_ids(write):
    entries = entry(1, [1, 1, 2, 2]), entry(2, [3, 3, 4, 4], 90), entry(3, [5, 5, 9, 9], 3)
    selected = write(content(*entries), classes=["tooth", "cat"])
    assert (selected.classes, selected.category_ids) == (("tooth", "cat"), (90, 3))
    assert selected.objects(0).labels.tolist() == [0, 1]
    merged = write(content(*entries), classes={"cat": "animal", "bird": "animal"})
    assert (merged.classes, merged.category_ids) == (("animal", "tooth"), (3, 90))
    assert merged.objects(0).labels.tolist() == [0, 1, 0]
    refused(lambda: write(content(), classes=["birb"]), "data.classes: 'birb'", "did you mean 'bird'?")
    refused(lambda: write(content(), classes="voc"), "data.classes: 'voc'", "names its categories")


def test_masks_are_decoded_from_polygons_and_both_forms_of_rle(write):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:30] = 1
    encoded = rle.encode(np.asfortranarray(mask))
    runs = [10 * HEIGHT + 5, *[10, 30] * 19, 10, 25 + 30 * HEIGHT]
    forms = (
        [[10, 5, 30, 5, 30, 15, 10, 15]],
        {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": runs},
    )
    entries = [entry(k, [10, 5, 20, 10], segmentation=form, iscrowd=int(k > 0)) for k, form in enumerate(forms)]
    dataset = write(content(*entries), masks=True)
    objects = dataset[0].objects
    np.testing.assert_array_equal(objects.masks, np.stack([mask] * 3))
    assert objects.is_crowd.tolist() == [False, True, True]
    masks, labels, crowds = dataset.true_instances(0)
    assert [each["counts"] for each in masks] == [encoded["counts"]] * 3
    assert (labels.tolist(), crowds.tolist()) == ([1, 1, 1], [False, True, True])


def test_masks_are_not_looked_at_unless_asked_for(write):
    broken = entry(1, [1, 1, 2, 2], segmentation={"size": [1, 1], "counts": "no"})
    dataset = write(content(broken, entry(2, [1, 1, 2, 2])))
    assert len(dataset.objects(0)) == 2
    assert dataset.true_instances(0) is None
    refused(lambda: write(content(entry(2, [1, 1, 2, 2])), masks=True), "annotations[0] (id 2): field segmentation")
    refused(
        lambda: write(content(entry(7, [1, 1, 2, 2], segmentation=[[1, 1, 3, 1, 3, 3]]), broken), masks=True).objects(
            0
        ),
        "annotations[1] (id 1, image a.png): field segmentation: its size is [1, 1]",
    )


def test_a_dataset_can_be_pickled_and_offers_what_messages_and_scans_need(write, tmp_path):
    dataset = pickle.loads(pickle.dumps(write(content(entry(5, [1, 1, 2, 2])))))
    assert (len(dataset), dataset.names, dataset.split) == (2, ["a", "b"], "train")
    assert dataset.label_paths == [tmp_path / "instances.json"]
    assert "image id 9001" in dataset.labels_source(1)
    merged = write(content(entry(5, [1, 1, 2, 2])), classes={"bird": "cat"})
    assert len({dataset.fingerprint(), merged.fingerprint()}) == 2


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bbox", "part"),
    [
        ([5, 5, 0, 9], "zero width"),
        ([5, 5, 9, 0.0], "zero height"),
        ([5, 5, -3, 9], "negative width"),
        ([5, 5, -3, -1], "field bbox [5, 5, -3, -1]: negative width and height"),
        ([5, 5, float("nan"), 9], "expected four finite numbers"),
        ([5, 5, 10**400, 9], "expected four finite numbers"),
        ([5, 5, "9", 9], "expected four finite numbers"),
        ([5, 5, 9], "expected four finite numbers"),
        ([], "expected four finite numbers"),
        (None, "field bbox None: expected four finite numbers"),
        ([100, 5, 9, 9], "49 px outside of its image of 60x40 (width x height)"),
        ([5, 5, 9, 50], "15 px outside of its image"),
        ([-2, 5, 9, 9], "2 px outside of its image"),
        ([30, 20, 55, 38], "25 px outside of its image of 60x40 (width x height); as [x1, y1, x2, y2] it would fit"),
    ],
)
def test_bad_boxes_are_refused_or_dropped_by_file_index_and_field(write, bbox, part, caplog):
    what = content(entry(4, [1, 1, 2, 2]), entry(8, bbox))
    place = "instances.json: annotations[1] (id 8, image a.png): field bbox"
    refused(lambda: write(what), "split 'train': 1 bad box of 2", "data.on_bad_box: drop", place, part)
    with caplog.at_level(logging.WARNING, logger="detseg"):
        dataset = write(what, on_bad_box="drop")
    assert dataset.objects(0).boxes.tolist() == [[1, 1, 3, 3]]
    (record,) = caplog.records
    assert "1 bad box of 2 dropped" in record.getMessage()
    assert place in record.getMessage()


def test_a_missing_bbox_is_a_bad_box(write):
    what = content(entry(4, [1, 1, 2, 2]), {"id": 8, "image_id": 1, "category_id": 7})
    refused(lambda: write(what), "annotations[1] (id 8, image a.png): field bbox None: missing, expected [x, y")
    assert len(write(what, on_bad_box="drop").objects(0)) == 1


def test_boxes_up_to_a_pixel_outside_are_clipped_and_counted(write, caplog):
    with caplog.at_level(logging.WARNING, logger="detseg"):
        dataset = write(content(entry(4, [-0.5, 1, 61.25, 2]), entry(5, [50.3, 1, 9.7 + 1e-9, 2])))
    np.testing.assert_allclose(dataset.objects(0).boxes, [[0, 1, 60, 3], [50.3, 1, 60, 3]], rtol=1e-6)
    assert "1 box of 2, which reached up to a pixel out of the image, clipped" in caplog.text
    assert "annotations[0] (id 4, image a.png): field bbox [-0.5, 1, 61.25, 2]: by 0.75 px" in caplog.text


def test_corners_in_place_of_sides_are_recognised(write):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [WIDTH - 5, HEIGHT - 5], (40, 2))
    sides = rng.integers(3, 15, (40, 2))
    ends = np.minimum(corners + sides, [WIDTH, HEIGHT])
    wrong = np.concatenate([corners, ends], axis=1)
    right = np.concatenate([corners, ends - corners], axis=1)
    for on_bad_box in ("refuse", "drop"):
        entries = [entry(k, bbox) for k, bbox in enumerate(wrong.tolist())]
        refused(
            lambda entries=entries, on_bad_box=on_bad_box: write(content(*entries), on_bad_box=on_bad_box),
            "instances.json: field bbox:",
            "of 40 boxes end outside",
            "annotations[",
            "Write [x1, y1, x2 - x1, y2 - y1]",
        )
    entries = [entry(k, bbox) for k, bbox in enumerate(right.tolist())]
    assert len(write(content(*entries)).objects(0)) == 40
    sizes = np.array([[HEIGHT, WIDTH]] * 40)
    assert not looks_like_corners(wrong[:9].astype(float), sizes[:9]).any()  # too few to tell


CENTRAL = [[3, 2, 50, 30], [10, 5, 49, 39], [1, 1, 60, 40], [20, 10, 45, 25], [5, 5, 30, 30]]


def test_few_corners_in_place_of_sides_are_recognised_where_all_fit_and_one_leaves_its_image(write):
    def boxes(*bboxes):
        return content(*(entry(k, bbox) for k, bbox in enumerate(bboxes)))

    sizes = np.array([[HEIGHT, WIDTH]] * len(CENTRAL))
    assert not looks_like_corners(np.array(CENTRAL, float), sizes).any()
    for on_bad_box in ("refuse", "drop"):
        refused(
            lambda on_bad_box=on_bad_box: write(boxes(*CENTRAL), on_bad_box=on_bad_box),
            "instances.json: field bbox: 2 of 5 boxes end outside",
            "the first is",
            "annotations[1] (id 1, image a.png)",
            "Write [x1, y1, x2 - x1, y2 - y1], or correct those boxes",
        )
    without_numbers = boxes(*CENTRAL, [1, 2, "wide", 9])
    refused(lambda: write(without_numbers, on_bad_box="drop"), "2 of 6 boxes end outside")
    for others in (
        CENTRAL[:4],  # too few to tell
        [*CENTRAL, [30, 5, 20, 20]],  # x1 > x2
        [*CENTRAL, [3, 3, 61.5, 30]],  # outside as corners too
        [*CENTRAL, [-0.5, 3, 40, 30]],
    ):
        kept = write(boxes(*others), on_bad_box="drop").objects(0).boxes
        assert [3, 2, 53, 32] in kept.tolist()
    fit = [CENTRAL[0], CENTRAL[4], [1, 1, 60, 40]] * 2  # the last reaches a pixel out
    assert len(write(boxes(*fit)).objects(0)) == 6


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_missing_sections_are_named(write, section):
    data = content(entry(1, [1, 1, 2, 2]))
    del data[section]
    refused(lambda: write(data), f"instances.json: section {section} is missing")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c["annotations"][1].update(category_id=8), "annotations[1] (id 12): field category_id 8"),
        (lambda c: c["annotations"][1].update(image_id=2), "annotations[1] (id 12): field image_id 2"),
        (
            lambda c: c["annotations"][1].update(id=11),
            "[1] (id 11): field id 11: already that of annotations[0]",
        ),
        (lambda c: c["images"][1].update(id=1), "images[1] (id 1): field id 1: already that of images[0]"),
        (lambda c: c["annotations"][1].update(area=-1), "annotations[1] (id 12): field area -1"),
        (lambda c: c["annotations"][1].update(area="big"), "field area 'big': expected a number >= 0"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "field iscrowd 2: expected 0 or 1"),
        (
            lambda c: c["images"][1].update(file_name="z.png"),
            "images[1] (id 9001): field file_name 'z.png': no such file in",
        ),
        (lambda c: c.update(categories=[], annotations=[]), "section categories holds no category"),
    ],
)
def test_entries_that_make_no_sense_are_refused_whatever_on_bad_box_says(write, change, part):
    data = content(entry(11, [0, 0, 3, 3]), entry(12, [0, 0, 3, 3]))
    change(data)
    for on_bad_box in ("refuse", "drop"):
        refused(lambda on_bad_box=on_bad_box: write(data, on_bad_box=on_bad_box), part)


def test_an_image_of_another_size_than_the_file_says_is_refused(write, tmp_path):
    dataset = write(content())
    Image.new("RGB", (3, 4)).save(tmp_path / "images/b.png")
    refused(lambda: dataset[1], "instances.json (image id 9001): 40x60", "b.png is 4x3")


# ---- data sets ----------------------------------------------------------------------------------------------------


def test_coco_tiny_is_what_pycocotools_reads(capsys):
    root = shared("coco_tiny")
    for year, crowd_count in (("train2017", 6), ("val2017", 11)):
        path = f"annotations/instances_{year}.json"
        reference = COCO(root / path)
        dataset = CocoDetection(root, path, f"images/{year}", masks=True)
        plain = CocoDetection(root, path, f"images/{year}")
        assert (len(dataset), len(dataset.classes), dataset.category_ids[-1]) == (80, 80, 90)
        for i in range(0, 80, 8):
            entries = reference.imgToAnns[dataset.image_ids[i]]
            objects = dataset[i].objects
            boxes = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_array_equal(objects.boxes, boxes.astype(np.float32))
            assert [dataset.category_ids[k] for k in objects.labels] == [entry["category_id"] for entry in entries]
            assert objects.areas.tolist() == [entry["area"] for entry in entries]
            for mask, each in zip(objects.masks, entries, strict=True):
                np.testing.assert_array_equal(mask, reference.annToMask(each))
            np.testing.assert_array_equal(plain.objects(i).boxes, objects.boxes)
        crowds = sum(int(dataset.objects(i).is_crowd.sum()) for i in range(80))
        assert crowds == crowd_count
    capsys.readouterr()


def test_nuclei_have_their_masks():
    root = shared("nuclei")
    dataset = CocoDetection(root, "annotations/instances_val.json", "images", masks=True)
    assert (len(dataset), dataset.classes) == (35, ("nucleus",))
    assert sum(len(dataset.objects(i)) for i in range(35)) == 1229
    objects = dataset[0].objects
    np.testing.assert_array_equal(objects.masks.sum(axis=(1, 2)), objects.areas)
