"""Learning-rate schedules with a linear warm-up."""

import math

import keras
from keras import ops


def create_schedule(config, learning_rate, steps_per_epoch, epochs):
    """The LearningRateSchedule of a config's train.schedule; `learning_rate` is the peak, reached after the warm-up."""
    total = steps_per_epoch * epochs

    def poly(step):  # Liu et al., ParseNet; DeepLab
        return ops.power(ops.maximum(1 - step / total, 0.0), config.power)

    def cosine(step):  # half of one, from 1 to final_fraction (Loshchilov and Hutter 2017, without restarts)
        falling = 0.5 * (1 + ops.cos(math.pi * ops.minimum(step / total, 1.0)))
        return config.final_fraction + (1 - config.final_fraction) * falling

    def in_steps(step):
        ends = ops.convert_to_tensor([epoch * steps_per_epoch for epoch in config.epochs], "float32")
        return ops.power(ops.cast(config.gamma, "float32"), ops.sum(ops.cast(step >= ends, "float32")))

    factors = {"constant": ops.ones_like, "poly": poly, "cosine": cosine, "step": in_steps}
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
