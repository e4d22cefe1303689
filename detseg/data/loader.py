"""The loader: threads that read, augment and batch samples, on grain. The only file that knows grain.

Order and augmentation are functions of the seed and the position, whatever the number of threads.
"""

import cv2
import grain
import numpy as np

from detseg.data.sampling import Passes
from detseg.errors import UserError


class SampleStream:
    """The endless sequence of training samples, position by position: pass after pass, each in its own random order.

    `stream[position]` is `encode` of an augmented sample: a tuple of arrays. It depends on the seed and the position
    only, so that any part of the sequence can be made again: by another thread, or by a resumed run.
    """

    def __init__(self, dataset, prepare, seed, length, repeat_factors=None):
        """Samples of a dataset (see `detseg.data.datasets`).

        prepare:         function (Sample, numpy Generator) -> tuple of arrays of one size for all samples.
        repeat_factors:  float (N,), how often each image comes in a pass, each >= 1; None: once.
        """
        self._dataset = dataset
        self._passes = Passes(np.ones(len(dataset)) if repeat_factors is None else repeat_factors, seed, length)
        self._prepare = prepare
        self._seed = seed
        self._length = length
        self._shapes = None
        self.error = None

    def __len__(self):
        return self._length

    def __getitem__(self, position):
        index, pass_number, times_before = self._passes.at(position)
        try:
            rng = np.random.default_rng((self._seed, pass_number, index, times_before))
            arrays = self._prepare(self._dataset[index], rng)
            self._check_shapes(arrays, index)
            return arrays
        except Exception as error:
            # Keras wraps what a loader thread raises in an error of its backend: fit's caller raises this one instead.
            self.error = self.error or error
            raise

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


def load_batches(stream, batch_size, workers, start=0):
    """The stream from position `start` on, as batches: a dataset of tuples of arrays with a leading (B,).

    workers:  threads that read ahead; 0 reads in the caller's thread.
    """
    cv2.setNumThreads(0)  # OpenCV's own threads in each of ours halve the throughput
    batches = grain.MapDataset.source(stream)[start:].batch(batch_size, drop_remainder=True)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(16, workers)))


def read_in_order(dataset, workers=2):
    """The samples of a dataset one by one, first to last, read ahead by threads."""
    cv2.setNumThreads(0)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(8, workers))
    return iter(grain.MapDataset.source(dataset).to_iter_dataset(options))
