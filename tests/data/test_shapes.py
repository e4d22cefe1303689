"""The embedded data set: its pictures are reproducible and fair, its three layouts agree, nothing is overwritten."""

import contextlib
import io
import json
import math
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.palette import voc_palette, write_index_png
from detseg.data.shapes import (
    CLASSES,
    MAX_EXTENT,
    MAX_OBJECTS,
    MIN_EXTENT,
    MIN_VISIBLE,
    OCCLUDED,
    _draw_shape,
    _signed_distance,
    bounding_box,
    draw_picture,
    paint_label_maps,
)
from detseg.data.shapes_writer import image_name, make_shapes
from detseg.errors import UserError

COUNTS = {"train": 12, "val": 4, "test": 3}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, **COUNTS)
    return root


@pytest.fixture(scope="module")
def pictures():
    return [draw_picture(0, "train", index) for index in range(1, 101)]


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def all_names():
    return [(split, image_name(split, k)) for split, count in COUNTS.items() for k in range(1, count + 1)]


def read_index_png(path):
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)


def load_coco(root, split):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(root / "annotations" / f"instances_{split}.json")


# --- pictures


def test_every_file_is_bit_identical_on_a_second_run(shapes, tmp_path):
    make_shapes(tmp_path / "again", **COUNTS)
    assert contents(shapes) == contents(tmp_path / "again")


def test_an_image_does_not_depend_on_how_many_others_are_made(shapes, tmp_path):
    make_shapes(tmp_path / "few", train=2, val=4, test=0)
    few, many = contents(tmp_path / "few"), contents(shapes)
    per_image = [path for path in few if path.suffix in (".jpg", ".png", ".xml")]
    assert len(per_image) == 4 * (2 + 4)
    assert all(few[path] == many[path] for path in per_image)
    coco = [json.loads(files[next(p for p in files if p.name == "instances_val.json")]) for files in (few, many)]
    assert coco[0] == coco[1]


def test_seed_split_and_index_each_change_the_picture():
    variants = [(0, "train", 1), (1, "train", 1), (0, "val", 1), (0, "train", 2)]
    images = [draw_picture(*variant).image.tobytes() for variant in variants]
    assert len(set(images)) == len(variants)


def test_objects_have_the_promised_sizes_and_numbers(pictures):
    assert {len(picture.labels) for picture in pictures} == set(range(MAX_OBJECTS + 1))
    extents = np.concatenate([picture.extents for picture in pictures])
    assert extents.min() >= MIN_EXTENT == 20
    assert extents.max() <= MAX_EXTENT == 96
    assert (extents < 40).any()
    assert (extents > 80).any()


def test_extent_is_the_box_of_an_object_that_nothing_hides(pictures):
    for picture in pictures:
        for mask, hidden, extent in zip(picture.masks, picture.hidden, picture.extents, strict=True):
            x1, y1, x2, y2 = bounding_box(mask)
            assert max(x2 - x1, y2 - y1) <= extent
            assert hidden > 0 or max(x2 - x1, y2 - y1) == extent


def test_at_least_a_fifth_of_the_objects_is_occluded_and_none_is_buried(pictures):
    hidden = np.concatenate([picture.hidden for picture in pictures])
    assert np.mean(hidden >= OCCLUDED) >= 0.20
    assert hidden.min() == 0
    assert hidden.max() <= 1 - MIN_VISIBLE
    assert MIN_VISIBLE >= 0.4


def test_visible_masks_do_not_overlap(pictures):
    assert all(picture.masks.sum(axis=0).max(initial=0) <= 1 for picture in pictures)


def test_every_class_is_drawn_about_equally_often(pictures):
    counts = np.bincount(np.concatenate([picture.labels for picture in pictures]), minlength=len(CLASSES))
    assert len(counts) == len(CLASSES)
    assert counts.min() > 0.7 * counts.mean()


