from types import SimpleNamespace

import keras
import numpy as np
import pytest

from detseg.config import train
from detseg.training.optimizers import OPTIMIZERS, create_optimizer
from detseg.training.schedules import create_schedule


def config_of(name, **keys):
    """The optimizer section of a config with its defaults."""
    classes = (train.SGD, train.Adagrad, train.Adadelta, train.RMSprop, train.Adam, train.Adamax, train.Nadam)
    by_name = {cls.__name__.lower(): cls for cls in (*classes, train.AdamW)}
    return by_name[name](name=name, learning_rate=0.1, **{"weight_decay": 0.0, **keys})


def step(optimizer, variables, gradients):
    optimizer.apply([np.asarray(gradient, "float32") for gradient in gradients], variables)
    return [np.array(variable) for variable in variables]


def kernel_and_bias():
    return [
        keras.Variable(np.full((2, 2), 2.0, "float32"), name="kernel"),
        keras.Variable(np.full(2, 2.0, "float32"), name="bias"),
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_without_decay_equals_keras_own(name):
    base, keys = OPTIMIZERS[name]
    config = config_of(name, weight_decay=0.0)
    theirs = base(learning_rate=0.1, **{key: getattr(config, key) for key in keys})
    ours = create_optimizer(config, 0.1)
    first, second = kernel_and_bias(), kernel_and_bias()
    for gradient in ([[1, 2], [3, 4]], [[-1, 0], [2, 1]]):
        expected = step(theirs, first, [gradient, [1, -1]])
        actual = step(ours, second, [gradient, [1, -1]])
        for a, b in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_momentum_equals_keras_sgd(nesterov):
    import tensorflow as tf

    ours = create_optimizer(config_of("sgd", momentum=0.9, nesterov=nesterov), 0.1)
    theirs = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    first, second = kernel_and_bias(), kernel_and_bias()
    for optimizer, variables in ((ours, first), (theirs, second)):
        optimizer.build(variables)
    gradients = [tf.constant(np.random.default_rng(0).normal(size=shape), "float32") for shape in ((2, 2), (2,))]

    @tf.function
    def steps():
        for _ in range(3):
            ours.apply(gradients, first)
            theirs.apply(gradients, second)

    steps()
    names = {operation.type for operation in steps.get_concrete_function().graph.get_operations()}
    assert "ResourceApplyKerasMomentum" in names
    for mine, other in zip([*first, *ours.variables], [*second, *theirs.variables], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_adamw_equals_keras_adamw_up_to_rounding():
    config = config_of("adamw", weight_decay=0.01)
    theirs = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.01)
    theirs.exclude_from_weight_decay(var_names=["bias"])
    ours = create_optimizer(config, 0.1)
    first, second = kernel_and_bias(), kernel_and_bias()
    for _ in range(3):
        expected = step(theirs, first, [np.ones((2, 2)), [1, -1]])
        actual = step(ours, second, [np.ones((2, 2)), [1, -1]])
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_decay_shrinks_kernels_by_hand_and_spares_biases():
    kernel, bias = step(
        create_optimizer(config_of("sgd", weight_decay=0.5), 0.1), kernel_and_bias(), [np.zeros((2, 2)), np.zeros(2)]
    )
    np.testing.assert_allclose(kernel, 2.0 - 0.1 * 0.5 * 2.0)
    np.testing.assert_array_equal(bias, 2.0)


def test_learning_rate_factors_scale_update_and_decay():
    factors = {"kernel": 0.1, "bias": 2.0}
    optimizer = create_optimizer(
        config_of("sgd", weight_decay=0.5), 0.1, learning_rate_factor=lambda variable: factors[variable.name]
    )
    kernel, bias = step(optimizer, kernel_and_bias(), [np.ones((2, 2)), np.ones(2)])
    np.testing.assert_allclose(kernel, 2.0 - 0.01 * 0.5 * 2.0 - 0.01, rtol=1e-6)
    np.testing.assert_allclose(bias, 2.0 - 0.2, rtol=1e-6)


def test_clip_norm_is_over_all_variables_together():
    optimizer = create_optimizer(config_of("sgd", clip_norm=1.0), 1.0)
    kernel, bias = step(optimizer, kernel_and_bias(), [np.full((2, 2), 3.0), np.full(2, 4.0)])
    norm = np.sqrt(4 * 9 + 2 * 16)
    np.testing.assert_allclose(kernel, 2 - 3 / norm, rtol=1e-6)
    np.testing.assert_allclose(bias, 2 - 4 / norm, rtol=1e-6)


def rates(name, steps, warmup_steps=0, **keys):
    config = SimpleNamespace(name=name, warmup_steps=warmup_steps, **keys)
    schedule = create_schedule(config, 0.2, steps_per_epoch=5, epochs=4)
    return [float(schedule(step)) for step in steps]


def test_schedules_by_hand():
    assert rates("constant", [0, 19]) == pytest.approx([0.2, 0.2])
    assert rates("poly", [0, 10, 20], power=0.9) == pytest.approx([0.2, 0.2 * 0.5**0.9, 0])
    assert rates("cosine", [0, 10, 20], final_fraction=0.1) == pytest.approx([0.2, 0.2 * 0.55, 0.02])
    assert rates("step", [0, 9, 10, 15], epochs=(2, 3), gamma=0.1) == pytest.approx([0.2, 0.2, 0.02, 0.002])


def test_warm_up_rises_linearly_to_the_schedule():
    assert rates("constant", [0, 1, 3, 4], warmup_steps=4) == pytest.approx([0.05, 0.1, 0.2, 0.2])
    assert rates("poly", [1, 10], warmup_steps=2, power=1.0) == pytest.approx([0.2 * 0.95, 0.1])


def test_averaged_weights_forget_the_first_ones_early_and_reach_the_configs_momentum():
    optimizer, (variable, _) = create_optimizer(config_of("sgd"), 0.1, ema=0.6), kernel_and_bias()
    optimizer.build([variable])
    (kept,) = (each for each in optimizer.variables if each.name.endswith("average"))
    expected = None
    for iteration in range(30):
        value = step(optimizer, [variable], [np.ones((2, 2))])[0]
        momentum = min(0.6, (1 + iteration) / (10 + iteration)) if iteration else 0
        expected = value if expected is None else momentum * expected + (1 - momentum) * value
        average = np.array(kept)
        np.testing.assert_allclose(average, expected, rtol=1e-5)
    # A mean of the last weights, each 0.1 below the one before it: it stays momentum / (1 - momentum) steps behind.
    np.testing.assert_allclose(average, value + 0.1 * 0.6 / 0.4, atol=1e-4)
