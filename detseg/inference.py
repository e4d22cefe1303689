"""One image through a trained model: resized as the config says, scored, mapped back to its original size."""

import functools
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from detseg.data.augment import resize_image, resized_size
from detseg.errors import UserError
from detseg.layers.resize import resize_bilinear

DEFAULT_TILE_MEMORY = 10**9  # bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image, at the image's own size; None for what its task doesn't say.

    label_map:      uint8 (H, W), 0..K-1.
    probabilities:  float32 (H, W, K), or None where they were not asked for.
    boxes:          float32 (N, 4), x1 y1 x2 y2 within the image, by falling score.
    labels:         int64 (N,), 0..K-1.
    scores:         float32 (N,).
    masks:          N compressed RLEs.
    """

    label_map: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: list | None = None


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """What evaluate and predict are asked for beside the config. A task refuses what it has not (`check_options`).

    probabilities:    bool, whether predictions carry them.
    tta:              bool, whether they are averaged over the views of the config's `tta`.
    tile:             None, "auto" or the side in pixels of the tiles in which images go through the model.
    tile_memory:      bytes for one tile, where tile is "auto".
    score_threshold:  only detections of a score above it; None: the config's.
    max_detections:   of an image; None: the config's.
    voc_xml:          bool, whether to write a VOC annotation of each image.
    voc_boxes:        "inclusive" or "continuous", the numbers in it; None: those of data.voc_boxes, else inclusive.
    """

    probabilities: bool = False
    tta: bool = False
    tile: str | int | None = None
    tile_memory: int = DEFAULT_TILE_MEMORY
    score_threshold: float | None = None
    max_detections: int | None = None
    voc_xml: bool = False
    voc_boxes: str | None = None


PLAIN = PredictionOptions()


# tta.flip -> pairs of quarter turns, and whether the turned image is then mirrored left to right
SYMMETRIES = {
    "none": ((0, False),),
    "horizontal": ((0, False), (0, True)),
    "dihedral": tuple((turns, is_mirrored) for is_mirrored in (False, True) for turns in range(4)),
}


@dataclass(frozen=True, slots=True)
class TestTimeAugmentation:
    """The views of an image whose probabilities are averaged (DeepLabv3, section 4.1: multi-scale inputs and flips;
    U-Net, section 4: rotations).

    scales:        factors on the image's height and width.
    flip:          key of `SYMMETRIES`: how each scale is seen.
    minimum_size:  pixels that no side of a view may fall below: the model's stride.
    """

    scales: tuple[float, ...]
    flip: str
    minimum_size: int

    def views(self, image):
        """Triples (image to predict, quarter turns, is mirrored). UserError for a scale that makes it too small."""
        for scale in self.scales:
            height, width = (max(1, round(side * scale)) for side in image.shape[:2])
            if min(height, width) < self.minimum_size:
                raise UserError(
                    f"tta.scales: {scale} makes an image of {image.shape[0]}x{image.shape[1]} pixels {height}x{width}, "
                    f"less than the model's stride of {self.minimum_size}; expected larger scales"
                )
            view = resize_image(image, height, width)
            for turns, is_mirrored in SYMMETRIES[self.flip]:
                turned = np.rot90(view, turns)
                yield np.ascontiguousarray(turned[:, ::-1] if is_mirrored else turned), turns, is_mirrored


class SegmentationInference:
    """A segmentation model as a function of one uint8 image (H, W, C) of any size -> Prediction.

    It reads the model's weights at each call, so it stays valid while the model trains.

    resize:         the config's data.resize.
    probabilities:  bool, whether predictions carry them: (H, W, K) floats cost time and memory.
    tta:            None, or a TestTimeAugmentation of the (resized) image.
    forward:        None, or what stands for the compiled model: function (images uint8 (1, h, w, C), size) -> label
                    maps (1, H, W) and scores (1, H, W, K); (H, W) is size, or the images' where that is None.
    """

    def __init__(self, model, resize=None, probabilities=False, tta=None, forward=None):
        self._resize = resize
        self._probabilities = probabilities
        self._tta = tta
        self._forward = forward or self._compile(model, with_scores=probabilities or tta is not None)

    @staticmethod
    def _compile(model, with_scores):
        def postprocess(logits, height, width):
            scores = ops.softmax(ops.cast(logits, "float32"))  # (B, h, w, K)
            if height is not None:
                scores = resize_bilinear(scores, height, width)
            label_maps = ops.cast(ops.argmax(scores, axis=-1), "uint8")
            return (label_maps, scores) if with_scores else (label_maps,)

        return compile_forward(model, postprocess)

    def __call__(self, image):
        size = image.shape[:2]
        resized = resize_image(image, *resized_size(self._resize, *size))
        if self._tta is not None:
            return self._average(resized, size)
        label_maps, *scores = self._forward(resized[None], None if resized.shape[:2] == size else size)
        return Prediction(np.asarray(label_maps[0]), np.asarray(scores[0][0]) if self._probabilities else None)

    def _average(self, image, size):
        total, views = 0.0, 0
        for view, turns, is_mirrored in self._tta.views(image):
            turned_size = size if turns % 2 == 0 else size[::-1]
            scores = self._forward(view[None], None if view.shape[:2] == turned_size else turned_size)[1][0]
            scores = np.asarray(scores)  # (H, W, K), or (W, H, K)
            total = total + np.rot90(scores[:, ::-1] if is_mirrored else scores, -turns)
            views += 1
        mean = total / np.float32(views)
        return Prediction(mean.argmax(-1).astype("uint8"), mean if self._probabilities else None)


def compile_forward(model, postprocess):
    """A model and what follows it as one compiled function. (model.predict costs 100 ms more a call.)

    postprocess:  function (logits (B, h, w, K), height, width) -> tuple of tensors; height and width are None where the
                  result has the images' own size.
    Returns       function (images uint8 (B, h, w, C), size) -> that tuple; size is (height, width) or None.
    """
    compilers = {"tensorflow": _compile_tensorflow, "jax": _compile_jax}
    return compilers[keras.backend.backend()](model, postprocess)


def _compile_tensorflow(model, postprocess):
    """Two graphs for images of all sizes, without and with resizing: a new size traces nothing."""
    import tensorflow as tf

    images = tf.TensorSpec((None, None, None, model.input_shape[-1]), tf.uint8)
    length = tf.TensorSpec((), tf.int32)

    @tf.function(input_signature=[images])
    def forward(images):
        return postprocess(model(images, training=False), None, None)

    @tf.function(input_signature=[images, length, length])
    def forward_resized(images, height, width):
        return postprocess(model(images, training=False), height, width)

    return lambda images, size: forward(images) if size is None else forward_resized(images, *size)


def _compile_jax(model, postprocess):
    """One executable an image size, kept by jax.jit."""
    import jax

    @functools.partial(jax.jit, static_argnums=2)
    def forward(variables, images, size):
        logits, _ = model.stateless_call(*variables, images, training=False)
        return postprocess(logits, *(size or (None, None)))

    def call(images, size):
        variables = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
        return forward(variables, images, size)

    return call
