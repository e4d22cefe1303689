"""Losses of semantic segmentation: functions of label maps and logits."""

import keras
from keras import ops


def cross_entropy(labels, logits, ignore_label=255, class_weights=None, label_smoothing=0.0):
    """Cross-entropy averaged over the valid pixels of a batch.

    labels:           (B, H, W) ints, 0..K-1 or ignore_label; floats of these values are accepted, as Keras hands them.
    logits:           (B, H, W, K) float.
    class_weights:    None or K floats. The mean is then weighted by the weight of each pixel's class, as in
                      torch.nn.CrossEntropyLoss.
    label_smoothing:  in [0, 1): this share of the target is spread evenly over all K classes (Szegedy et al. 2016,
                      section 7).
    Returns           a float32 scalar; 0, with gradient 0, when no pixel is valid.
    """
    logits = ops.cast(logits, "float32")
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, ignore_label)  # (B, H, W)
    labels = ops.where(valid, labels, 0)
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)  # (B, H, W)
    if label_smoothing:
        uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)  # cross-entropy against 1/K
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    weights = ops.cast(valid, "float32")
    if class_weights is not None:
        weights = weights * ops.take(ops.convert_to_tensor(class_weights, "float32"), labels)
    total = ops.sum(weights)
    return ops.sum(losses * weights) / ops.where(total > 0, total, 1.0)


@keras.saving.register_keras_serializable("detseg")
class CrossEntropy(keras.losses.Loss):
    """`cross_entropy` as a Keras loss."""

    def __init__(self, ignore_label=255, class_weights=None, label_smoothing=0.0, name="cross_entropy"):
        super().__init__(name=name, reduction=None)
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        return cross_entropy(y_true, y_pred, self.ignore_label, self.class_weights, self.label_smoothing)

    def get_config(self):
        return {
            "name": self.name,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "label_smoothing": self.label_smoothing,
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
