"""Losses that compare each class's region with its predicted probabilities: Dice, Tversky, Lovasz-softmax.

All take

labels:         (B, H, W) ints, 0..K-1 or ignore_label; floats of these values are accepted, as Keras hands them.
logits:         (B, H, W, K) float of any precision; computed in float32.
class_weights:  None or K floats: the mean over classes is weighted by them.
classes:        "present": the mean is over the classes that have pixels; "all": absent ones count too.
per_image:      bool. False: a class's region is all its pixels in the batch, and a class is present if the batch has
                it. True: every image is scored by itself, and the loss is the mean over the images with valid pixels.

and return a float32 scalar: a mean over classes, whatever their sizes; 0, with gradient 0, when no pixel is valid.
"""

from keras import ops


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

    alpha:   >= 0, weight of false positives.
    beta:    >= 0, weight of false negatives. alpha = beta = 0.5 is the Dice loss, 1 and 1 that of the Jaccard index.
    gamma:   > 0: focal Tversky loss, (1 - index)^(1 / gamma) (Abraham and Khan ISBI 2019, who use 4/3).
    smooth:  as in `dice`.
    """
    probabilities, targets = _regions(labels, logits, ignore_label, per_image)
    true_positives = ops.sum(probabilities * targets, axis=1)  # (G, K)
    false_positives = ops.sum(probabilities * (1 - targets), axis=1)
    false_negatives = ops.sum((1 - probabilities) * targets, axis=1)
    numerator = true_positives + smooth
    index = _ratio(numerator, numerator + alpha * false_positives + beta * false_negatives)
    losses = 1 - index
    if gamma != 1:
        losses = ops.maximum(losses, 1e-7) ** (1 / gamma)  # a power below 1 has no finite gradient at 0
    return _mean_over_classes(losses, targets, classes, class_weights)


def lovasz_softmax(labels, logits, ignore_label=255, class_weights=None, classes="present", per_image=False):
    """Lovasz-softmax loss (Berman et al. CVPR 2018): the Lovasz extension of 1 - Jaccard index for each class.

    It sorts the errors of all pixels, once for each class.
    """
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
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, ignore_label)
    mask = ops.cast(valid, "float32")[..., None]  # (B, H, W, 1)
    probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1) * mask
    targets = ops.one_hot(ops.where(valid, labels, 0), classes, dtype="float32") * mask
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
