"""COCO instances painted to semantic labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from detseg.data.masks import decompress_counts, encode_segmentation, paint_maps
from detseg.data.readers.coco import CocoSegmentation
from detseg.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
HEIGHT, WIDTH = 10, 12


def box_mask(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def compressed(mask):
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def uncompressed(mask):
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def polygon(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def annotation(identifier, segmentation, category=7, image=1, **more):
    return {"id": identifier, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def content(*annotations):
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 5, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 90, "name": "tooth"}, {"id": 7, "name": "bird"}, {"id": 3, "name": "cat"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def write(tmp_path):
    """Writes instances.json (a dict or text) with its two images and opens it as a dataset."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(tmp_path / f"images/{name}.png")

    def opened(what, **data):
        (tmp_path / "instances.json").write_text(what if isinstance(what, str) else json.dumps(what))
        return CocoSegmentation(tmp_path, "instances.json", "images", **data)

    return opened


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


# ---- painting -----------------------------------------------------------------------------------------------------


def test_categories_come_by_ascending_id_behind_the_background(write):
    dataset = write(content(annotation(1, polygon(2, 3, 5, 6), category=90)))
    assert dataset.classes == ("background", "cat", "bird", "tooth")
    assert dataset.category_ids == (3, 7, 90)
    assert dataset.names == ["a", "b"]
    sample = dataset[0]
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(sample.label_map, 3 * box_mask(2, 3, 5, 6))


def test_an_image_without_annotations_is_all_background(write):
    assert not write(content(annotation(1, polygon(2, 3, 5, 6))))[1].label_map.any()


def test_the_three_forms_of_a_mask_paint_the_same(write):
    mask = box_mask(2, 3, 5, 6)
    painted = [
        write(content(annotation(1, segmentation)))[0].label_map
        for segmentation in (polygon(2, 3, 5, 6), compressed(mask), uncompressed(mask))
    ]
    for label_map in painted:
        np.testing.assert_array_equal(label_map, 2 * mask)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_smaller_objects_lie_on_larger_ones_and_crowds_under_all(write, order):
    entries = [
        annotation(1, polygon(0, 0, 8, 8), category=3),
        annotation(2, polygon(2, 2, 5, 5), category=90),
        annotation(3, uncompressed(box_mask(4, 4, 12, 10)), category=7, iscrowd=1),
    ]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:10, 4:12] = 255
    expected[0:8, 0:8] = 1
    expected[2:5, 2:5] = 3
    np.testing.assert_array_equal(write(content(*(entries[i] for i in order)))[0].label_map, expected)


def test_a_small_crowd_does_not_cover_a_large_object(write):
    entries = (
        annotation(1, polygon(0, 0, 12, 10)),
        annotation(2, uncompressed(box_mask(1, 1, 3, 3)), iscrowd=1),
    )
    assert (write(content(*entries))[0].label_map == 2).all()


def test_selected_categories_leave_the_rest_and_their_crowds_as_background(write):
    entries = (
        annotation(1, polygon(0, 0, 3, 3), category=90),
        annotation(2, polygon(5, 5, 9, 9), category=3),
        annotation(3, uncompressed(box_mask(10, 0, 12, 10)), category=3, iscrowd=1),
    )
    dataset = write(content(*entries), classes=["tooth"])
    assert dataset.classes == ("background", "tooth")
    np.testing.assert_array_equal(dataset[0].label_map, box_mask(0, 0, 3, 3))


