"""Truncated SVD of a detector's dense layers (Girshick: Fast R-CNN, ICCV 2015, section 3.1)."""

import keras
import numpy as np


def truncate_head(head, ranks):
    """A head whose dense layers are compressed.

    head:     keras.Model, one tensor after the other, as of `create_dense_head`.
    ranks:    {layer's name: t}. Its kernel W (u, v) becomes two layers, of t and v units, with no nonlinearity between
              them, from the t largest singular values: W ~ (U sqrt S) (sqrt S V'). The second one has the bias.
    Returns   keras.Model of the same inputs and outputs, with t (u + v) weights in place of each u v.
    Raises    ValueError for a layer that isn't there or isn't dense, and for a t that isn't in 1..min(u, v).
    """
    dense = {layer.name: layer for layer in head.layers if isinstance(layer, keras.layers.Dense)}
    for name, rank in ranks.items():
        if name not in dense:
            raise ValueError(f"{name}: no dense layer; the head has {', '.join(dense) or 'none'}")
        largest = min(dense[name].kernel.shape)
        if not isinstance(rank, int) or not 1 <= rank <= largest:
            raise ValueError(f"{name}: rank {rank!r}, expected a whole number from 1 to {largest}")

    def compressed(layer):
        if layer.name not in ranks:
            return layer.__class__.from_config(layer.get_config())
        config, rank = layer.get_config(), ranks[layer.name]
        second = keras.layers.Dense.from_config(config | {"name": f"{layer.name}_u"})
        first = keras.layers.Dense(rank, use_bias=False, name=f"{layer.name}_v", dtype=layer.dtype_policy)
        return keras.Sequential([first, second], name=layer.name)

    clone = keras.models.clone_model(head, clone_function=compressed)
    for layer in head.layers:
        new = clone.get_layer(layer.name)
        if layer.name not in ranks:
            new.set_weights(layer.get_weights())
            continue
        kernel, *bias = layer.get_weights()
        u, s, v = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
        rank, root = ranks[layer.name], np.sqrt(s)
        new.set_weights([u[:, :rank] * root[:rank], root[:rank, None] * v[:rank], *bias])
    return clone
