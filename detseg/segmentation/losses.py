"""The losses of a config: functions of labels and logits, and their sum as one Keras loss.

All functions take

labels:         (B, H, W) ints, 0..K-1 or ignore_label; floats of these values are accepted, as Keras hands them.
logits:         (B, H, W, K) float of any precision; computed in float32.
class_weights:  None or K floats: the mean over pixels or classes is weighted by them, for pixels by that of each one's
                class, as in torch.nn.CrossEntropyLoss.

and return a float32 scalar, which is 0 with gradient 0 when no pixel is valid. Losses of pixels are a mean over the
valid pixels of the whole batch, so that an image counts by its valid pixels. Losses of regions compare each class's
region with its predicted probabilities; they are a mean over classes, whatever their sizes, and take

classes:        "present": the mean is over the classes that have pixels; "all": absent ones count too.
per_image:      bool. False: a class's region is all its pixels in the batch, and a class is present if the batch has
                it. True: every image is scored by itself, and the loss is the mean over the images with valid pixels.
"""

import math

import keras
from keras import ops
from pydantic import TypeAdapter

from detseg.errors import UserError
from detseg.fields import Several
from detseg.layers.norm import replica_count
from detseg.segmentation.options import Loss

# ----- losses of pixels ----------------------------------------------------------------------------------------------


def cross_entropy(labels, logits, ignore_label=255, class_weights=None, label_smoothing=0.0, pixel_weights=None):
    """Cross-entropy.

    label_smoothing:  in [0, 1): this share of the target is spread evenly over all K classes (Szegedy et al. 2016,
                      section 7).
    pixel_weights:    None or (B, H, W) float >= 0, added to the weight of each pixel's class, as in U-Net's w(x)
                      (eq. 2). The sum is divided by the classes' weights alone, so that pixels with 0 here count as
                      ever.
    """
    losses, weights, valid = _losses_and_weights(labels, logits, ignore_label, class_weights)
    if label_smoothing:
        logits = ops.cast(logits, "float32")
        uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)  # cross-entropy against 1/K
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    mean = _weighted_mean(losses, weights)
    if pixel_weights is None:
        return mean
    added = ops.where(valid, ops.cast(pixel_weights, "float32"), 0.0) * losses
    return mean + ops.sum(added) / _divisor(weights)


def focal(labels, logits, ignore_label=255, class_weights=None, gamma=2.0):
    """Focal loss (Lin et al. ICCV 2017) on the softmax: -alpha_t (1 - p_t)^gamma log p_t, p_t that of the true class.

    class_weights:  the paper's alpha, one for each class.
    gamma:          >= 0, the focusing parameter; with 0 this is `cross_entropy`.
    """
    losses, weights, _ = _losses_and_weights(labels, logits, ignore_label, class_weights)
    errors = -ops.expm1(-losses)  # 1 - p_t
    errors = ops.maximum(errors, 1e-7)  # a power below 1 has no finite gradient at 0
    return _weighted_mean(errors**gamma * losses, weights)  # eq. 5


def ohem(labels, logits, ignore_label=255, class_weights=None, threshold=0.7, min_kept_fraction=0.0625):
    """Cross-entropy of the hard pixels: online hard example mining (Shrivastava et al. CVPR 2016) over pixels.

    A pixel is hard if the probability of its true class is below `threshold`, or if its loss is among the largest
    share `min_kept_fraction` of the batch's valid pixels, at least one; equal losses at this limit are all kept.
    Both are in [0, 1], the threshold above 0.
    """
    losses, weights, valid = _losses_and_weights(labels, logits, ignore_label, class_weights)
    ranked = ops.sort(ops.reshape(ops.stop_gradient(ops.where(valid, losses, -1.0)), (-1,)))  # (B*H*W,), ignored first
    kept = ops.ceil(min_kept_fraction * ops.cast(ops.sum(ops.cast(valid, "int32")), "float32"))
    kept = ops.maximum(ops.cast(kept, "int32"), 1)
    limit = ops.take(ranked, ops.shape(ranked)[0] - kept)
    hard = ops.logical_or(losses > -math.log(threshold), losses >= limit)
    return _weighted_mean(losses, weights * ops.cast(hard, "float32"))


