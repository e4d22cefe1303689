"""Losses of detectors: of boxes, and the focal loss of classes."""

from keras import ops

from detseg.detection.boxes import ciou, decode_boxes, encode_boxes, giou

BOX_LOSSES = ("smooth_l1", "l1", "giou", "ciou")


def box_losses(name, deltas, proposals, boxes, deviations=(1, 1, 1, 1), beta=1 / 9):
    """The loss of each predicted box.

    name:        one of `BOX_LOSSES`. "smooth_l1" (Fast R-CNN, eq. 3) and "l1" compare `deltas` with the targets of
                 `boxes`, summed over the four; "giou" and "ciou" are 1 minus that overlap of the boxes themselves.
    deltas:      (..., 4), as the network predicts them, normalised by `deviations`.
    proposals:   (..., 4), the boxes that they move: anchors or proposals. Padding may be of size 0, as that of
    boxes:       (..., 4), ground truth of each.
    deviations:  as in `encode_boxes`.
    beta:        > 0: where smooth L1 changes from x^2 / (2 beta) to |x| - beta / 2. The paper: 1; Detectron: 1/9.
    Returns      (...) float32; it and its gradient are finite for padding too.
    """
    deltas = ops.cast(deltas, "float32")
    if overlap := {"giou": giou, "ciou": ciou}.get(name):
        return 1.0 - overlap(decode_boxes(deltas, proposals, deviations=deviations), boxes)
    if name not in BOX_LOSSES:
        raise ValueError(f"name {name!r}: expected one of {', '.join(BOX_LOSSES)}")
    errors = ops.abs(deltas - encode_boxes(boxes, proposals, deviations=deviations))  # (..., 4)
    if name == "smooth_l1":
        errors = ops.where(errors < beta, ops.square(errors) * (0.5 / beta), errors - 0.5 * beta)  # eq. 3
    return ops.sum(errors, axis=-1)


def sigmoid_focal_losses(logits, is_true, alpha=0.25, gamma=2.0):
    """Focal loss of each class by itself: -alpha_t (1 - p_t)^gamma log p_t (Lin et al. ICCV 2017, eq. 5).

    logits:    (...) float of any precision; computed in float32.
    is_true:   (...) bool, whether the class is there.
    alpha:     in [0, 1], the weight of what is there; 1 - alpha is that of what isn't.
    gamma:     >= 0, the focusing parameter.
    Returns    (...) float32.
    """

    def parts(logits):
        """alpha_t (1 - p_t)^gamma, -log p_t, and the logit x_t of the right answer."""
        right = ops.where(is_true, logits, -logits)
        cross_entropy = ops.softplus(-right)
        # log(1 - p_t) = log p_t - x_t: a power of 1 - p_t below 1 would have no finite gradient at 0
        focus = ops.exp(-gamma * (cross_entropy + right))
        return ops.where(is_true, alpha, 1 - alpha) * focus, cross_entropy, right

    # As many as anchors times classes: with the gradient in closed form, only the logits are kept for it.
    @ops.custom_gradient
    def losses(logits):
        weights, cross_entropy, _ = parts(logits)

        def gradient(*arguments, upstream=None):
            upstream = arguments[0] if upstream is None else upstream
            weights, cross_entropy, right = parts(logits)
            p = ops.sigmoid(right)
            slopes = weights * (gamma * p * cross_entropy + 1 - p)  # appendix B, but for the sign
            return upstream * ops.where(is_true, -slopes, slopes)

        return weights * cross_entropy, gradient

    return losses(ops.cast(logits, "float32"))
