"""One image through a detector: resized as the config says, padded, detected, mapped back to its original size."""

import keras
import numpy as np

from detseg.data.augment import resize_image, resized_size
from detseg.data.buckets import padded_images, single_image_shape
from detseg.inference.prediction import Prediction


class DetectionInference:
    """A detector as a function of one uint8 image (H, W, C) of any size -> Prediction.

    It reads the model's weights at each call, so it stays valid while the model trains.

    model:            FasterRCNN, RetinaNet, or what has their `detect`.
    resize:           the config's data.resize. With {shorter, longer} images are padded to the few shapes that training
                      has too, otherwise to multiples of 32.
    score_threshold:  only detections of a score above it; None: the model's own.
    max_detections:   None: the model's own.
    """

    def __init__(self, model, resize=None, score_threshold=None, max_detections=None):
        self._resize = resize
        self._detect = _COMPILERS[keras.backend.backend()](model, score_threshold, max_detections)

    def __call__(self, image):
        size = image.shape[:2]
        resized = resize_image(image, *resized_size(self._resize, *size))
        height, width = resized.shape[:2]
        padded = padded_images([resized], single_image_shape(self._resize, (height, width)))
        detections = self._detect(padded, np.array([[height, width]], "float32"))
        boxes, labels, scores, valid = (np.asarray(part)[0] for part in detections)
        factors = np.array([size[1] / width, size[0] / height] * 2, "float32")  # 1 where nothing was resized
        limits = np.array([size[1], size[0]] * 2, "float32")
        return Prediction(
            boxes=np.minimum(boxes[valid] * factors, limits),
            labels=labels[valid].astype("int64"),
            scores=scores[valid],
        )


def _compile_tensorflow(model, score_threshold, max_detections):
    """One graph for images of all sizes."""
    import tensorflow as tf

    images = tf.TensorSpec((None, None, None, model.channels), tf.uint8)
    sizes = tf.TensorSpec((None, 2), tf.float32)

    @tf.function(input_signature=[images, sizes], autograph=False)  # nothing to convert, which takes seconds
    def detect(images, sizes):
        return model.detect(images, sizes, score_threshold, max_detections)

    return detect


def _compile_jax(model, score_threshold, max_detections):
    """One executable an image size, kept by jax.jit."""
    import jax

    @jax.jit
    def detect(values, images, sizes):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return model.detect(images, sizes, score_threshold, max_detections, under_xla=True)

    return lambda images, sizes: detect([variable.value for variable in model.variables], images, sizes)


_COMPILERS = {"tensorflow": _compile_tensorflow, "jax": _compile_jax}