def _losses_and_weights(labels, logits, ignore_label, class_weights):
    """Loss (finite) and weight (0 where ignored) of each pixel, float32, and whether it is valid, all (B, H, W)."""
    labels, valid = _valid_labels(labels, ignore_label)
    losses = ops.sparse_categorical_crossentropy(labels, ops.cast(logits, "float32"), from_logits=True)
    weights = ops.cast(valid, "float32")
    if class_weights is not None:
        weights = weights * ops.take(ops.convert_to_tensor(class_weights, "float32"), labels)
    return losses, weights, valid


def _valid_labels(labels, ignore_label):
    """Labels (B, H, W) int32, 0 where ignored, and where they are not."""
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, ignore_label)
    return ops.where(valid, labels, 0), valid


def _weighted_mean(losses, weights):
    return ops.sum(losses * weights) / _divisor(weights)


def _divisor(weights):
    """The sum of the weights, or 1 where they are all 0."""
    total = ops.sum(weights)
    return ops.where(total > 0, total, 1.0)


# ----- losses of regions ---------------------------------------------------------------------------------------------


def dice(
    labels, logits, ignore_label=255, class_weights=None, classes="present", per_image=False, smooth=0.0, exponent=1
):
    """Soft Dice loss: 1 - 2 |P G| / (|P| + |G|) for each class, |.| a sum over pixels.

    smooth:    >= 0, added above and below the fraction bar. With 0 an absent class of classes="all" costs 1 whatever
               its probabilities are; above 0 it is taught that it is absent.
    exponent:  of the probabilities in |P|: 1, or 2 for V-Net's form (Milletari et al. 3DV 2016, section 3).
    """
    probabilities, targets = _regions(labels, logits, ignore_label, per_image)
    intersection = ops.sum(probabilities * targets, axis=1)  # (G, K)
    predicted = ops.sum(ops.square(probabilities) if exponent == 2 else probabilities, axis=1)
    sizes = predicted + ops.sum(targets, axis=1)
    losses = 1 - _ratio(2 * intersection + smooth, sizes + smooth)
    return _mean_over_classes(losses, targets, classes, class_weights)


def tversky(
    labels,
    logits,
    ignore_label=255,
    class_weights=None,
    classes="present",
    per_image=False,
    alpha=0.3,
    beta=0.7,
    gamma=1.0,
    smooth=0.0,
):
    """Tversky loss (Salehi et al. 2017): 1 - TP / (TP + alpha FP + beta FN) for each class, of soft counts.

    alpha, beta:  >= 0. 0.5 and 0.5 make the Dice loss, 1 and 1 that of the Jaccard index.
    gamma:        > 0: focal Tversky loss, (1 - index)^(1 / gamma) (Abraham and Khan ISBI 2019, who use 4/3).
    smooth:       as in `dice`.
    """
    probabilities, targets = _regions(labels, logits, ignore_label, per_image)
    true_positives = ops.sum(probabilities * targets, axis=1)  # (G, K)
    false_positives = ops.sum(probabilities * (1 - targets), axis=1)
    false_negatives = ops.sum((1 - probabilities) * targets, axis=1)
    numerator = true_positives + smooth
    losses = 1 - _ratio(numerator, numerator + alpha * false_positives + beta * false_negatives)
    if gamma != 1:
        losses = ops.maximum(losses, 1e-7) ** (1 / gamma)  # a power below 1 has no finite gradient at 0
    return _mean_over_classes(losses, targets, classes, class_weights)


def lovasz_softmax(labels, logits, ignore_label=255, class_weights=None, classes="present", per_image=False):
    """Lovasz-softmax loss (Berman et al. CVPR 2018): the Lovasz extension of 1 - Jaccard index for each class."""
    probabilities, targets = _regions(labels, logits, ignore_label, per_image)
    errors = ops.transpose(ops.abs(targets - probabilities), (0, 2, 1))  # (G, K, N), eq. 11; 0, so last, where ignored
    errors, order = ops.top_k(errors, ops.shape(errors)[-1])
    foreground = ops.take_along_axis(ops.transpose(targets, (0, 2, 1)), order, axis=-1)
    size = ops.sum(foreground, axis=-1, keepdims=True)
    intersection = size - ops.cumsum(foreground, axis=-1)
    union = size + ops.cumsum(1 - foreground, axis=-1)
    # Eq. 9: by how much each error raises the Jaccard loss 1 - intersection / union. A pixel of the class takes 1 from
    # the intersection, another adds 1 to the union. Algorithm 1 subtracts neighbouring losses instead, which float32
    # can't tell apart in large images. The loss of no error is 0, also of an absent class, whose union then is empty.
    there = ops.logical_or(foreground > 0, union <= 1)
    steps = ops.where(there, 1 / union, intersection / (union * ops.maximum(union - 1, 1)))
    losses = ops.sum(errors * steps, axis=-1)  # (G, K), eq. 8
    return _mean_over_classes(losses, targets, classes, class_weights)


