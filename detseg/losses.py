"""The losses as functions of labels and logits, or of boxes."""

from detseg.detection.losses import box_losses, sigmoid_focal_losses
from detseg.segmentation.losses import cross_entropy, dice, focal, lovasz_softmax, ohem, tversky

__all__ = [
    "box_losses",
    "cross_entropy",
    "dice",
    "focal",
    "lovasz_softmax",
    "ohem",
    "sigmoid_focal_losses",
    "tversky",
]
