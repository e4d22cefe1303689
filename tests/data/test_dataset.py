"""Data sets of one's own: what they have to define, what they get by default, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from detseg.data.checks import Finding, FindingsError
from detseg.data.dataset import Dataset
from detseg.data.loader import Batches, SampleStream, read_in_order
from detseg.data.masks import boxes_of_masks, encode_masks, label_components, mask_areas, resize_masks
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.data.scan import array_forms, scan_split
from detseg.errors import UserError

IMAGE = np.full((8, 12, 3), 90, np.uint8)
BOXES = [[1, 2, 5, 6], [0, 0, 12, 8]]


class Own(Dataset):
    """The least that a data set has to be."""

    classes = ("a", "b")

    def __init__(self, *samples):
        self.samples = samples
        self.reads = 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        self.reads += 1
        return self.samples[i]() if callable(self.samples[i]) else self.samples[i]


def labelled(label_map=None, image=IMAGE):
    return Sample(image=image, label_map=np.ones((8, 12), int) if label_map is None else label_map)


def with_boxes(boxes=BOXES, labels=(0, 1), **more):
    return Sample(image=IMAGE, objects=Objects(boxes=boxes, labels=labels, **more))


def scan(dataset, task, folder="/nowhere"):
    return scan_split(dataset, task, folder, progress=False)


def test_classes_length_and_samples_suffice_for_label_maps():
    dataset = Own(labelled(), labelled(np.zeros((8, 12), bool)))
    assert (dataset.split, dataset.channels, dataset.ignore_label) == ("train", 3, 255)
    assert (dataset.names, dataset.image_paths, dataset.category_ids) == (["0", "1"], [None, None], (1, 2))
    assert (dataset.image_ids, dataset.has_masks, dataset.fingerprint()) == ([1, 2], False, None)
    assert dataset.image(0) is IMAGE
    assert dataset.label_map(0).dtype == np.uint8
    assert dataset.true_instances(0) is None
    found = scan(dataset, "segmentation")
    assert found.class_pixels.tolist() == [96, 96]
    assert [sample.name for sample in read_in_order(dataset, 0)] == ["0", "1"]
    stream = SampleStream(dataset, Batches(lambda sample, rng: (sample.image, sample.label_map)), 0, 4)
    assert {stream[position][1].sum() for position in range(4)} == {0, 96}


def test_classes_length_and_samples_suffice_for_objects():
    dataset = Own(with_boxes(), with_boxes([], []))
    objects = dataset.objects(0)
    assert objects.areas.tolist() == [16, 96]
    assert not objects.is_crowd.any()
    assert not objects.difficult.any()
    found = scan(dataset, "detection")
    assert found.object_counts.tolist() == [2, 0]
    assert found.boxes.tolist() == BOXES
    assert not dataset.has_masks
    assert dataset.true_instances(0) is None


def test_objects_with_masks_are_true_instances():
    masks = np.zeros((2, 8, 12), bool)
    masks[0, 2:6, 1:5] = masks[1] = True
    dataset = Own(with_boxes(masks=masks, is_crowd=[0, 1]))
    assert dataset.has_masks
    codes, labels, is_crowd = dataset.true_instances(0)
    assert (rle.area(codes).tolist(), labels.tolist(), is_crowd.tolist()) == ([16, 96], [0, 1], [False, True])


@pytest.mark.parametrize(
    "boxes",
    [
        np.array(BOXES),
        np.array(BOXES, np.float64),
        np.asfortranarray(BOXES, np.float32),
        np.array(BOXES, np.float32).T.copy().T,
        tuple(map(tuple, BOXES)),
    ],
)
def test_boxes_of_any_number_type_and_order_are_converted(boxes):
    objects = Objects(boxes, np.array([0, 1], np.uint8))
    assert objects.boxes.tolist() == BOXES
    assert (objects.boxes.dtype, objects.labels.dtype) == (np.float32, np.int64)
    assert objects.boxes.flags.c_contiguous


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, r"Objects: boxes have the shape \(1, 3\), expected \(N, 4\): x1 y1 x2 y2"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes have the shape \(4,\)"),
        ({"boxes": [[1, 2, 3, 4], [1]]}, "boxes are no array"),
        ({"boxes": [["a", "b", "c", "d"]] * 2}, "boxes are of type <U1"),
        ({"labels": [0]}, r"labels have the shape \(1,\), expected .*, one for each of the 2 boxes"),
        ({"labels": [0.0, 1.0]}, "labels are of type float64, expected whole numbers"),
        ({"is_crowd": [0.5, 1]}, "is_crowd are of type float64, expected bool"),
        ({"areas": [1]}, r"areas have the shape \(1,\)"),
        ({"masks": np.zeros((2, 8), bool)}, r"masks have the shape \(2, 8\), expected \(N, H, W\)"),
        ({"masks": np.zeros((2, 8, 12))}, "masks are of type float64"),
    ],
)
def test_objects_of_another_form_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Objects(**{"boxes": BOXES, "labels": [0, 1], **arguments})


@pytest.mark.parametrize(
    ("task", "sample", "message"),
    [
        ("segmentation", (IMAGE, IMAGE), "the sample is a tuple, expected a detseg Sample"),
        ("segmentation", labelled(image=IMAGE / 255), r"field image float64 \(8, 12, 3\): expected uint8 \(H, W, 3\)"),
        ("segmentation", labelled(image=IMAGE[..., 0]), r"field image uint8 \(8, 12\): expected uint8 \(H, W, 3\)"),
        ("segmentation", labelled(image=IMAGE[:0]), r"field image uint8 \(0, 12, 3\): expected uint8 \(H, W, 3\)"),
        ("segmentation", labelled(image=[0]), "field image of type list"),
        ("segmentation", with_boxes(), "field label_map None: this task learns from it"),
        ("segmentation", labelled(np.ones((4, 4), int)), r"label_map uint8 \(4, 4\): expected the image's \(8, 12\)"),
        ("segmentation", labelled(np.full((8, 12), 2)), r"label_map 2 at row 0, column 0: expected 0..1 or the ignore"),
        ("segmentation", lambda: labelled(np.full((8, 12), 256)), r"label_map holds 256..256, expected .* 0..255"),
        ("segmentation", lambda: labelled(np.ones((8, 12))), "label_map is of type float64"),
        ("detection", labelled(), "field objects None: this task learns from it"),
        ("detection", with_boxes([BOXES[0], [3, 3, 3, 9]]), r"objects\.boxes\[1\] \[3.0, 3.0, 3.0, 9.0\]: zero width"),
        ("detection", with_boxes([BOXES[0], [3, 3, 13, 8]]), r"boxes\[1\] .*: 1 px outside of its image of 12x8"),
        ("detection", with_boxes([BOXES[0], [3, np.nan, 9, 8]]), r"boxes\[1\] .*: not all finite numbers"),
        ("detection", with_boxes(labels=[0, 2]), r"objects\.labels\[1\] 2: expected 0..1; there is no label for the b"),
        ("detection", with_boxes(labels=[-1, 0]), r"objects\.labels\[0\] -1"),
        ("detection", with_boxes(masks=np.ones((2, 4, 4), int)), r"objects\.masks uint8 \(2, 4, 4\): expected the im"),
        ("detection", with_boxes(masks=np.full((2, 8, 12), 255)), r"objects\.masks up to 255: expected 0 and 1"),
        ("detection", lambda: with_boxes([[1]]), r"boxes have the shape \(1, 1\)"),
    ],
)
def test_samples_that_make_no_sense_are_refused_by_the_scan_with_their_place(task, sample, message):
    good = labelled() if task == "segmentation" else with_boxes()
    with pytest.raises(UserError, match=message) as error:
        scan(Own(good, sample), task)
    (finding,) = error.value.findings
    assert str(error.value).startswith("split 'train': 1 problem in 2 images:")
    assert finding.file in ("Own[1] (1)", "Objects", "Sample")


def test_what_is_no_data_set_or_empty_is_refused():
    with pytest.raises(UserError, match="the data set is a list, expected a class derived from"):
        scan([labelled()], "segmentation")
    with pytest.raises(UserError, match="0 samples of 2 classes, expected at least one"):
        scan(Own(), "segmentation")


def test_a_data_set_is_scanned_each_time_unless_it_has_a_fingerprint(tmp_path, monkeypatch):
    dataset = Own(with_boxes(is_crowd=[False, True]), with_boxes([], []))
    first = scan(dataset, "detection", tmp_path)
    scan(dataset, "detection", tmp_path)
    assert dataset.reads == 4
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Own, "fingerprint", lambda self: "mine")
    for _ in range(3):
        cached = scan(dataset, "detection", tmp_path)
    assert dataset.reads == 6
    for field, (dtype, *_) in array_forms(first).items():
        np.testing.assert_array_equal(getattr(cached, field), getattr(first, field))
        assert np.asarray(getattr(cached, field)).dtype == dtype
    assert cached.image_sizes == first.image_sizes
    assert scan(Own(with_boxes(), with_boxes()), "detection", tmp_path).object_counts.tolist() == [2, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_boxes_of_a_scan_are_resized_like_objects(seed):
    rng = np.random.default_rng(seed)
    samples, expected, new_sizes = [], [], []
    for _ in range(3):
        size, new = rng.integers(1, 40, (2, 2))
        count = rng.integers(0, 5)
        corners = np.sort(rng.random((count, 2, 2)), axis=1) * size[::-1]
        boxes = corners.reshape(count, 4).astype(np.float32)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        objects = Objects(boxes, np.zeros(len(boxes), int), is_crowd=rng.random(len(boxes)) < 0.3)
        samples.append(Sample(image=np.zeros((*size, 3), np.uint8), objects=objects))
        resized = objects.resized(size.tolist(), new.tolist())
        expected.append(resized.boxes[~resized.is_crowd])
        new_sizes.append(new.tolist())
    found = scan(Own(*samples), "detection").boxes_at(new_sizes)
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_findings_tell_file_place_field_value_and_advice():
    finding = Finding("a.json", "annotations[3] (id 8)", "bbox", "box", "[1, 2, 0, 4]", "zero width")
    assert str(finding) == "a.json: annotations[3] (id 8): field bbox [1, 2, 0, 4]: zero width"
    assert str(Finding("a.png", "", "", "unreadable", "", "corrupt")) == "a.png: corrupt"
    assert FindingsError("two", [finding] * 2).findings == [finding] * 2


def test_masks_in_any_memory_order_give_the_same():
    rng = np.random.default_rng(0)
    masks = (rng.random((5, 14, 9)) < 0.4).astype(np.uint8)
    turned = np.asfortranarray(masks)
    stacked = np.ascontiguousarray(masks.transpose(1, 2, 0)).transpose(2, 0, 1)
    for other in (turned, stacked):
        assert not other.flags.c_contiguous
        assert encode_masks(other) == encode_masks(masks)
        np.testing.assert_array_equal(boxes_of_masks(other), boxes_of_masks(masks))
        np.testing.assert_array_equal(mask_areas(other), masks.sum(axis=(1, 2)))
        np.testing.assert_array_equal(resize_masks(other, (7, 20)), resize_masks(masks, (7, 20)))
        np.testing.assert_array_equal(label_components(other[0]), label_components(masks[0]))
        assert Objects(np.zeros((5, 4)), np.zeros(5, int), masks=other).masks.flags.c_contiguous