def test_a_category_named_background_is_the_background(write):
    data = content(annotation(1, polygon(0, 0, 3, 3)), annotation(2, polygon(0, 0, 9, 9), category=3))
    data["categories"][1]["name"] = "Background"
    dataset = write(data)
    assert dataset.classes == ("background", "cat", "tooth")
    np.testing.assert_array_equal(dataset[0].label_map, box_mask(0, 0, 9, 9) - box_mask(0, 0, 3, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_pixel_shows_the_smallest_object_that_covers_it(data):
    count = data.draw(st.integers(0, 6))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    masks = rng.random((count, HEIGHT, WIDTH)) < rng.random((count, 1, 1))
    labels = rng.integers(1, 5, count).tolist()
    crowds = (rng.random(count) < 0.3).tolist()
    encoded = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    actual, ids = paint_maps(encoded, labels, crowds, (HEIGHT, WIDTH))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            covering = [(masks[i].sum(), -i) for i in range(count) if masks[i, row, column] and not crowds[i]]
            under_crowd = any(masks[i, row, column] and crowds[i] for i in range(count))
            expected = labels[-min(covering)[1]] if covering else 255 * under_crowd
            assert actual[row, column] == expected
            assert ids[row, column] == (1 - min(covering)[1] if covering else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 300))
def test_compressed_strings_are_decoded_as_pycocotools_encodes_them(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(np.kron(rng.random((height, 1)) < rng.random(), np.ones((1, width)))).astype(np.uint8)
    mask[rng.random((height, width)) < rng.choice([0, 0.001, 0.5])] ^= 1
    text = rle.encode(mask)["counts"].decode()
    assert decompress_counts(text).tolist() == uncompressed(mask)["counts"]
    assert encode_segmentation({"size": [height, width], "counts": text}, (height, width))["counts"] == text


def test_coco_tiny_paints_its_annotations():
    root = SHARED / "datasets/coco_tiny"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    dataset = CocoSegmentation(root, "annotations/instances_val2017.json", "images/val2017")
    assert len(dataset) == 80
    assert len(dataset.classes) == 81
    assert dataset.category_ids[-1] == 90
    seen = set()
    for i in range(20):
        sample = dataset[i]
        assert sample.label_map.shape == sample.image.shape[:2]
        seen |= set(np.unique(sample.label_map).tolist())
    assert {0, 1} <= seen <= {*range(81), 255}


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_files_that_are_missing_or_no_json_are_refused(write, tmp_path):
    refused(lambda: write("{"), "instances.json:1: not valid JSON", "column 2")
    refused(lambda: write("[]"), "instances.json: a JSON list, expected an object")
    refused(
        lambda: CocoSegmentation(tmp_path, "train.json", "images"),
        "train.json: no such annotation file",
        "instances.json",
    )
    refused(lambda: CocoSegmentation(tmp_path, "instances.json", "pictures"), "pictures: no such folder", "images")
    refused(lambda: CocoSegmentation(tmp_path / "x", "instances.json", "images"), "x: no such folder (data.root)")


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_missing_sections_are_named(write, section):
    data = content()
    del data[section]
    refused(lambda: write(data), f"section {section} is missing, expected a list")
    data[section] = {}
    refused(lambda: write(data), f"section {section} is a dict, expected a list")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c["annotations"][1].update(category_id=8), "annotations[1] (id 12): field category_id 8"),
        (lambda c: c["annotations"][1].update(image_id=2), "annotations[1] (id 12): field image_id 2"),
        (lambda c: c["annotations"][1].update(image_id=[2]), "annotations[1] (id 12): field image_id [2]"),
        (
            lambda c: c["annotations"][1].update(id=11),
            "[1] (id 11): field id 11: already that of annotations[0]",
        ),
        (lambda c: c["annotations"][1].pop("id"), "annotations[1]: field id None"),
        (lambda c: c["annotations"][1].pop("segmentation"), "annotations[1] (id 12): field segmentation None: missing"),
        (lambda c: c["annotations"][1].update(segmentation=[]), "(id 12): field segmentation []: missing or empty"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "a polygon of 4 numbers"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [1, 1]}), "without counts and size"),
        (lambda c: c["annotations"][1].update(iscrowd="yes"), "field iscrowd 'yes': expected 0 or 1"),
        (lambda c: c["annotations"].append(3), "annotations[2]: 3, expected an object"),
        (lambda c: c["images"][1].update(id=1), "images[1] (id 1): field id 1: already that of images[0]"),
        (lambda c: c["images"][1].pop("file_name"), "images[1] (id 5): field file_name None"),
        (lambda c: c["images"][1].update(height=0), "images[1] (id 5): field height 0"),
        (
            lambda c: c["images"][1].update(file_name="a.jpg"),
            "images[1] (id 5): field file_name 'a.jpg': listed already by images[0] (id 1): field file_name 'a.png'",
        ),
        (lambda c: c["images"][1].update(file_name="z.png"), "images[1] (id 5): field file_name 'z.png': no such file"),
        (lambda c: c["categories"][0].update(id=3), "categories[2] (id 3): field id 3: already that of categories[0]"),
        (lambda c: c["categories"][0].update(name=""), "categories[0] (id 90): field name ''"),
        (
            lambda c: c["categories"][0].update(name="bird"),
            "categories[1] (id 7): field name 'bird': already that of categories[0]",
        ),
        (lambda c: c["images"].clear() or c["annotations"].clear(), "the split is empty"),
        (
            lambda c: c["categories"].extend({"id": i, "name": str(i)} for i in range(100, 400)),
            "303 categories, but label maps hold at most 254",
        ),
    ],
)
def test_entries_that_make_no_sense_are_named_by_section_id_and_field(write, change, part):
    data = content(annotation(11, polygon(0, 0, 3, 3)), annotation(12, polygon(0, 0, 3, 3)))
    change(data)
    refused(lambda: write(data), part)


