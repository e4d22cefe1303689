import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config.augmentation import (
    Albumentations,
    ColorJitter,
    Elastic,
    Flip,
    RandomCrop,
    Resize,
    Rotate90,
    ScaleJitter,
)
from detseg.data.augment import create_augmentation, resize_sample, resized_size
from detseg.data.sample import Sample
from detseg.errors import UserError


def labelled_ramp(height=48, width=64, channels=3):
    """A sample whose label map is its first image channel, so that any shift between the two shows."""
    label_map = (np.arange(height)[:, None] // 8 * 8 + np.arange(width)[None] // 8).astype(np.uint8)
    image = np.repeat(label_map[..., None], channels, axis=-1)
    return Sample(image=image, name="ramp", path=Path("ramp.png"), label_map=label_map)


CLASS_PIXELS = np.arange(1, 49)  # of the ramp's 48 labels in some training split


def augment(items, sample, seed=0, class_pixels=CLASS_PIXELS):
    return create_augmentation(items, 255, class_pixels)(sample, np.random.default_rng(seed))


ALL_PRESETS = [
    ScaleJitter(low=0.5, high=2.0),
    RandomCrop(size=(40, 56)),
    RandomCrop(size=(36, 50), rare_classes=0.5, max_class_share=0.1),
    Flip(direction="both"),
    Rotate90(probability=0.75),
    Elastic(sigma=4.0, grid=3),
    ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
    Resize(height=32, width=24),
    Albumentations(name="Affine", arguments={"rotate": [-30, 30], "p": 1.0}),
]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_the_result_is_a_function_of_the_seed_only(seed):
    chain = create_augmentation(ALL_PRESETS, 255, CLASS_PIXELS)
    first = chain(labelled_ramp(), np.random.default_rng(seed))
    chain(labelled_ramp(), np.random.default_rng(1))  # whatever came between
    np.random.seed(0)  # noqa: NPY002 - the global state has no say
    second = chain(labelled_ramp(), np.random.default_rng(seed))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label_map, second.label_map)
    assert first.image.shape == (32, 24, 3)
    assert first.label_map.shape == (32, 24)


def test_the_input_sample_is_left_alone():
    sample = labelled_ramp()
    image, label_map = sample.image.copy(), sample.label_map.copy()
    for item in ALL_PRESETS:
        augment([item], sample, seed=3)
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.label_map, label_map)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_random_crop_keeps_image_and_labels_together_and_ignores_its_padding(seed, height, width):
    result = augment([RandomCrop(size=(height, width))], labelled_ramp(), seed)
    assert result.image.shape == (height, width, 3)
    assert result.label_map.shape == (height, width)
    inside = result.label_map != 255
    np.testing.assert_array_equal(result.image[inside][:, 0], result.label_map[inside])
    np.testing.assert_array_equal(result.image[~inside], np.broadcast_to([124, 116, 104], ((~inside).sum(), 3)))
    assert inside.sum() == min(height, 48) * min(width, 64)


def test_random_crop_reaches_every_place():
    starts = set()
    for seed in range(100):
        result = augment([RandomCrop(size=(46, 64))], labelled_ramp(), seed)
        starts.add(int((result.label_map[:, 0] == 0).sum()))
    assert starts == {6, 7, 8}


def labelled(label_map):
    label_map = np.asarray(label_map, np.uint8)
    image = np.repeat(label_map[..., None], 3, axis=-1)
    return Sample(image=image, name="labelled", path=Path("labelled.png"), label_map=label_map)


def single_pixel(row, column, height=30, width=40):
    """Class 0 with one pixel of class 1."""
    label_map = np.zeros((height, width), np.uint8)
    label_map[row, column] = 1
    return labelled(label_map)


