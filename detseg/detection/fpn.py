"""The feature pyramid network (Lin et al.: Feature Pyramid Networks for Object Detection, CVPR 2017, section 3)."""

import keras
from keras import ops

from detseg.layers.conv import Conv2D
from detseg.layers.norm import create_norm

EXTRA_LEVELS = ("pool", "conv_c5", "conv_p5")


def fpn(features, strides, channels=256, extra=None, norm=None):
    """Levels of equal width, each of which knows what all coarser ones see.

    features:  {native stride or name: (B, H, W, C)}, a backbone's maps from fine to coarse, each as large as the one
               before, or half as large. The last key is a native stride.
    strides:   {key: actual stride}, as `backbone.strides`.
    extra:     None; "pool": one level more, every second pixel of the coarsest, as for Faster R-CNN (section 4.1);
               "conv_c5": two more by 3x3 convolutions of stride 2, the first of them on the backbone's coarsest map,
               as in RetinaNet (Lin et al. ICCV 2017, footnote 2); "conv_p5": on this network's, as in torchvision.
    norm:      None, as in the paper, or one of `detseg.layers.norm.NORMS` after all convolutions but those of `extra`.
    Returns    ({key: (B, H, W, channels)}, {key: actual stride}), from fine to coarse; extra levels have the keys
               twice and four times the last.
    """
    if extra is not None and extra not in EXTRA_LEVELS:
        raise ValueError(f"extra {extra!r}: expected None or one of {', '.join(EXTRA_LEVELS)}")
    keys = list(features)
    last = coarser = keys[-1]
    levels, above = {}, None
    for key in reversed(keys):
        merged = _convolve(features[key], channels, 1, norm, f"fpn_lateral{key}")
        if above is not None:
            factor = strides[coarser] // strides[key]
            above = UpsampleNearestLike(factor, name=f"fpn_upsample{key}")(above, merged)
            merged = keras.layers.Add(name=f"fpn_merge{key}")([merged, above])
        levels[key] = _convolve(merged, channels, 3, norm, f"fpn_output{key}")
        above, coarser = merged, key

    if extra == "pool":
        keys.append(2 * last)
        levels[2 * last] = keras.layers.MaxPooling2D(1, strides=2, name=f"fpn_pool{2 * last}")(levels[last])
    elif extra is not None:
        source = features[last] if extra == "conv_c5" else levels[last]
        levels[2 * last] = _strided(source, channels, f"fpn_output{2 * last}")
        x = keras.layers.ReLU(name=f"fpn_relu{2 * last}")(levels[2 * last])
        levels[4 * last] = _strided(x, channels, f"fpn_output{4 * last}")
        keys += [2 * last, 4 * last]
    strides = {key: strides[key] if key in strides else strides[last] * key // last for key in keys}
    return {key: levels[key] for key in keys}, strides


def _convolve(x, channels, kernel_size, norm, name):
    options = {"padding": "same", "kernel_initializer": "lecun_uniform", "name": name}
    x = Conv2D(channels, kernel_size, use_bias=norm is None, **options)(x)
    return x if norm is None else create_norm(norm, channels, epsilon=1e-5, name=f"{name}_norm")(x)


def _strided(x, channels, name):
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_pad")(x)  # "same" would pad even maps at the end only
    return Conv2D(channels, 3, strides=2, kernel_initializer="lecun_uniform", name=name)(x)


@keras.saving.register_keras_serializable("detseg")
class UpsampleNearestLike(keras.layers.Layer):
    """Repeats every pixel of maps (B, h, w, C) `factor` times a side, and cuts them to a reference's size (B, H, W, K).

    Pixel i takes pixel i // factor, or the last one: H may be beyond h * factor, where a layer has rounded it down.
    """

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, maps, reference):
        height, width = ops.shape(reference)[1:3]
        maps = ops.pad(maps, [(0, 0), (0, 1), (0, 1), (0, 0)], mode="symmetric")
        maps = ops.repeat(ops.repeat(maps, self.factor, axis=1), self.factor, axis=2)
        return maps[:, :height, :width]

    def compute_output_shape(self, maps_shape, reference_shape):
        return (maps_shape[0], *reference_shape[1:3], maps_shape[3])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
