"""Images of any number of channels, and arrays in any memory order, from the file to the drawing."""

import logging

import numpy as np
import pytest
import tifffile
from pycocotools import mask as rle

from detseg.config import augmentation as schema
from detseg.config.data import CustomData, FolderData
from detseg.data import pixels
from detseg.data.augment import create_augmentation
from detseg.data.objects import Objects
from detseg.data.readers.create import create_dataset
from detseg.data.sample import Sample
from detseg.data.windows import TiffReader
from detseg.report.drawing import Overview, draw_detections, draw_label_map, draw_side_by_side

CLASSES = ("a", "b", "c")
STEPS = [
    schema.ScaleJitter(low=0.7, high=1.4),
    schema.RandomCrop(size=(40, 70)),
    schema.Flip(direction="both"),
    schema.Rotate90(probability=1.0),
    schema.Elastic(sigma=4.0),
    schema.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
    schema.Resize(height=33, width=47),
    schema.Albumentations(name="HorizontalFlip", arguments={"p": 1.0}),
]


def sample_of(channels, order="C"):
    rng = np.random.default_rng(0)
    label_map, image = rng.integers(0, 3, (64, 50)), rng.integers(0, 256, (64, 50, channels))
    masks = np.zeros((2, 64, 50))
    masks[0, 4:40, 3:30] = masks[1, 10:64, 10:50] = 1
    boxes = np.array([[3, 4, 30, 40], [10, 10, 50, 64]], np.float32)
    arrange = lambda array, dtype: np.asarray(array, dtype, order=order)  # noqa: E731
    objects = Objects(
        arrange(boxes, np.float32), np.array([0, 1]), np.zeros(2, bool), np.zeros(2, bool), np.ones(2),
        arrange(masks, np.uint8),
    )  # fmt: skip
    return Sample(arrange(image, np.uint8), "a", None, label_map=arrange(label_map, np.uint8), objects=objects)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 11])
def test_steps_treat_each_channel_alike_and_arrays_in_any_order(step, channels):
    augment = create_augmentation([step], 255)
    results = [augment(sample_of(channels, order), np.random.default_rng(1)) for order in "CF"]
    for result in results:
        assert result.image.shape[2] == channels
        assert result.image.dtype == np.uint8
    for part in (lambda s: s.image, lambda s: s.label_map, lambda s: s.objects.boxes, lambda s: s.objects.masks):
        np.testing.assert_array_equal(part(results[0]), part(results[1]))
    if channels != 3 and step.kind != "color_jitter":  # its brightness is that of the whole image
        alone = [
            augment(sample.with_image(sample.image[..., i : i + 1], lambda a: a, lambda o: o), np.random.default_rng(1))
            for sample in [sample_of(channels)]
            for i in range(channels)
        ]
        np.testing.assert_array_equal(results[0].image, np.concatenate([sample.image for sample in alone], axis=2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_drawings_show_the_first_channels_of_arrays_in_any_order(channels, caplog):
    pixels.say_once.cache_clear()
    drawn = []
    with caplog.at_level(logging.WARNING, logger="detseg"):
        for order in "CF":
            sample = sample_of(channels, order)
            masks = [rle.encode(np.asfortranarray(mask)) for mask in sample.objects.masks]
            scores = np.asarray([0.4, 0.6], order=order)
            maps = draw_label_map(sample.image, sample.label_map, CLASSES)
            boxes = draw_detections(sample.image, sample.objects.boxes, [0, 1], CLASSES, scores, masks)
            drawn.append([maps, boxes, draw_side_by_side([np.asarray(boxes, order=order)] * 2, ["x", "y"])])
    for first, second in zip(*drawn, strict=True):
        np.testing.assert_array_equal(first, second)
    shown = sample_of(channels).image[..., : 3 if channels >= 3 else 1]
    np.testing.assert_array_equal(drawn[0][0], draw_label_map(shown, sample_of(1).label_map, CLASSES))
    said = [record.getMessage() for record in caplog.records if "drawings show" in record.getMessage()]
    assert len(said) == (channels in (2, 8))


def test_files_of_eight_bands_come_out_of_the_data_set_as_their_values_say(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    values = np.random.default_rng(0).integers(0, 4096, (64, 50, 8)).astype(np.uint16)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "images" / "x.tif", values, **options)
    np.save(tmp_path / "images" / "y.npy", values)
    for name in "xy":
        tifffile.imwrite(tmp_path / "masks" / f"{name}.tif", sample_of(1).label_map)
    split = {"images": "images", "masks": "masks"}
    data = FolderData(format="folder", root=str(tmp_path), train=split, channels=8, value_range=[0, 4095])
    dataset = create_dataset(data, "train")
    expected = np.rint(values * (255 / 4095)).astype(np.uint8)
    for i in range(2):
        np.testing.assert_array_equal(dataset[i].image, expected)
    with TiffReader(tmp_path / "images" / "x.tif", 8, (0, 4095)) as source:
        overview = Overview(source, longest=32)
        for row in range(0, 64, 16):
            overview.add(dataset[0].label_map[row : row + 16])
    assert overview.image.shape == (32, 25, 3)


def test_a_custom_data_set_has_no_files():
    data = CustomData(format="custom", channels=8, value_range=[0.0, 1.5])
    assert (data.root, data.train, data.val, data.test, data.classes) == (None,) * 5
    assert (data.channels, data.value_range) == (8, (0, 1.5))
