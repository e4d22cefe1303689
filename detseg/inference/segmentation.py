"""Images through a segmentation model: resized as the config says, scored, mapped back to their original size."""

import functools
from dataclasses import dataclass

import numpy as np
from keras import ops

from detseg.data.augment import resize_image, resized_size
from detseg.errors import UserError
from detseg.inference.compile import compile_forward
from detseg.inference.prediction import Prediction, SegmentationPredictionOptions
from detseg.inference.tiling import Tiler
from detseg.layers.resize import resize_bilinear

PLAIN = SegmentationPredictionOptions()


class SegmentationInference:
    """A segmentation model as a function of uint8 images (H, W, C) of any size -> Prediction, also while it trains.

    model:   keras.Model (B, H, W, C) -> logits (B, H, W, K).
    resize:  the config's data.resize.
    tta:     the TestTimeAugmentation of (resized) images that options.tta asks for; None: there is none.
    """

    def __init__(self, model, resize=None, tta=None):
        self._resize, self._tta = resize, tta
        self._tiler = functools.cache(functools.partial(Tiler, model))
        self._compiled = functools.cache(functools.partial(_compile, model))

    def __call__(self, image, options=PLAIN):
        """The Prediction of one image. options: SegmentationPredictionOptions."""
        return self.batch([image], options)[0]

    def batch(self, images, options=PLAIN):
        """The Predictions of images of one size, list of (H, W, C), which go through the model together."""
        size = images[0].shape[:2]
        resized = [resize_image(image, *resized_size(self._resize, *size)) for image in images]
        forward = self._forward(options)
        if options.tta:
            return [self._average(forward, image, size, options.probabilities) for image in resized]
        target = None if resized[0].shape[:2] == size else size
        groups = [np.stack(resized)] if options.tile is None else [image[None] for image in resized]
        predictions = []
        for group in groups:
            label_maps, *scores = forward(group, target)
            scores = np.asarray(scores[0]) if options.probabilities else [None] * len(group)
            predictions += [Prediction(*each) for each in zip(np.asarray(label_maps), scores, strict=True)]
        return predictions

    def tiler(self, options):
        """The model's Tiler for these options, which have a tile."""
        return self._tiler(options.tile, options.tile_memory)

    def _forward(self, options):
        """The function of `compile_forward` -> label maps (B, H, W) and, where options need them, scores."""
        with_scores = options.probabilities or options.tta
        if options.tile is None:
            return self._compiled(with_scores)
        return functools.partial(self.tiler(options).forward, with_scores)

    def _average(self, forward, image, size, with_probabilities):
        total, views = 0.0, 0
        for view, turns, is_mirrored in self._tta.views(image):
            turned_size = size if turns % 2 == 0 else size[::-1]
            _, scores = forward(view[None], None if view.shape[:2] == turned_size else turned_size)
            scores = np.asarray(scores[0])  # (H, W, K), or (W, H, K)
            total = total + np.rot90(scores[:, ::-1] if is_mirrored else scores, -turns)
            views += 1
        mean = total / np.float32(views)
        return Prediction(mean.argmax(-1).astype("uint8"), mean if with_probabilities else None)


def _compile(model, with_scores):
    def postprocess(logits, height, width):
        scores = ops.softmax(ops.cast(logits, "float32"))  # (B, h, w, K)
        if height is not None:
            scores = resize_bilinear(scores, height, width)
        label_maps = ops.cast(ops.argmax(scores, axis=-1), "uint8")
        return (label_maps, scores) if with_scores else (label_maps,)

    return compile_forward(model, postprocess)


# tta.flip -> pairs of quarter turns, and whether the turned image is then mirrored left to right
SYMMETRIES = {
    "none": ((0, False),),
    "horizontal": ((0, False), (0, True)),
    "dihedral": tuple((turns, is_mirrored) for is_mirrored in (False, True) for turns in range(4)),
}


@dataclass(frozen=True, slots=True)
class TestTimeAugmentation:
    """The views of an image whose probabilities are averaged (DeepLabv3, section 4.1; U-Net, section 4: rotations)."""

    scales: tuple[float, ...]  # factors on the image's height and width
    flip: str  # key of `SYMMETRIES`: how each scale is seen
    minimum_size: int  # pixels that no side of a view may fall below: the model's stride

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