def test_colour_does_not_give_the_class_away():
    features, labels = [], []
    for index in range(1, 241):
        picture = draw_picture(0, "train", index, size=128)
        for label, mask in zip(picture.labels, picture.masks, strict=True):
            pixels = picture.image[mask].astype(float)
            features.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    half = len(labels) // 2
    means = np.array([features[:half][labels[:half] == k].mean(axis=0) for k in range(len(CLASSES))])
    guess = np.linalg.norm(features[half:, None] - means, axis=2).argmin(axis=1)
    assert np.mean(guess == labels[half:]) < 0.35  # chance is 0.2


def test_colour_alone_does_not_tell_objects_from_background(pictures):
    def saturation(pixels):
        low, high = pixels.mean(axis=0).min(), pixels.mean(axis=0).max()
        return (high - low) / high

    behind = [saturation(picture.image[~picture.masks.any(axis=0)]) for picture in pictures]
    objects = [saturation(picture.image[mask]) for picture in pictures for mask in picture.masks]
    assert np.mean(np.array(objects) < np.percentile(behind, 95)) > 0.1
    assert np.mean(np.array(behind) > np.percentile(objects, 5)) > 0.1


def test_objects_stand_out_from_what_surrounds_them(pictures):
    steps = []
    for picture in pictures:
        blurred = cv2.blur(picture.image, (3, 3)).astype(float)
        for mask in picture.masks.astype(np.uint8):
            around = cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(mask, np.ones((3, 3)))
            steps.append(np.linalg.norm(blurred[mask == 1].mean(axis=0) - blurred[around == 1].mean(axis=0)))
    assert np.percentile(steps, 5) > 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("disk", {(0.9, 0.0): 0.1, (0.0, -1.2): -0.2}),
        ("ring", {(0.0, 0.0): -0.55, (0.65, 0.0): 0.1, (0.0, 0.9): 0.1}),
        ("square", {(0.0, 0.0): 0.7071, (0.7, 0.7): 0.0071, (0.8, 0.0): -0.0929}),
        ("triangle", {(0.0, 0.0): 0.5, (-0.9, 0.0): 0.05, (0.6, 0.0): -0.1}),
        ("star", {(0.0, 0.0): 0.3090, (0.95, 0.0): 0.0155, (-0.95, 0.0): -0.4596}),
    ],
)
def test_signed_distance_by_hand(name, expected):
    for (x, y), distance in expected.items():
        assert _signed_distance(name, np.array(x), np.array(y)) == pytest.approx(distance, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disk", math.pi),
        ("ring", math.pi * (1 - 0.55**2)),
        ("square", 2.0),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("star", 5 * 0.381966 * math.sin(math.pi / 5)),  # ten triangles with sides 1 and 0.382 about 36 degrees
    ],
)
def test_a_shape_has_the_area_of_its_formula(name, area):
    x, y = np.mgrid[-1:1:800j, -1:1:800j]
    assert np.mean(_signed_distance(name, x, y) > 0) * 4 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("name", CLASSES)
def test_the_mask_is_where_the_shape_covers_a_pixel_s_centre(name):
    rng = np.random.default_rng(3)
    for coverage, mask in (_draw_shape(rng, name) for _ in range(20)):
        np.testing.assert_array_equal(mask, coverage > 0.5)
        assert coverage.sum() == pytest.approx(mask.sum(), rel=0.1)
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


# --- label maps


def test_void_is_four_pixels_wide_along_every_outline(pictures):
    for picture in pictures[:20]:
        semantic, instances = paint_label_maps(picture)
        number = np.arange(1, len(picture.labels) + 1)[:, None, None]
        owner = np.pad((picture.masks * number).sum(axis=0), 2, mode="edge")
        size = len(semantic)
        shifts = [owner[dy : dy + size, dx : dx + size] for dy in range(5) for dx in range(5)]
        on_outline = np.any([shift != shifts[12] for shift in shifts], axis=0)
        np.testing.assert_array_equal(semantic == 255, on_outline)
        np.testing.assert_array_equal(instances == 255, on_outline)


# --- layouts


