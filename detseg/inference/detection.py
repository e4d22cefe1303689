"""Images through a detector: resized as the config says, padded, detected, mapped back to their original size."""

import keras
import numpy as np

from detseg.data.augment import resize_image, resized_size
from detseg.data.buckets import padded_images, single_image_shape
from detseg.inference.compile import compile_for
from detseg.inference.paste import paste_masks
from detseg.inference.prediction import DetectionPredictionOptions, Prediction

PLAIN = DetectionPredictionOptions()


class DetectionInference:
    """A detector as a function of uint8 images (H, W, C) of any size -> Prediction, also while it trains.

    model:    MaskRCNN, FasterRCNN, RetinaNet, FastRCNN, or what has their `detect` and `options`.
    resize:   the config's data.resize. With {shorter, longer} images are padded to training's few shapes, otherwise to
              multiples of 32.
    propose:  for a model that is given proposals: function image -> proposals (P, 4), for images that come without.
    """

    def __init__(self, model, resize=None, propose=None):
        self._model, self._resize, self._propose, self._compiled = model, resize, propose, {}

    def __call__(self, image, options=PLAIN, proposals=None):
        """The Prediction of one image. options: DetectionPredictionOptions; proposals: (P, 4), or None to find them."""
        return self.batch([image], options, None if proposals is None else [proposals])[0]

    def batch(self, images, options=PLAIN, proposals=None):
        """The Predictions of images of one size, list of (H, W, C), which go through the model together.

        proposals:  list of (P, 4), as of `__call__`.
        """
        size = images[0].shape[:2]
        resized = [resize_image(image, *resized_size(self._resize, *size)) for image in images]
        height, width = resized[0].shape[:2]
        if getattr(self._model.options, "padding", "shapes") == "zeros":
            padded = np.stack(resized)  # the model pads them
        else:
            padded = padded_images(resized, single_image_shape(self._resize, (height, width)))
        inputs = [padded, np.array([[height, width]] * len(images), "float32")]
        factors = np.array([size[1] / width, size[0] / height] * 2, "float32")  # 1 where nothing was resized
        if self._propose is not None:
            inputs.append(self._proposal_batch(images, proposals) / factors)
        detections = [np.asarray(part) for part in self._detect(options)(*inputs)]
        limits = np.array([size[1], size[0]] * 2, "float32")
        predictions = []
        for boxes, labels, scores, valid, *more in zip(*detections, strict=True):
            if options.score_threshold is not None:
                valid = valid & (scores > options.score_threshold)
            kept = np.flatnonzero(valid)[: options.max_detections]
            boxes, labels = np.minimum(boxes[kept] * factors, limits), labels[kept].astype("int64")
            more = self._more(more, kept, boxes, size, factors)
            predictions.append(Prediction(boxes=boxes, labels=labels, scores=scores[kept], **more))
        return predictions

    def _more(self, more, kept, boxes, size, factors):
        """What a model says of an image beside boxes, labels and scores, by its name in Prediction."""
        own = self._model.options
        if getattr(own, "reads_masks", False):
            return {"masks": paste_masks(more[0][kept], boxes, size, own.mask_threshold, own.mask_paste)}
        return {"proposals": more[0][kept] * factors} if more else {}

    def _proposal_batch(self, images, proposals):
        """float32 (B, P, 4) of the images' proposals, P as the model takes them; zeros where there are fewer."""
        batch = np.zeros((len(images), self._model.options.test_proposals, 4), "float32")
        for row, image, given in zip(batch, images, proposals or [None] * len(images), strict=True):
            found = self._propose(image) if given is None else given
            row[: len(found)] = found[: len(row)]
        return batch

    def _detect(self, options):
        """The compiled function for these options. Those within the model's own only choose among what that finds, so
        that hardly ever more than one is compiled."""
        own, threshold, most = self._model.options, options.score_threshold, options.max_detections
        key = (
            None if threshold is None or threshold >= own.score_threshold else 0.0,
            None if most is None or most <= own.max_detections else most,
        )
        if key not in self._compiled:
            under_xla = keras.backend.backend() == "jax"
            arguments = [((None, None, None, self._model.channels), "uint8"), ((None, 2), "float32")]
            if self._propose is not None:
                arguments.append(((None, own.test_proposals, 4), "float32"))
            self._compiled[key] = compile_for(
                self._model, lambda *inputs: self._model.detect(*inputs, *key, under_xla), *arguments
            )
        return self._compiled[key]
