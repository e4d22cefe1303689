"""Streams of samples and batches, alone and in Model.fit."""

import importlib.util
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from detseg.data.buckets import bucket_groups, object_arrays, object_batch, shape_buckets
from detseg.data.loader import Batches, SampleStream, _tensorflow_dataset, load_batches, load_for_fit, read_in_order
from detseg.data.objects import Objects
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


SIZES = [(40, 60), (60, 40), (96, 33), (64, 64), (33, 96), (30, 96), (64, 50)]
BUCKETS = shape_buckets(None, None, SIZES)
collate = partial(object_batch, buckets=BUCKETS, max_objects=6)


class Boxes(Numbers):
    """A dataset of images of several sizes, with as many boxes as their index."""

    def __getitem__(self, index):
        height, width = SIZES[index]
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        boxes = (np.sort(rng.random((index, 2, 2)), axis=1) * [width, height]).reshape(index, 4).astype(np.float32)
        flags = np.arange(index) == 4
        objects = Objects(boxes, rng.integers(0, 5, index), flags, flags, boxes[:, 2] * 1.0)
        return Sample(image, self.names[index], Path(self.names[index]), objects=objects)


def object_stream(batch_size=2, length=28, collate=collate):
    groups = bucket_groups(SIZES, None, BUCKETS)

    def prepare(sample, rng):
        return object_arrays(sample)

    return SampleStream(Boxes(), Batches(prepare, collate, groups), 5, length, batch_size)


class Summing(keras.Model):
    """Its loss is a figure of the batch. Nothing is learnt."""

    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="ones", name="weight")
        self.built = True
        self.traced_shapes = []

    def call(self, images):
        return self.weight * ops.mean(ops.cast(images, "float32"))

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        self.traced_shapes.append(tuple(x.shape))
        return y_pred + figure(ops, y)


def figure(backend, truth):
    """Of all ground truth: sizes, and boxes that are no crowds, times their labels."""
    used = backend.logical_and(truth["labels"] >= 0, backend.logical_not(truth["is_crowd"]))
    labels = backend.where(used, truth["labels"], 0)[..., None]
    return backend.sum(backend.multiply(truth["boxes"], labels)) / 100 + backend.sum(truth["image_sizes"])


