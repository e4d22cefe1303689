"""Test-time augmentation: the views of an image whose probabilities are averaged."""

from dataclasses import dataclass

import numpy as np

from detseg.data.augment import resize_image
from detseg.errors import UserError

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
