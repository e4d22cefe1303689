"""One image through a segmentation model: resized as the config says, scored, mapped back to its original size."""

import numpy as np
from keras import ops

from detseg.data.augment import resize_image, resized_size
from detseg.inference.compile import compile_forward
from detseg.inference.prediction import Prediction
from detseg.layers.resize import resize_bilinear


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