def fitted(batch_size=2, workers=2, start=0, epochs=2):
    """(the losses of a run of fit on objects, the shapes that it traced)."""
    model = Summing()
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=None, jit_compile=keras.backend.backend() == "jax")
    stream = object_stream(batch_size)
    steps = (len(stream) - start) // batch_size // epochs
    batches = load_for_fit(stream, workers, start)
    history = model.fit(batches, steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"], model.traced_shapes


def prepare(sample, rng):
    return sample.image, np.full(1, rng.integers(1000))


def batches(workers, start=0, seed=5, length=21, repeat_factors=None):
    stream = SampleStream(Numbers(), Batches(prepare), seed, length, 3, repeat_factors)
    return [
        (images[:, 0, 0, 0].tolist(), noise[:, 0].tolist()) for images, noise in load_batches(stream, workers, start)
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
    stream = SampleStream(Numbers(), Batches(prepare), 5, 21, 3, repeat_factors=[1, 2, 1, 1.5, 1, 1, 1])
    images = [images[:, 0, 0, 0].tolist() for images, _ in load_batches(stream, 2)]
    for step, indices in enumerate(images):
        assert stream.names(step * 3, 3) == [f"image{index}" for index in indices]


def test_batches_larger_than_the_data_repeat_it():
    stream = SampleStream(Numbers(2), Batches(prepare), 0, 10, 5)
    ((images, _), (_, _)) = load_batches(stream, 2)
    assert sorted(images[:4, 0, 0, 0].tolist()) == [0, 0, 1, 1]


def test_an_error_in_a_thread_is_kept_for_the_caller():
    def fail(sample, rng):
        raise UserError("mask.png: gone")

    stream = SampleStream(Numbers(), Batches(fail), 0, 6, 3)
    with pytest.raises(Exception, match="gone"):
        list(load_batches(stream, 2))
    assert isinstance(stream.error, UserError)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_in_order_gives_every_sample_once(workers):
    assert [sample.name for sample in read_in_order(Numbers(), workers)] == [f"image{index}" for index in range(7)]


# ----- batches of several sizes --------------------------------------------------------------------------------------

ON_JAX = """
import sys
import keras, numpy as np
from test_loader import fitted

assert keras.backend.backend() == "jax"
losses, shapes = fitted()
np.savez(sys.argv[1], losses=losses, shapes=sorted(set(shapes)))
"""


def object_batches(workers=0, start=0, batch_size=2):
    return list(load_batches(object_stream(batch_size), workers, start))


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, batch, other)


def expected_losses(epochs=2):
    losses = [images.astype(np.float64).mean() + figure(np, truth) for images, truth in object_batches()]
    return np.mean(np.reshape(losses, (epochs, -1)), axis=1)


def test_batches_of_several_sizes_hold_every_image_of_a_pass_and_do_not_depend_on_threads():
    whole = object_batches()
    assert len({images.shape for images, _ in whole}) > 2
    assert_same_batches(object_batches(workers=3), whole)
    assert_same_batches(object_batches(workers=2, start=8), whole[4:])
    sizes = [tuple(size) for _, truth in whole for size in truth["image_sizes"]]
    assert all(sorted(sizes[start : start + 7]) == sorted(SIZES) for start in range(0, 28, 7))


def test_batches_of_one_group_are_not_padded_to_another_orientation():
    groups = bucket_groups(SIZES, None, BUCKETS)
    of_size = dict(zip(SIZES, groups, strict=True))
    of_batches = [{of_size[tuple(size)] for size in truth["image_sizes"]} for _, truth in object_batches()]
    shapes = [images.shape[1:3] for images, _ in object_batches()]
    alone = [(BUCKETS[min(group)], shape) for group, shape in zip(of_batches, shapes, strict=True) if len(group) == 1]
    assert len(alone) > 2
    assert all(bucket == shape for bucket, shape in alone)


def test_fit_traces_its_step_once_over_all_shapes_and_sees_all_ground_truth():
    losses, shapes = fitted()
    assert set(shapes) == {(2, None, None, 3)}
    assert len(shapes) == 1
    np.testing.assert_allclose(losses, expected_losses(), rtol=1e-5)


def test_fit_taken_up_in_the_middle_goes_on_as_the_whole_run():
    (_, second), _ = fitted()
    assert fitted(start=14, epochs=1)[0] == pytest.approx([second], rel=1e-6)


def test_what_fit_gets_can_be_read_again_from_where_it_started():
    batches = load_for_fit(object_stream(), 2, 4)
    first = [keras.tree.map_structure(np.array, batch) for batch in batches]
    next(iter(batches))  # a reader that leaves early
    assert_same_batches([keras.tree.map_structure(np.array, batch) for batch in batches], first)
    assert_same_batches(first, object_batches()[2:])


def test_reading_stops_when_fit_does():
    closed = threading.Event()

    class Batches:
        def __iter__(self):
            try:
                while True:
                    yield example
            finally:
                closed.set()

    example = collate([object_arrays(Boxes()[0])])
    model = Summing()
    model.compile(optimizer="sgd", loss=None)
    model.fit(_tensorflow_dataset(Batches(), example), steps_per_epoch=2, shuffle=False, verbose=0)
    assert closed.wait(timeout=60)  # by a thread of TensorFlow


def test_a_crowded_image_in_a_batch_is_kept_for_the_caller_of_fit():
    stream = object_stream(collate=partial(object_batch, buckets=BUCKETS, max_objects=5))
    model = Summing()
    model.compile(optimizer="sgd", loss=None)
    start = next(position for position in range(0, 28, 2) if "image6" not in stream.names(position, 2))
    batches = load_for_fit(stream, 2, start)
    assert stream.error is None
    with pytest.raises(Exception, match="objects"):
        model.fit(batches, steps_per_epoch=8, shuffle=False, verbose=0)
    assert isinstance(stream.error, UserError)
    assert str(stream.error).startswith("image6: it has 6 objects")


def test_images_of_different_sizes_without_a_way_to_batch_them_are_refused():
    stream = SampleStream(Boxes(), Batches(lambda sample, rng: (sample.image,)), 5, 28, 2)
    with pytest.raises(UserError, match="batches need one size"):
        [stream[position] for position in range(7)]


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_fit_on_jax_takes_all_shapes_and_sees_the_same_ground_truth(tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # quick to compile
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    file = tmp_path / "jax.npz"
    subprocess.run([sys.executable, "-c", ON_JAX, str(file)], env=environment, check=True, timeout=600)
    result = np.load(file)
    np.testing.assert_allclose(result["losses"], expected_losses(), rtol=1e-5)
    shapes = {images.shape for images, _ in object_batches()}
    assert shapes <= {tuple(shape) for shape in result["shapes"]}