def test_all_problems_are_listed_up_to_twenty(write):
    refused(lambda: write(content(*(annotation(i, [], category=1) for i in range(3)))), "[0]", "[1]", "[2]")
    with pytest.raises(UserError) as error:
        write(content(*(annotation(i, []) for i in range(50))))
    assert str(error.value).count("field segmentation") == 20
    assert str(error.value).endswith("... and 30 more")


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ({"size": [3, 3], "counts": [9]}, "its size is [3, 3], but its image has [10, 12]"),
        ({"size": [10, 12], "counts": [9]}, "its counts sum to 9, expected 10 x 12 = 120"),
        ({"size": [10, 12], "counts": [125, -5]}, "not a list of whole numbers >= 0"),
        ({"size": [10, 12], "counts": ["a"]}, "not a list of whole numbers"),
        ({"size": [10, 12], "counts": [[60], [60]]}, "its counts are not a list of whole numbers"),
        ({"size": [10, 12], "counts": [60, [60]]}, "its counts are not a list of whole numbers"),
        ({"size": ["10", None], "counts": [120]}, "its size is ['10', None]"),
        ({"size": [10, 12], "counts": "P137"}, "its counts sum to"),
        ({"size": [10, 12], "counts": "\x01é"}, "not a compressed RLE string"),
        ({"size": [10, 12], "counts": "oooooooooooooo"}, "not a compressed RLE string"),
        ([[0, 0, 1e9, 0, 1e9, 9]], "far outside of its image"),
        ([[0, 0, float("nan"), 0, 5, 9]], "coordinates that are no numbers"),
        ([["a", 0, 1, 0, 1, 9]], "coordinates that are no numbers"),
        ([[[0, 0], 1, 1, 0, 1, 9]], "coordinates that are no numbers"),
        ([[[0, 0], [1, 0], [1, 9], [0, 9], [0, 5], [0, 2]]], "coordinates that are no numbers"),
    ],
)
def test_segmentations_that_would_break_pycocotools_are_refused_with_their_place(write, segmentation, part):
    dataset = write(content(annotation(11, segmentation)))
    refused(lambda: dataset[0], "instances.json: annotations[0] (id 11, image a.png): field segmentation: ", part)


def test_an_image_of_another_size_than_the_file_says_is_refused(write, tmp_path):
    dataset = write(content())
    Image.new("RGB", (3, 4)).save(tmp_path / "images/b.png")
    refused(lambda: dataset[1], "instances.json (image id 5): 10x12", "b.png is 4x3")


def test_built_in_classes_are_refused_where_the_file_names_its_categories(write):
    refused(lambda: write(content(), classes="voc"), "data.classes: 'voc'", "instances.json names its categories")
