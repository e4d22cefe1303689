"""Arrays from anywhere copied into Keras layers of the same names."""

import keras
import numpy as np

from detseg.errors import UserError

LISTED_LAYERS = 12  # of the differing layers that an error names


def copy_layers(targets, layers, misfit, hint):
    """Copies arrays into Keras layers of the same names; nothing is changed unless every layer with weights fits.

    targets:       the layers, of which the first with weights may see other than 3 channels: see `load_weights`.
    layers:        {layer name: [arrays]} in the order of keras' layer.weights.
    misfit, hint:  what the error says before and after the number of layers that differ.
    Returns        tuple of str: the names in `layers` that no layer has.
    Raises UserError naming the layers that are missing or of another shape.
    """
    targets = [layer for layer in targets if layer.weights]
    values, problems = {}, []
    for layer in targets:
        arrays = layers.get(layer.name)
        if not arrays and isinstance(layer, keras.layers.PReLU):
            continue  # put in place of the relus that the weights were trained with: starts at its own slope
        if arrays is None:
            problems.append(f"{layer.name}: missing in the file")
            continue
        if layer is targets[0]:
            arrays = [_fit_channels(arrays[0], layer.weights[0].shape), *arrays[1:]]
        expected, found = [tuple(w.shape) for w in layer.weights], [tuple(a.shape) for a in arrays]
        if expected != found:
            problems.append(f"{layer.name}: file {' '.join(map(str, found))}, model {' '.join(map(str, expected))}")
        values[layer.name] = arrays
    if problems:
        more = [f"and {len(problems) - LISTED_LAYERS} more"] if len(problems) > LISTED_LAYERS else []
        raise UserError(
            f"model.weights: {misfit}: {len(problems)} of {len(targets)} layers differ. {hint}"
            + "".join(f"\n  {problem}" for problem in problems[:LISTED_LAYERS] + more)
        )
    values = {name: [np.asarray(array) for array in arrays] for name, arrays in values.items()}
    for layer in targets:
        if layer.name in values:
            layer.set_weights(values[layer.name])
    return tuple(name for name, arrays in layers.items() if arrays and name not in values)


def _fit_channels(kernel, shape):
    """A (k, k, 3, F) kernel for the model's kernel shape (k, k, C, F), C != 3; any other kernel as it is."""
    if len(kernel.shape) != 4 or len(shape) != 4 or kernel.shape[2] != 3 or shape[2] == 3:
        return kernel
    mean = np.mean(np.asarray(kernel), axis=2, keepdims=True)
    return np.repeat(mean * (3 / shape[2]), shape[2], axis=2)
