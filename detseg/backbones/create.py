"""Makes a backbone by its name in the catalogue, or by the options of a config's model section."""

import difflib
import logging
import pkgutil

import keras

from detseg.backbones.backbone import OUTPUT_STRIDES, Backbone
from detseg.backbones.builder import LayerBuilder
from detseg.backbones.catalogue import CATALOGUE
from detseg.backbones.weights import load_weights
from detseg.errors import UserError
from detseg.layers.activation import ACTIVATIONS
from detseg.layers.norm import NORMS

logger = logging.getLogger("detseg")


def create_backbone(
    name,
    output_stride=32,
    in_channels=3,
    weights=None,
    norm="batch",
    alpha=1.0,
    activation=None,
    variant=None,
    multi_grid=None,
    norm_epsilon=None,
):
    """A feature extractor with the layer names and results of its keras.applications twin.

    name:           a key of `CATALOGUE`.
    output_stride:  32, 16 or 8: the stride of the coarsest level. Strides beyond it turn into dilation; with the same
                    weights, every second (16) or fourth (8) output from the first equals the level at 32.
    in_channels:    int, channels of the images. Weights for 3 channels are fitted to others: see `load_weights`.
    weights:        None (random), "imagenet" or the path of a weight file: see `load_weights`.
    norm:           "batch", "frozen" (statistics, scale and offset fixed) or "group". A VGG has no norms: no effect.
    alpha:          width multiplier: the share of the family's filters that each layer has.
    activation:     None (the family's own) or one of `ACTIVATIONS`, in place of every relu.
    variant:        None, or one of the net's variants in the catalogue: another form of the family, said in its file.
    multi_grid:     None, or for a net with multi_grid in the catalogue a list of int: the unit rate of each block of
                    the last stage, multiplied into the dilation that its 3x3 convolutions get from output_stride
                    (DeepLabv3, 3.2.1).
    norm_epsilon:   None (the family's own), or that of its batch norms.
    Returns a `Backbone`. Inputs are (B, H, W, in_channels), of any size; the levels line up exactly where H and W are
    multiples of 32 (families say in their files what an odd map does).
    Raises UserError for an unknown name or value and for weights that don't fit.
    """
    _check_choice("model.backbone", name, CATALOGUE)
    _check_choice("model.output_stride", output_stride, OUTPUT_STRIDES)
    _check_choice("model.norm", norm, NORMS)
    _check_choice("model.activation", activation, (None, *ACTIVATIONS))
    if type(in_channels) is not int or in_channels < 1:
        raise UserError(f"data.channels: {in_channels!r} is not a number of channels; expected 1, 3, 4 or so")
    net = CATALOGUE[name]
    if variant is not None and variant not in net.variants:
        forms = ", ".join(net.variants) or "no variants"
        raise UserError(f"model.variant: {name} has {forms}; got {variant!r}, expected null (leave it out)")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or int(net.narrowest * alpha) < 1:
        raise UserError(
            f"model.alpha: {alpha!r} is not a width multiplier of {name}; expected a number such as 0.5 or 1.0 that "
            f"leaves at least one of the narrowest layer's {net.narrowest} filters"
        )
    if multi_grid is not None:
        _check_unit_rates(name, net.unit_rates, multi_grid)
    factory = pkgutil.resolve_name(f"detseg.backbones.{net.factory}")
    form = net.variants.get(variant, net)
    epsilon = form.epsilon if norm_epsilon is None else norm_epsilon
    layers = LayerBuilder(norm, activation or form.activation, output_stride, epsilon)
    unit_rates = [multi_grid or (1,) * net.unit_rates] if net.unit_rates else []
    images = keras.Input((None, None, in_channels))
    outputs, levels = factory(name, images, layers, alpha, variant, *unit_rates)
    backbone = Backbone(name, keras.Model(images, outputs), levels, output_stride, form.preprocessing)
    if form.torch_names is not None:
        backbone.torch_module = pkgutil.resolve_name(f"detseg.backbones.{form.torch_names}")
    if weights is not None:
        backbone.unused_layers = load_weights(backbone, weights, alpha, variant)
        backbone.loaded_layers = tuple(layer.name for layer in backbone.model.layers if layer.weights)
    return backbone


def create_configured_backbone(options, channels=3, pretrained=True):
    """The Backbone of BackboneOptions, with its first stages frozen as they say.

    pretrained:  False leaves options.weights unread, for a model whose weights are loaded afterwards.
    """
    keys = ("output_stride", "norm", "alpha", "activation", "variant", "multi_grid", "norm_epsilon")
    arguments = options.model_dump(include=set(keys))
    weights = options.weights if pretrained else None
    backbone = create_backbone(options.backbone, in_channels=channels, weights=weights, **arguments)
    if backbone.unused_layers:
        logger.info("model.weights: no use here for its layers %s", ", ".join(backbone.unused_layers))
    backbone.freeze(options.freeze_stages)
    return backbone


def _check_choice(field, value, allowed):
    if value not in allowed:
        choices = [str(choice) for choice in allowed if choice is not None]
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{field}: {value!r} is unknown; expected one of {', '.join(choices)}{hint}")


def _check_unit_rates(name, count, rates):
    if not count:
        raise UserError(
            f"model.multi_grid: {name} has no unit rates; got {rates!r}, expected null (leave it out) or one of "
            f"the backbones {', '.join(name for name, net in CATALOGUE.items() if net.unit_rates)}"
        )
    is_list = isinstance(rates, list | tuple) and len(rates) == count
    if not is_list or not all(type(rate) is int and rate >= 1 for rate in rates):
        raise UserError(
            f"model.multi_grid: {rates!r} is not possible; expected {count} whole numbers from 1, one for each "
            f"unit of {name}'s last stage, such as {[2**i for i in range(count)]}, or null"
        )