def test_names_are_listed_once_per_split_and_have_all_their_files(shapes):
    for split, count in COUNTS.items():
        expected = [image_name(split, k) for k in range(1, count + 1)]
        for task in ("Main", "Segmentation"):
            assert (shapes / "ImageSets" / task / f"{split}.txt").read_text().splitlines() == expected
    names = sorted(name for _, name in all_names())
    folders = {"JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationClass": ".png", "SegmentationObject": ".png"}
    for folder, suffix in folders.items():
        assert sorted(path.name for path in (shapes / folder).iterdir()) == [name + suffix for name in names]
    assert (shapes / "classes.txt").read_text().split() == ["background", *CLASSES]


def test_the_written_jpeg_is_the_picture(shapes):
    picture = draw_picture(0, "train", 1)
    with Image.open(shapes / "JPEGImages" / "shapes_train_0001.jpg") as file:
        assert (file.mode, file.size) == ("RGB", (192, 192))
        assert np.abs(np.asarray(file).astype(float) - picture.image).mean() < 6


def test_boxes_of_xml_coco_and_masks_agree(shapes):
    for split, count in COUNTS.items():
        coco = load_coco(shapes, split)
        assert len(coco.imgs) == count
        for image in coco.imgs.values():
            annotations = coco.imgToAnns[image["id"]]
            tree = ElementTree.parse(shapes / "Annotations" / image["file_name"].replace(".jpg", ".xml"))
            assert tree.findtext("filename") == image["file_name"]
            assert [tree.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["192", "192", "3"]
            objects = tree.findall("object")
            assert len(objects) == len(annotations)
            for item, annotation in zip(objects, annotations, strict=True):
                mask = coco.annToMask(annotation)
                x1, y1, x2, y2 = bounding_box(mask)
                corners = [int(item.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
                assert corners == [x1 + 1, y1 + 1, x2, y2]
                assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == 0
                assert CLASSES[annotation["category_id"] - 1] == item.findtext("name")
                assert item.findtext("truncated") == item.findtext("difficult") == "0"


def test_label_maps_are_the_painted_coco_instances_off_void(shapes):
    for split in COUNTS:
        coco = load_coco(shapes, split)
        for image in coco.imgs.values():
            stem = image["file_name"].removesuffix(".jpg")
            semantic = read_index_png(shapes / "SegmentationClass" / f"{stem}.png")
            instances = read_index_png(shapes / "SegmentationObject" / f"{stem}.png")
            painted = np.zeros((2, 192, 192), np.uint8)
            for number, annotation in enumerate(coco.imgToAnns[image["id"]], start=1):
                painted[:, coco.annToMask(annotation) == 1] = [[annotation["category_id"]], [number]]
            void = semantic == 255
            np.testing.assert_array_equal(void, instances == 255)
            np.testing.assert_array_equal(semantic[~void], painted[0][~void])
            np.testing.assert_array_equal(instances[~void], painted[1][~void])


def test_occluded_flag_in_xml_is_what_is_hidden(shapes):
    for split, name in all_names():
        flags = [
            item.text == "1" for item in ElementTree.parse(shapes / "Annotations" / f"{name}.xml").iter("occluded")
        ]
        assert flags == (draw_picture(0, split, int(name[-4:])).hidden >= OCCLUDED).tolist()


def test_coco_ids_are_unique_over_the_splits_and_categories_are_named(shapes):
    files = [json.loads((shapes / "annotations" / f"instances_{split}.json").read_text()) for split in COUNTS]
    for kind in ("images", "annotations"):
        ids = [entry["id"] for file in files for entry in file[kind]]
        assert len(ids) == len(set(ids)) > 0
    for file in files:
        assert [(entry["id"], entry["name"]) for entry in file["categories"]] == list(enumerate(CLASSES, start=1))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_as_detections_scores_one(shapes, kind):
    coco = load_coco(shapes, "train")
    keys = ("image_id", "category_id", "bbox", "segmentation")
    detections = [{**{key: entry[key] for key in keys}, "score": 1.0} for entry in coco.anns.values()]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


# --- the folder


def test_a_second_call_writes_nothing_and_returns_the_same_summary(shapes):
    before = {path: path.stat().st_mtime_ns for path in [shapes, *shapes.rglob("*")]}
    summary = make_shapes(shapes, **COUNTS)
    assert {path: path.stat().st_mtime_ns for path in [shapes, *shapes.rglob("*")]} == before
    assert not summary.written
    objects = [
        item
        for _, name in all_names()
        for item in ElementTree.parse(shapes / f"Annotations/{name}.xml").iter("occluded")
    ]
    assert (summary.objects, summary.occluded) == (len(objects), sum(item.text == "1" for item in objects))
    assert summary.images == COUNTS
    assert "there already" in str(summary)


def test_nothing_but_the_finished_folder_is_left(shapes, tmp_path):
    assert list(shapes.parent.iterdir()) == [shapes]
    (tmp_path / "empty").mkdir()
    assert make_shapes(tmp_path / "empty", train=1, val=0, test=0).written
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("detseg.data.shapes_writer.json.dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", train=2, val=0, test=0)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds files that make-shapes did not write.*--root"):
        make_shapes(tmp_path, **COUNTS)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    with pytest.raises(UserError, match=r"photo\.jpg: is a file"):
        make_shapes(tmp_path / "photo.jpg", **COUNTS)


@pytest.mark.parametrize("marker", ["", "[]", "7", "{}", '{"objects": 1, "occluded": 0}'])
def test_a_folder_with_a_strange_marker_is_refused(tmp_path, marker):
    (tmp_path / "shapes.json").write_text(marker)
    with pytest.raises(UserError, match=r"holds (files that make-shapes did not write|another shapes set)"):
        make_shapes(tmp_path, **COUNTS)


def test_a_shapes_folder_of_other_arguments_is_refused_by_name(shapes):
    with pytest.raises(UserError, match=r"another shapes set \(seed 0 instead of 5\)"):
        make_shapes(shapes, **COUNTS, seed=5)


def test_a_shapes_folder_with_a_lost_file_is_reported(tmp_path):
    make_shapes(tmp_path / "shapes", train=2, val=0, test=0)
    (tmp_path / "shapes/SegmentationClass/shapes_train_0002.png").unlink()
    with pytest.raises(UserError, match=r"1 files .* missing, the first is SegmentationClass/shapes_train_0002\.png"):
        make_shapes(tmp_path / "shapes", train=2, val=0, test=0)


@pytest.mark.parametrize(("field", "value"), [("train", -1), ("size", 64), ("seed", -2), ("val", 1.5)])
def test_arguments_out_of_range_are_refused_by_name(tmp_path, field, value):
    with pytest.raises(UserError, match=rf"make-shapes: {field} is {value}, expected"):
        make_shapes(tmp_path / "shapes", **{**COUNTS, field: value})
    assert list(tmp_path.iterdir()) == []


# --- palette


def test_palette_has_the_devkit_s_colours():
    palette = voc_palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    by_hand = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128)}
    by_hand |= {8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: tuple(palette[label].tolist()) for label in by_hand} == by_hand
    assert len(np.unique(palette, axis=0)) == 256
    np.testing.assert_array_equal(voc_palette(21), palette[:21])


@pytest.mark.parametrize("colours", [2, 16, 200, 256])
def test_an_index_png_gives_back_its_labels_and_colours(tmp_path, colours):
    label_map = np.random.default_rng(0).integers(0, colours, (5, 7), dtype=np.uint8)
    write_index_png(tmp_path / "map.png", label_map, voc_palette(colours))
    np.testing.assert_array_equal(read_index_png(tmp_path / "map.png"), label_map)
    with Image.open(tmp_path / "map.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), voc_palette()[label_map])
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize(
    ("label_map", "palette", "message"),
    [
        (np.zeros((2, 2), int), voc_palette(), "uint8"),
        (np.zeros((2, 2, 3), np.uint8), voc_palette(), "uint8"),
        (np.full((2, 2), 7, np.uint8), voc_palette(5), "label 7 has no colour"),
        (np.zeros((2, 2), np.uint8), np.zeros((257, 3), np.uint8), "palette"),
    ],
)
def test_what_is_no_index_map_is_refused_and_leaves_no_file(tmp_path, label_map, palette, message):
    with pytest.raises(ValueError, match=message):
        write_index_png(tmp_path / "map.png", label_map, palette)
    assert list(tmp_path.iterdir()) == []
