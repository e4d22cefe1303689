"""The loader: threads that read, augment and batch samples, on grain. The only file that knows grain."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import grain
import keras
import numpy as np

from detseg.data.sampling import Passes
from detseg.errors import UserError
from detseg.process import loader_threads


@dataclass(frozen=True, eq=False)
class Batches:
    """How a task makes batches of samples."""

    prepare: Callable  # (Sample, numpy Generator) -> tuple of arrays, augmented
    # List of these tuples -> (x, y) of Model.fit. None: they are stacked, and all have to come out in one size.
    collate: Callable | None = None
    groups: np.ndarray | None = None  # int (N,): batches are drawn within a group of images. None: from all images


class SampleStream:
    """The sequence of a training's samples, position by position: pass after pass, each in its own random order.

    `stream[position]` is `batches.prepare` of a sample, which depends on the seed and the position only: a resumed run
    makes the same.
    """

    def __init__(self, dataset, batches, seed, length, batch_size=1, repeat_factors=None):
        """length: positions. repeat_factors: float (N,), how often each image comes in a pass, >= 1; None: once."""
        self.batches, self.batch_size, self.error = batches, batch_size, None
        self._dataset, self._seed, self._length, self._shapes = dataset, seed, length, None
        factors = np.ones(len(dataset)) if repeat_factors is None else repeat_factors
        self._passes = Passes(factors, seed, length, batches.groups, batch_size)

    def __len__(self):
        return self._length

    def __getitem__(self, position):
        index, pass_number, times_before = self._passes.at(position)
        with self._errors_kept():
            rng = np.random.default_rng((self._seed, pass_number, index, times_before))
            arrays = self.batches.prepare(_named(self._dataset[index], self._dataset, index), rng)
            shapes = tuple(array.shape for array in arrays) if self.batches.collate is None else None
            self._shapes = self._shapes or shapes
            if shapes != self._shapes:
                raise UserError(
                    f"{self._dataset.names[index]}: augmentation made it {shapes[0]}, but another image "
                    f"{self._shapes[0]}; batches need one size: end augmentation with random_crop or resize"
                )
            return arrays

    def collate(self, samples):
        with self._errors_kept():
            return self.batches.collate(samples)

    @contextlib.contextmanager
    def _errors_kept(self):
        """Keras wraps what a loader thread raises in an error of its backend: fit's caller raises this one instead."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def names(self, start, count):
        """The names of the `count` samples from position `start` on."""
        return [self._dataset.names[self._passes.at(start + i)[0]] for i in range(count)]


def load_batches(stream, workers, start=0):
    """A SampleStream from position `start` on, as an iterable of batches; 0 workers read in the caller's thread."""
    collate = None if stream.batches.collate is None else stream.collate
    batches = grain.MapDataset.source(stream)[start:]
    batches = batches.batch(stream.batch_size, drop_remainder=True, batch_fn=collate)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(16, workers)))


def load_for_fit(stream, workers, start=0):
    """`load_batches` for Model.fit. On TensorFlow, batches of `collate`, of whose shapes only H and W of the images
    (B, H, W, C) may differ from batch to batch, share one trace of the train step.
    """
    batches = load_batches(stream, workers, start)
    if stream.batches.collate is None or keras.backend.backend() != "tensorflow":
        return batches
    return _tensorflow_dataset(batches, example=next(iter(load_batches(stream, 0, start))))


def _tensorflow_dataset(batches, example):
    """Batches as tf.data, with shapes told: Keras would take those of the first two batches for those of all."""
    import tensorflow as tf

    def read():
        with contextlib.closing(iter(batches)) as iterator:  # its threads end when nobody reads on
            yield from iterator

    images, truth = example
    image_spec = tf.TensorSpec((len(images), None, None, images.shape[3]), images.dtype)
    truth_specs = {name: tf.TensorSpec(array.shape, array.dtype) for name, array in truth.items()}
    return tf.data.Dataset.from_generator(read, output_signature=(image_spec, truth_specs)).prefetch(2)


def read_in_order(dataset, workers=2):
    """The samples of a dataset one by one, first to last, read ahead by threads."""
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(8, workers))
    with loader_threads():
        for i, sample in enumerate(grain.MapDataset.source(dataset).to_iter_dataset(options)):
            yield _named(sample, dataset, i)


def _named(sample, dataset, i):
    """The i-th sample with the data set's name for it, where it has none of its own."""
    return sample if sample.name else replace(sample, name=dataset.names[i])
