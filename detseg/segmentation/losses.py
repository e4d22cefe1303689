"""The losses of semantic segmentation as Keras losses, by their names in a config."""

import keras

from detseg.layers.replicas import replica_count
from detseg.segmentation import pixel_losses, region_losses


class _SegmentationLoss(keras.losses.Loss):
    """A function of labels, logits and options as a Keras loss that can be saved.

    Targets are labels (B, H, W), or labels and weights of pixels (B, H, W, 2), which only `CrossEntropy` heeds.
    Under several replicas each gives its share of the loss: their sum is the mean of what they have, since Keras adds
    up their gradients.
    """

    def __init__(self, name, ignore_label, class_weights, **options):
        super().__init__(name=name, reduction=None)
        class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
        self.options = {"ignore_label": ignore_label, "class_weights": class_weights, **options}

    def call(self, y_true, y_pred):
        labels = y_true[..., 0] if len(y_true.shape) == 4 else y_true
        return type(self).function(labels, y_pred, **self.options) / replica_count()

    def get_config(self):
        return {"name": self.name, **self.options}


@keras.saving.register_keras_serializable("detseg")
class CrossEntropy(_SegmentationLoss):
    """`pixel_losses.cross_entropy` as a Keras loss."""

    function = staticmethod(pixel_losses.cross_entropy)

    def __init__(self, ignore_label=255, class_weights=None, label_smoothing=0.0, name="cross_entropy"):
        super().__init__(name, ignore_label, class_weights, label_smoothing=label_smoothing)

    def call(self, y_true, y_pred):
        if len(y_true.shape) != 4:
            return super().call(y_true, y_pred)
        labels, pixel_weights = y_true[..., 0], y_true[..., 1]
        return self.function(labels, y_pred, **self.options, pixel_weights=pixel_weights) / replica_count()


@keras.saving.register_keras_serializable("detseg")
class Focal(_SegmentationLoss):
    """`pixel_losses.focal` as a Keras loss."""

    function = staticmethod(pixel_losses.focal)

    def __init__(self, ignore_label=255, class_weights=None, gamma=2.0, name="focal"):
        super().__init__(name, ignore_label, class_weights, gamma=gamma)


@keras.saving.register_keras_serializable("detseg")
class OHEM(_SegmentationLoss):
    """`pixel_losses.ohem` as a Keras loss."""

    function = staticmethod(pixel_losses.ohem)

    def __init__(self, ignore_label=255, class_weights=None, threshold=0.7, min_kept_fraction=0.0625, name="ohem"):
        super().__init__(name, ignore_label, class_weights, threshold=threshold, min_kept_fraction=min_kept_fraction)


@keras.saving.register_keras_serializable("detseg")
class Dice(_SegmentationLoss):
    """`region_losses.dice` as a Keras loss."""

    function = staticmethod(region_losses.dice)

    def __init__(
        self,
        ignore_label=255,
        class_weights=None,
        classes="present",
        per_image=False,
        smooth=0.0,
        exponent=1,
        name="dice",
    ):
        options = {"classes": classes, "per_image": per_image, "smooth": smooth, "exponent": exponent}
        super().__init__(name, ignore_label, class_weights, **options)


@keras.saving.register_keras_serializable("detseg")
class Tversky(_SegmentationLoss):
    """`region_losses.tversky` as a Keras loss."""

    function = staticmethod(region_losses.tversky)

    def __init__(
        self,
        ignore_label=255,
        class_weights=None,
        classes="present",
        per_image=False,
        alpha=0.3,
        beta=0.7,
        gamma=1.0,
        smooth=0.0,
        name="tversky",
    ):
        options = {"classes": classes, "per_image": per_image, "smooth": smooth}
        super().__init__(name, ignore_label, class_weights, alpha=alpha, beta=beta, gamma=gamma, **options)


@keras.saving.register_keras_serializable("detseg")
class LovaszSoftmax(_SegmentationLoss):
    """`region_losses.lovasz_softmax` as a Keras loss."""

    function = staticmethod(region_losses.lovasz_softmax)

    def __init__(self, ignore_label=255, class_weights=None, classes="present", per_image=False, name="lovasz_softmax"):
        super().__init__(name, ignore_label, class_weights, classes=classes, per_image=per_image)


LOSSES = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "ohem": OHEM,
    "dice": Dice,
    "tversky": Tversky,
    "lovasz_softmax": LovaszSoftmax,
}


@keras.saving.register_keras_serializable("detseg")
class WeightedSum(keras.losses.Loss):
    """The sum of several losses, each times its weight."""

    def __init__(self, losses, weights, name="loss"):
        super().__init__(name=name, reduction=None)
        self.losses = losses
        self.weights = weights

    def call(self, y_true, y_pred):
        return sum(weight * loss(y_true, y_pred) for loss, weight in zip(self.losses, self.weights, strict=True))

    def get_config(self):
        return {
            "name": self.name,
            "losses": [keras.saving.serialize_keras_object(loss) for loss in self.losses],
            "weights": list(self.weights),
        }

    @classmethod
    def from_config(cls, config):
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(losses, config["weights"], config["name"])
