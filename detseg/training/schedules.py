"""Learning-rate schedules with a linear warm-up."""

import keras
from keras import ops


def create_schedule(config, learning_rate, steps_per_epoch, epochs):
    """The schedule of a config's train.schedule.

    learning_rate:  the peak, reached after the warm-up.
    Returns         a LearningRateSchedule: step number -> learning rate.
    """
    total = steps_per_epoch * epochs
    factors = {
        "constant": lambda step: ops.ones_like(step),
        "poly": lambda step: _poly(step, total, config.power),
        "cosine": lambda step: _cosine(step, total, config.final_fraction),
        "step": lambda step: _step(step, [epoch * steps_per_epoch for epoch in config.epochs], config.gamma),
    }
    return WarmupSchedule(learning_rate, factors[config.name], config.warmup_steps)


class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """learning_rate * factor(step), and in the first `warmup_steps` steps also times (step + 1) / warmup_steps.

    factor:  function of a float32 scalar, the number of steps done.
    """

    def __init__(self, learning_rate, factor, warmup_steps):
        self.learning_rate = learning_rate
        self.factor = factor
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warmup = ops.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warmup * self.factor(step)

    def get_config(self):
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps}


def _poly(step, total, power):
    """(1 - step / total) ** power (Liu et al., ParseNet; DeepLab)."""
    return ops.power(ops.maximum(1 - step / total, 0.0), power)


def _cosine(step, total, final_fraction):
    """Half a cosine from 1 to final_fraction (Loshchilov and Hutter 2017, without restarts)."""
    cosine = 0.5 * (1 + ops.cos(3.141592653589793 * ops.minimum(step / total, 1.0)))
    return final_fraction + (1 - final_fraction) * cosine


def _step(step, boundaries, gamma):
    """gamma ** (how many boundaries are behind)."""
    passed = ops.sum(ops.cast(step >= ops.convert_to_tensor(boundaries, "float32"), "float32"))
    return ops.power(ops.cast(gamma, "float32"), passed)
