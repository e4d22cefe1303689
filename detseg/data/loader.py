"""The loader: threads that read, augment and batch samples, on grain. The only file that knows grain.

Order and augmentation are functions of the seed and the position, whatever the number of threads.
"""

import contextlib

import cv2
import grain
import keras
import numpy as np

from detseg.data.sampling import Passes
from detseg.errors import UserError


class SampleStream:
    """The endless sequence of training samples, position by position: pass after pass, each in its own random order.

    `stream[position]` is `encode` of an augmented sample: a tuple of arrays. It depends on the seed and the position
    only, so that any part of the sequence can be made again: by another thread, or by a resumed run.
    """

    def __init__(self, dataset, prepare, seed, length, repeat_factors=None, one_size=True, groups=None, batch_size=1):
        """Samples of a dataset (see `detseg.data.datasets`).

        prepare:         function (Sample, numpy Generator) -> tuple of arrays.
        repeat_factors:  float (N,), how often each image comes in a pass, each >= 1; None: once.
        one_size:        whether the tuples of all samples have to be of the same shapes, as batches without `collate`
                         need.
        groups:          int (N,), images of one of which shall come together in batches of batch_size; None: any.
        """
        self._dataset = dataset
        factors = np.ones(len(dataset)) if repeat_factors is None else repeat_factors
        self._passes = Passes(factors, seed, length, groups, batch_size)
        self._prepare = prepare
        self._seed = seed
        self._length = length
        self._one_size = one_size
        self._shapes = None
        self.error = None

    def __len__(self):
        return self._length

    def __getitem__(self, position):
        index, pass_number, times_before = self._passes.at(position)
        try:
            rng = np.random.default_rng((self._seed, pass_number, index, times_before))
            arrays = self._prepare(self._dataset[index], rng)
            if self._one_size:
                self._check_shapes(arrays, index)
            return arrays
        except Exception as error:
            self.keep(error)
            raise

    def keep(self, error):
        """Keras wraps what a loader thread raises in an error of its backend: fit's caller raises this one instead."""
        self.error = self.error or error

    def _check_shapes(self, arrays, index):
        shapes = tuple(array.shape for array in arrays)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise UserError(
                f"{self._dataset.names[index]}: augmentation made it {shapes[0]}, but another image {self._shapes[0]}; "
                "batches need one size: end augmentation with random_crop or resize"
            )

    def names(self, start, count):
        """The names of the `count` samples from position `start` on."""
        return [self._dataset.names[self._passes.at(start + i)[0]] for i in range(count)]


def load_batches(stream, batch_size, workers, start=0, collate=None):
    """The stream from position `start` on, as batches.

    workers:  threads that read ahead; 0 reads in the caller's thread.
    collate:  function that makes a batch of the tuples of batch_size samples, such as
              `detseg.data.buckets.object_batch`; None: a tuple of arrays with a leading (B,).
    Returns   an iterable, each time from `start` on. `load_for_fit` is for Model.fit.
    """
    cv2.setNumThreads(0)  # OpenCV's own threads in each of ours halve the throughput

    def collate_samples(samples):
        try:
            return collate(samples)
        except Exception as error:
            stream.keep(error)
            raise

    batches = grain.MapDataset.source(stream)[start:]
    batches = batches.batch(batch_size, drop_remainder=True, batch_fn=None if collate is None else collate_samples)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(16, workers)))


def load_for_fit(stream, batch_size, workers, start=0, collate=None):
    """What Model.fit takes for `load_batches` of the same arguments; batches of `collate` are images (B, H, W, C), H
    and W of which may differ from batch to batch, and a dict of arrays whose shapes don't.

    On TensorFlow all of them share one trace of the train step.
    """
    batches = load_batches(stream, batch_size, workers, start, collate)
    if collate is None or keras.backend.backend() != "tensorflow":
        return batches
    return _tensorflow_dataset(batches, example=next(iter(load_batches(stream, batch_size, 0, start, collate))))


def _tensorflow_dataset(batches, example):
    """Batches as tf.data, with shapes told: Keras would take those of the first two batches for those of all."""
    import tensorflow as tf

    def read():
        with contextlib.closing(iter(batches)) as iterator:  # its threads end when nobody reads on
            yield from iterator

    images, truth = example
    image_shape = (len(images), None, None, images.shape[3])
    signature = (
        tf.TensorSpec(image_shape, images.dtype),
        {name: tf.TensorSpec(array.shape, array.dtype) for name, array in truth.items()},
    )
    return tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(2)


def read_in_order(dataset, workers=2):
    """The samples of a dataset one by one, first to last, read ahead by threads."""
    cv2.setNumThreads(0)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(8, workers))
    return iter(grain.MapDataset.source(dataset).to_iter_dataset(options))