def _regions(labels, logits, ignore_label, per_image):
    """Probabilities and one-hot labels, both (G, N, K) float32 and 0 where ignored: G images, or one of all pixels."""
    classes = logits.shape[-1]
    labels, valid = _valid_labels(labels, ignore_label)
    mask = ops.cast(valid, "float32")[..., None]  # (B, H, W, 1)
    probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1) * mask
    targets = ops.one_hot(labels, classes, dtype="float32") * mask
    shape = (ops.shape(logits)[0] if per_image else 1, -1, classes)
    return ops.reshape(probabilities, shape), ops.reshape(targets, shape)


def _ratio(numerator, denominator):
    """Their quotient, and 1 where both are 0: nothing predicted and nothing there."""
    some = denominator > 0
    return ops.where(some, numerator / ops.where(some, denominator, 1.0), 1.0)


def _mean_over_classes(losses, targets, classes, class_weights):
    """The weighted mean of losses (G, K) over classes, and of that over the G regions that have any."""
    pixels = ops.sum(targets, axis=1)  # (G, K)
    if classes == "all":
        pixels = ops.sum(pixels, axis=-1, keepdims=True)
    weights = ops.ones_like(losses) if class_weights is None else ops.convert_to_tensor(class_weights, "float32")
    weights = weights * ops.cast(pixels > 0, "float32")  # (G, K)
    totals = ops.sum(weights, axis=-1)
    means = ops.sum(losses * weights, axis=-1) / ops.where(totals > 0, totals, 1.0)  # (G,)
    return ops.sum(means) / ops.maximum(ops.sum(ops.cast(totals > 0, "float32")), 1.0)


# ----- their sum -----------------------------------------------------------------------------------------------------

# name in a config -> function(labels, logits, ignore_label, class_weights, its options) -> float32 scalar
FUNCTIONS = {loss.__name__: loss for loss in (cross_entropy, focal, ohem, dice, tversky, lovasz_softmax)}
_OPTIONS = TypeAdapter(Several[Loss])


@keras.saving.register_keras_serializable("detseg")
class SegmentationLoss(keras.losses.Loss):
    """The sum of losses, each times its weight.

    losses:  list of detseg.segmentation.options.Loss, or of the mappings that a config has.

    Targets are labels (B, H, W), or labels and weights of pixels (B, H, W, 2), which only cross-entropy heeds;
    predictions are logits (B, H, W, K). Under several replicas each gives its share of the loss: their sum is the mean
    of what they have, since Keras adds up their gradients.
    Raises UserError for class_weights median_frequency, which can't be counted here.
    """

    def __init__(self, losses, ignore_label=255, name="loss"):
        super().__init__(name=name, reduction=None)
        self.losses = _OPTIONS.validate_python(losses)
        self.ignore_label = ignore_label
        for index, options in enumerate(self.losses):
            if options.class_weights == "median_frequency":
                raise UserError(
                    f"loss.{index}.class_weights: median_frequency is counted on a training split; expected a list of "
                    "numbers or null"
                )

    def call(self, y_true, y_pred):
        labels, pixel_weights = (y_true[..., 0], y_true[..., 1]) if len(y_true.shape) == 4 else (y_true, None)
        total = 0
        for options in self.losses:
            arguments = options.model_dump(exclude={"name", "weight", "border_weights"})
            if options.name == "cross_entropy":
                arguments["pixel_weights"] = pixel_weights
            value = FUNCTIONS[options.name](labels, y_pred, self.ignore_label, **arguments)
            total += options.weight * (value / replica_count())
        return total

    def get_config(self):
        losses = [options.model_dump(mode="json") for options in self.losses]
        return {"name": self.name, "losses": losses, "ignore_label": self.ignore_label}
