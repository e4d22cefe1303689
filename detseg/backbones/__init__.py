"""The backbones by name."""

from detseg.backbones.backbone import OUTPUT_STRIDES, Backbone, Preprocess, check_choice
from detseg.backbones.mobilenet import create_mobilenet, create_mobilenetv2
from detseg.backbones.vgg import create_vgg
from detseg.backbones.weights import dense_weights, load_weights
from detseg.errors import UserError
from detseg.layers.activation import ACTIVATIONS
from detseg.layers.norm import NORMS

# name -> factory(name, output_stride, in_channels, norm, alpha, activation, variant) -> Backbone of random weights
BACKBONES = {
    "vgg16": create_vgg,
    "vgg19": create_vgg,
    "mobilenet": create_mobilenet,
    "mobilenetv2": create_mobilenetv2,
}

# name -> the forms beside the family's own, for those that have some
VARIANTS = {}

__all__ = ["BACKBONES", "Backbone", "Preprocess", "create_backbone", "dense_weights"]


def create_backbone(
    name, output_stride=32, in_channels=3, weights=None, norm="batch", alpha=1.0, activation=None, variant=None
):
    """A feature extractor with the layer names and results of its keras.applications twin.

    name:           one of `BACKBONES`.
    output_stride:  32, 16 or 8: the stride of the coarsest level. Strides beyond it turn into dilation; with the same
                    weights, every second (16) or fourth (8) output from the first equals the level at 32.
    in_channels:    int, channels of the images. Weights for 3 channels are fitted to others: see `load_weights`.
    weights:        None (random), "imagenet" or the path of a weight file: see `load_weights`.
    norm:           "batch", "frozen" (statistics, scale and offset fixed) or "group". A VGG has no norms: no effect.
    alpha:          width multiplier: the share of the family's filters that each layer has.
    activation:     None (the family's own) or one of `ACTIVATIONS`, in place of every relu.
    variant:        None, or one of `VARIANTS[name]`: another form of the family, said in its file.
    Returns a `Backbone`. Inputs are (B, H, W, in_channels), of any size; the levels line up exactly where H and W are
    multiples of 32 (families say in their files what an odd map does).
    Raises UserError for an unknown name or value and for weights that don't fit.
    """
    check_choice("model.backbone", name, BACKBONES)
    check_choice("model.output_stride", output_stride, OUTPUT_STRIDES)
    check_choice("model.norm", norm, NORMS)
    if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"data.channels: {in_channels!r} is not a number of channels; expected 1, 3, 4 or so")
    if variant is not None and variant not in VARIANTS.get(name, ()):
        forms = ", ".join(VARIANTS.get(name, ())) or "no variants"
        raise UserError(f"model.variant: {name} has {forms}; got {variant!r}, expected null (leave it out)")
    if activation is not None:
        check_choice("model.activation", activation, ACTIVATIONS)
    backbone = BACKBONES[name](name, output_stride, in_channels, norm, alpha, activation, variant)
    if weights is not None:
        backbone.unused_layers = load_weights(backbone, weights, alpha)
    return backbone
