from pathlib import Path

import numpy as np
import pytest

from detseg.data.loader import SampleStream, load_batches, read_in_order
from detseg.data.sample import Sample
from detseg.data.sampling import image_repeat_factors
from detseg.errors import UserError


class Numbers:
    """A dataset whose images hold their index."""

    split = "train"

    def __init__(self, count=7):
        self.names = [f"image{index}" for index in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = np.full((2, 3, 3), index, np.uint8)
        return Sample(image=image, name=self.names[index], path=Path(self.names[index]), label_map=image[..., 0])


def prepare(sample, rng):
    return sample.image, np.full(1, rng.integers(1000))


def batches(workers, start=0, seed=5, length=21, repeat_factors=None):
    stream = SampleStream(Numbers(), prepare, seed, length, repeat_factors)
    return [
        (images[:, 0, 0, 0].tolist(), noise[:, 0].tolist()) for images, noise in load_batches(stream, 3, workers, start)
    ]


def test_order_and_augmentation_do_not_depend_on_the_number_of_threads():
    assert batches(workers=0) == batches(workers=1) == batches(workers=4)


def test_each_pass_visits_every_image_once_in_an_order_of_its_own():
    visited = [index for images, _ in batches(workers=2) for index in images]
    passes = [visited[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_another_seed_gives_another_order_and_other_noise():
    assert batches(2, seed=5) == batches(2, seed=5)
    assert batches(2, seed=5) != batches(2, seed=6)


def test_a_stream_taken_up_in_the_middle_goes_on_as_the_whole_one():
    assert batches(2, start=9) == batches(2)[3:]


def test_images_that_come_more_than_once_do_so_for_any_threads_and_start():
    factors = [1, 2.5, 1, 1.5, 3, 1, 1.2]
    whole = batches(0, length=60, repeat_factors=factors)
    assert batches(1, length=60, repeat_factors=factors) == batches(4, length=60, repeat_factors=factors) == whole
    assert batches(2, start=33, length=60, repeat_factors=factors) == whole[11:]
    visited = [index for images, _ in whole for index in images]
    assert visited.count(4) > visited.count(0)


def test_repetitions_of_an_image_in_a_pass_are_augmented_differently():
    noise = [n for _, ns in batches(0, length=12, repeat_factors=[1, 1, 1, 1, 1, 1, 6]) for n in ns]
    assert len(set(noise)) == 12


def test_without_repeated_classes_the_stream_is_the_plain_one_to_the_bit():
    presence = np.arange(14).reshape(7, 2) % 3 > 0
    assert batches(2, repeat_factors=image_repeat_factors(presence, threshold=1e-9)) == batches(2)
    index = np.random.default_rng((5, 0)).permutation(7)[0]
    assert batches(0)[0][1][0] == np.random.default_rng((5, 0, index)).integers(1000)


def test_names_of_a_batch_are_those_of_its_images():
    stream = SampleStream(Numbers(), prepare, 5, 21, repeat_factors=[1, 2, 1, 1.5, 1, 1, 1])
    images = [images[:, 0, 0, 0].tolist() for images, _ in load_batches(stream, 3, 2)]
    for step, indices in enumerate(images):
        assert stream.names(step * 3, 3) == [f"image{index}" for index in indices]


def test_batches_larger_than_the_data_repeat_it():
    stream = SampleStream(Numbers(2), prepare, 0, 10)
    ((images, _), (_, _)) = load_batches(stream, 5, 2)
    assert sorted(images[:4, 0, 0, 0].tolist()) == [0, 0, 1, 1]


def test_an_error_in_a_thread_is_kept_for_the_caller():
    def fail(sample, rng):
        raise UserError("mask.png: gone")

    stream = SampleStream(Numbers(), fail, 0, 6)
    with pytest.raises(Exception, match="gone"):
        list(load_batches(stream, 3, 2))
    assert isinstance(stream.error, UserError)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_in_order_gives_every_sample_once(workers):
    assert [sample.name for sample in read_in_order(Numbers(), workers)] == [f"image{index}" for index in range(7)]
