"""Which regions of an image R-CNN learns from, and as what (section 2.3 and appendix C)."""

from dataclasses import dataclass

import numpy as np

from detseg.metrics.voc import box_overlaps

_FORGIVEN = 0.5  # share of a region that lies in a crowd from which it is no background, as in matching.py


@dataclass(frozen=True, eq=False)
class Regions:
    """The objects of an image, crowds left out, and its proposals after them: n boxes.

    boxes:     float32 (n, 4).
    labels:    int (n,), 0..K-1 of the objects, -1 of the proposals.
    overlaps:  float (n, K), the largest IoU with an object of each class, 0 where there is none.
    nearest:   int (n, K), the object of each class with that IoU, an index into the boxes; 0 where there is none.
    in_crowd:  bool (n,), whether most of it lies in a crowd: it is nobody's background.
    """

    boxes: np.ndarray
    labels: np.ndarray
    overlaps: np.ndarray
    nearest: np.ndarray
    in_crowd: np.ndarray

    @property
    def is_object(self):
        return self.labels >= 0


def regions_of(objects, proposals, class_count):
    """The Regions of an image's Objects and proposals (P, 4)."""
    crowds, objects = objects.boxes[objects.is_crowd], objects.select(~objects.is_crowd)
    boxes = np.concatenate([objects.boxes, proposals]).astype(np.float32)  # (n, 4)
    labels = np.concatenate([objects.labels, np.full(len(proposals), -1)])
    overlaps = np.zeros((len(boxes), class_count))
    nearest = np.zeros((len(boxes), class_count), int)
    ious = box_overlaps(boxes, objects.boxes)  # (n, G)
    for k in np.unique(objects.labels):
        own = np.flatnonzero(objects.labels == k)
        overlaps[:, k] = ious[:, own].max(axis=1)
        nearest[:, k] = own[ious[:, own].argmax(axis=1)]
    coverage = box_overlaps(boxes, crowds, np.ones(len(crowds), bool))
    return Regions(boxes, labels, overlaps, nearest, (coverage > _FORGIVEN).any(axis=1))


def draw_crops(sample, options, class_count, images, rng):
    """The boxes that an image gives to a batch of fine-tuning, and what they are.

    sample:   an augmented Sample.
    images:   how many share the batch of options.batch_crops.
    Returns   boxes (R, 4), labels int32 (R,), 0..K-1 or K for background. Drawn are as many objects and as much
              background as the paper has them, some twice where there are too few; where there is none of one kind, the
              other fills up. An image without proposals and objects is background as a whole.
    """
    regions = regions_of(sample.objects, sample.proposals[: options.train_proposals], class_count)
    count = options.batch_crops // images
    largest = regions.overlaps.max(axis=1, initial=0)  # (n,)
    foreground = np.flatnonzero(largest >= options.foreground_iou)
    background = np.flatnonzero((largest < options.foreground_iou) & ~regions.in_crowd)
    if not len(foreground) and not len(background):
        height, width = sample.image.shape[:2]
        return np.tile(np.array([[0, 0, width, height]], np.float32), (count, 1)), np.full(count, class_count, np.int32)
    wanted = round(count * options.foreground_share) if len(background) else count
    first = _drawn(foreground, wanted if len(foreground) else 0, rng)
    chosen = np.concatenate([first, _drawn(background, count - len(first), rng)])
    labels = np.where(largest[chosen] >= options.foreground_iou, regions.overlaps[chosen].argmax(axis=1), class_count)
    return regions.boxes[chosen], labels.astype(np.int32)


def _drawn(indices, count, rng):
    """`count` of the indices, each once where there are enough."""
    return rng.choice(indices, count, replace=count > len(indices)) if count else np.zeros(0, int)