@given(st.integers(0, 2**32 - 1), st.integers(0, 29), st.integers(0, 39), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_a_crop_for_a_rare_class_has_its_pixel_wherever_it_lies(seed, row, column, height, width):
    item = RandomCrop(size=(height, width), rare_classes=1.0)
    result = augment([item], single_pixel(row, column), seed, class_pixels=np.array([0, 10]))
    assert (result.label_map == 1).sum() == 1
    np.testing.assert_array_equal(result.image[..., 0] == 1, result.label_map == 1)
    assert (result.label_map != 255).sum() == min(height, 30) * min(width, 40)


def test_a_crop_for_a_rare_class_has_its_pixel_anywhere_in_it():
    item = RandomCrop(size=(3, 2), rare_classes=1.0)
    places = {
        tuple(np.argwhere(augment([item], single_pixel(9, 9), seed, np.array([0, 1])).label_map == 1)[0].tolist())
        for seed in range(100)
    }
    assert places == {(row, column) for row in range(3) for column in range(2)}


def test_rare_classes_are_drawn_by_the_inverse_of_their_pixels_in_the_split():
    # Windows of one pixel: p = (1/60, 1/30, 1/10) / (1/60 + 1/30 + 1/10) = (1/9, 2/9, 6/9); class 3 isn't in the image.
    sample = labelled([[0] * 8 + [1] * 3 + [2, 255]])
    item = RandomCrop(size=(1, 1), rare_classes=1.0)
    chain = create_augmentation([item], 255, np.array([60, 30, 10, 1]))
    drawn = [int(chain(sample, np.random.default_rng(seed)).label_map[0, 0]) for seed in range(3000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 3000, [1 / 9, 2 / 9, 6 / 9, 0], atol=0.03)


def test_crops_for_rare_classes_are_as_many_as_asked_for():
    item = RandomCrop(size=(1, 1), rare_classes=0.25)
    chain = create_augmentation([item], 255, np.array([10**9, 1]))
    sample = single_pixel(0, 0)
    found = sum(int(chain(sample, np.random.default_rng(seed)).label_map[0, 0]) for seed in range(2000))
    assert abs(found / 2000 - 0.25) < 0.04


def test_an_image_without_any_class_is_cropped_anywhere():
    sample = labelled(np.full((30, 40), 255))
    item = RandomCrop(size=(20, 20), rare_classes=1.0)
    image = np.arange(30 * 40 * 3).reshape(30, 40, 3).astype(np.uint8)
    sample = dataclasses.replace(sample, image=image)
    starts = {tuple(augment([item], sample, seed, np.array([5, 5])).image[0, 0].tolist()) for seed in range(50)}
    assert len(starts) > 20


def test_ignored_pixels_are_no_class_even_where_their_label_is_among_the_classes():
    sample = labelled([[0] * 9 + [1]])
    chain = create_augmentation([RandomCrop(size=(1, 1), rare_classes=1.0)], 0, np.array([0, 7]))
    assert all(chain(sample, np.random.default_rng(seed)).label_map[0, 0] == 1 for seed in range(20))


def test_a_crop_that_asks_for_nothing_more_is_the_plain_one():
    for seed in range(20):
        plain = augment([RandomCrop(size=(30, 30))], labelled_ramp(), seed)
        rng = np.random.default_rng(seed)
        row, column = rng.integers(0, 19), rng.integers(0, 35)  # nothing else is drawn: the crops of older runs stay
        np.testing.assert_array_equal(plain.label_map, labelled_ramp().label_map[row:, column:][:30, :30])


def test_crops_avoid_a_class_that_fills_them_where_they_can():
    label_map = np.zeros((20, 100), np.uint8)
    label_map[:, 70:] = 1  # a window at column 55 to 65, 11 of 81 places, has at least a quarter of each class
    share = [
        (augment([RandomCrop(size=(20, 20), max_class_share=0.75)], labelled(label_map), seed).label_map == 0).mean()
        for seed in range(200)
    ]
    kept = np.mean([0.25 <= value <= 0.75 for value in share])
    np.testing.assert_allclose(kept, 1 - (70 / 81) ** 10, atol=0.09)


def test_crops_of_one_class_or_none_end_after_their_tries():
    for label in (3, 255):
        item = RandomCrop(size=(8, 8), max_class_share=0.5)
        assert (augment([item], labelled(np.full((20, 20), label))).label_map == label).all()


def test_flips_move_image_and_labels_together_in_half_of_the_cases():
    sample = labelled_ramp()
    flipped = 0
    for seed in range(200):
        result = augment([Flip(direction="horizontal")], sample, seed)
        np.testing.assert_array_equal(result.image[..., 0], result.label_map)
        flipped += not np.array_equal(result.label_map, sample.label_map)
        assert np.array_equal(np.sort(result.label_map, axis=1), np.sort(sample.label_map, axis=1))
    assert 70 < flipped < 130


def test_scaling_never_makes_new_labels_and_keeps_alignment():
    sample = labelled_ramp()
    for seed in range(20):
        result = augment([ScaleJitter(low=0.4, high=2.5)], sample, seed)
        assert set(np.unique(result.label_map)) <= set(np.unique(sample.label_map))
        # Blocks are 8 pixels wide: away from their borders, image and label agree.
        agree = np.abs(result.image[..., 0].astype(int) - result.label_map) <= 1
        assert agree.mean() > 0.7


@pytest.mark.parametrize("scale", [2, 3])
def test_labels_are_enlarged_pixel_by_pixel(scale):
    sample = labelled_ramp()
    result = resize_sample(sample, 48 * scale, 64 * scale)
    np.testing.assert_array_equal(result.label_map, np.kron(sample.label_map, np.ones((scale, scale), np.uint8)))


def test_colour_jitter_of_strength_zero_changes_nothing_and_others_keep_labels():
    sample = labelled_ramp()
    same = augment([ColorJitter()], sample)
    np.testing.assert_array_equal(same.image, sample.image)
    changed = augment([ColorJitter(brightness=0.5)], sample)
    assert changed.label_map is sample.label_map
    assert not np.array_equal(changed.image, sample.image)


def test_brightness_and_saturation_by_hand():
    image = np.full((4, 4, 3), (100, 50, 200), np.uint8)
    sample = Sample(image=image, name="a", path=Path("a"))
    brightness = 1 + 0.5 * (2 * np.random.default_rng(7).random() - 1)
    result = augment([ColorJitter(brightness=0.5)], sample, seed=7).image
    np.testing.assert_allclose(result[0, 0], np.array([100, 50, 200]) * brightness, atol=0.51)
    rng = np.random.default_rng(7)
    rng.random(2)
    saturation = 1 + (2 * rng.random() - 1)
    result = augment([ColorJitter(saturation=1.0)], sample, seed=7).image
    luma = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    expected = saturation * np.array([100, 50, 200]) + (1 - saturation) * luma
    np.testing.assert_allclose(result[0, 0], expected.clip(0, 255), atol=0.51)


def test_hue_leaves_greys_as_they_are():
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
    result = augment([ColorJitter(hue=0.5)], Sample(image=image, name="a", path=Path("a")), seed=1)
    np.testing.assert_allclose(result.image.astype(int), image, atol=1)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channel_counts_go_through_all_presets(channels):
    items = [item for item in ALL_PRESETS if not isinstance(item, Albumentations)]
    assert augment(items, labelled_ramp(channels=channels), seed=2).image.shape == (32, 24, channels)


def test_samples_without_labels_go_through_all_presets():
    sample = Sample(image=labelled_ramp().image, name="a", path=Path("a"))
    result = augment(ALL_PRESETS, sample)
    assert result.label_map is None
    assert result.image.shape == (32, 24, 3)


@pytest.mark.parametrize("item", ALL_PRESETS, ids=lambda item: type(item).__name__)
def test_instance_ids_move_with_the_labels_and_end_where_padding_begins(item):
    sample = labelled_ramp()
    sample = dataclasses.replace(sample, instance_ids=sample.label_map.astype(np.int32) * 1000 + 1)
    for seed in range(4):
        result = augment([item], sample, seed)
        expected = np.where(result.label_map == 255, 0, result.label_map.astype(np.int32) * 1000 + 1)
        assert result.instance_ids.dtype == np.int32
        np.testing.assert_array_equal(result.instance_ids, expected)


def test_quarter_turns_are_equally_frequent_and_keep_image_and_labels_together():
    sample = labelled_ramp()
    seen = [augment([Rotate90(probability=0.75)], sample, seed) for seed in range(400)]
    turns = [next(k for k in range(4) if np.array_equal(np.rot90(sample.label_map, k), s.label_map)) for s in seen]
    assert all(70 < turns.count(k) < 130 for k in range(4))
    assert all(np.array_equal(s.image[..., 0], s.label_map) for s in seen)


def test_what_albumentations_pads_is_ignored():
    item = Albumentations(name="Affine", arguments={"translate_px": {"x": [20, 20], "y": [0, 0]}, "p": 1.0})
    result = augment([item], labelled_ramp())
    assert (result.label_map[:, :19] == 255).all()
    assert (result.label_map[:, 21:] != 255).all()


def test_albumentations_mistakes_are_told_when_it_is_created():
    with pytest.raises(UserError, match="GaussNoize"):
        create_augmentation([Albumentations(name="GaussNoize")], 255)
    with pytest.raises(UserError, match=r"GaussNoise.*strenght"):
        create_augmentation([Albumentations(name="GaussNoise", arguments={"strenght": 1})], 255)
    with pytest.raises(UserError, match="Compose"):
        create_augmentation([Albumentations(name="Compose")], 255)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("RandomCrop", {"height": 1000, "width": 1000}, "crop"),
        ("PixelDropout", {"p": 1.0, "dropout_prob": 0.9, "mask_drop_value": 9}, "label 9 is that of no class"),
    ],
)
def test_what_albumentations_can_not_do_names_the_transform_and_the_image(name, arguments, expected):
    step = create_augmentation([Albumentations(name=name, arguments=arguments)], 255, np.ones(3, int))
    sample = Sample(np.zeros((40, 50, 3), np.uint8), "im5", None, label_map=np.zeros((40, 50), np.uint8))
    with pytest.raises(UserError, match=rf"augmentation: albumentations {name}: im5: (?i:.*{expected})"):
        step(sample, np.random.default_rng(0))


def test_albumentations_is_imported_only_when_a_config_names_it():
    code = (
        "import sys; from detseg.config.augmentation import Flip; from detseg.data.augment import create_augmentation; "
        "create_augmentation([Flip(direction='both')], 255); "
        "sys.exit(bool({'albumentations', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("resize", "expected"),
    [(None, (300, 500)), ((64, 96), (64, 96))],
)
def test_resized_size_of_none_and_a_pair(resize, expected):
    assert resized_size(resize, 300, 500) == expected


def test_resized_size_by_shorter_and_longer_side():
    from types import SimpleNamespace

    assert resized_size(SimpleNamespace(shorter=600, longer=2000), 300, 500) == (600, 1000)
    assert resized_size(SimpleNamespace(shorter=600, longer=800), 300, 500) == (480, 800)
    assert resized_size(SimpleNamespace(shorter=150, longer=800), 500, 300) == (250, 150)


def test_opencv_nearest_resize_takes_pixel_centres():
    """The reason for INTER_NEAREST_EXACT, should a later OpenCV change it."""
    line = np.arange(9, dtype=np.uint8)[None]
    assert cv2.resize(line, (3, 1), interpolation=cv2.INTER_NEAREST_EXACT).tolist() == [[1, 4, 7]]
