"""The losses once more, pixel by pixel in float64 as the papers define them, and the cases they are compared on."""

import numpy as np

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 5, 4)).astype("float32") * 2
LABELS = RNG.integers(0, 3, size=(3, 4, 5)).astype("uint8")  # class 3 is absent
LABELS[0][LABELS[0] == 2] = 1  # class 2 is absent from the first image
LABELS[:, 0, 1:4] = 255
LABELS[2] = 255
CLASS_WEIGHTS = (0.5, 2.0, 0.0, 1.5)
CASES = {
    "cross_entropy": ("cross_entropy", {}),
    "cross_entropy, smoothed": ("cross_entropy", {"label_smoothing": 0.1}),
    "focal": ("focal", {}),
    "focal, gamma 0.5": ("focal", {"gamma": 0.5}),
    "ohem": ("ohem", {"threshold": 0.2, "min_kept_fraction": 0.0}),
    "ohem, kept": ("ohem", {"threshold": 0.01, "min_kept_fraction": 0.3}),
    "dice": ("dice", {}),
    "dice, all": ("dice", {"classes": "all", "smooth": 1.0, "exponent": 2}),
    "dice, per image": ("dice", {"per_image": True}),
    "tversky": ("tversky", {}),
    "tversky, all": ("tversky", {"classes": "all", "alpha": 1.0, "beta": 1.0, "smooth": 0.1}),
    "tversky, focal per image": ("tversky", {"gamma": 4 / 3, "per_image": True}),
    "lovasz_softmax": ("lovasz_softmax", {}),
    "lovasz_softmax, all": ("lovasz_softmax", {"classes": "all"}),
    "lovasz_softmax, per image": ("lovasz_softmax", {"per_image": True}),
}


def reference(name, labels, logits, class_weights=None, ignore_label=255, **options):
    """The loss of this name as a float."""
    weights = np.ones(logits.shape[-1]) if class_weights is None else np.array(class_weights)
    images = [_pixels(*image, ignore_label) for image in zip(labels, logits.astype("float64"), strict=True)]
    batch = [pixel for image in images for pixel in image]
    if name in PIXEL_LOSSES:
        return _weighted_mean(*PIXEL_LOSSES[name](batch, weights, **options))
    classes, per_image = options.pop("classes", "present"), options.pop("per_image", False)
    regions = [region for region in (images if per_image else [batch]) if region]
    means = [_mean_over_classes(REGION_LOSSES[name], region, weights, classes, options) for region in regions]
    return float(np.mean(means)) if means else 0.0


def _pixels(labels, logits, ignore_label):
    """[(label, probabilities (K,))] of the valid pixels of an image."""
    pixels = []
    for label, values in zip(labels.ravel(), logits.reshape(-1, logits.shape[-1]), strict=True):
        if label != ignore_label:
            exponentials = np.exp(values - values.max())
            pixels.append((int(label), exponentials / exponentials.sum()))
    return pixels


def _weighted_mean(losses, weights):
    return float(np.dot(losses, weights) / np.sum(weights)) if np.sum(weights) > 0 else 0.0


def _mean_over_classes(loss, region, weights, classes, options):
    present = {label for label, _ in region}
    counted = [c for c in range(len(weights)) if classes == "all" or c in present]
    losses = [loss([label == c for label, _ in region], [p[c] for _, p in region], **options) for c in counted]
    return _weighted_mean(losses, [weights[c] for c in counted])


def _cross_entropy(pixels, weights, label_smoothing=0.0):
    losses = []
    for label, p in pixels:
        target = np.full(len(p), label_smoothing / len(p))
        target[label] += 1 - label_smoothing
        losses.append(-np.dot(target, np.log(p)))
    return losses, [weights[label] for label, _ in pixels]


def _focal(pixels, weights, gamma=2.0):
    losses = [-((1 - p[label]) ** gamma) * np.log(p[label]) for label, p in pixels]
    return losses, [weights[label] for label, _ in pixels]


def _ohem(pixels, weights, threshold, min_kept_fraction):
    ranked = sorted(pixels, key=lambda pixel: pixel[1][pixel[0]])  # the least probable true class first
    kept = max(1, int(np.ceil(min_kept_fraction * len(pixels))))
    hard = [(label, p) for i, (label, p) in enumerate(ranked) if i < kept or p[label] < threshold]
    return _cross_entropy(hard, weights)


def _dice(truth, p, smooth=0.0, exponent=1):
    intersection = sum(value for there, value in zip(truth, p, strict=True) if there)
    return 1 - (2 * intersection + smooth) / (sum(value**exponent for value in p) + sum(truth) + smooth)


def _tversky(truth, p, alpha=0.3, beta=0.7, gamma=1.0, smooth=0.0):
    hits = misses = false_alarms = 0.0
    for there, value in zip(truth, p, strict=True):
        if there:
            hits += value
            misses += 1 - value
        else:
            false_alarms += value
    index = (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)
    return (1 - index) ** (1 / gamma)


def _lovasz(truth, p):
    """Eq. 8 of Berman et al.: errors in falling order, times what each adds to the Jaccard loss of those before it."""
    errors = [1 - value if there else value for there, value in zip(truth, p, strict=True)]
    wrong, before, total = set(), 0.0, 0.0
    region = {i for i, there in enumerate(truth) if there}
    for i in np.argsort(errors)[::-1]:
        wrong.add(int(i))
        jaccard_loss = len(wrong) / len(region | wrong)  # eq. 6
        total += errors[i] * (jaccard_loss - before)
        before = jaccard_loss
    return total


PIXEL_LOSSES = {"cross_entropy": _cross_entropy, "focal": _focal, "ohem": _ohem}
REGION_LOSSES = {"dice": _dice, "tversky": _tversky, "lovasz_softmax": _lovasz}
