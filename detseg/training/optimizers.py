"""Keras' optimizers with learning-rate factors for parts of a model and weight decay that spares norms and biases."""

import keras
from keras import ops


class SGD(keras.optimizers.SGD):
    """keras.optimizers.SGD: same arguments and results; its momentum is one kernel on TensorFlow."""

    def update_step(self, gradient, variable, learning_rate):
        if self.momentum == 0 or keras.backend.backend() != "tensorflow":
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        if tf.distribute.has_strategy():  # the variables of several replicas have no handle of their own
            return super().update_step(gradient, variable, learning_rate)
        # accumulator = momentum * accumulator - learning_rate * gradient; variable += accumulator, both in place
        return tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,  # Keras hands TensorFlow's own variable here
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


def _is_kernel(variable):
    """Of two axes and more; the slopes of PReLU, (1, 1, C), are none (He et al., ICCV 2015, section 2.1)."""
    return len(variable.shape) >= 2 and variable.name != "alpha"


# Config name -> (class, the config's keys that are its own arguments). adamw is adam here: decay is ours for all.
OPTIMIZERS = {
    "sgd": (SGD, ("momentum", "nesterov")),
    "adagrad": (keras.optimizers.Adagrad, ("initial_accumulator_value", "epsilon")),
    "adadelta": (keras.optimizers.Adadelta, ("rho", "epsilon")),
    "rmsprop": (keras.optimizers.RMSprop, ("rho", "momentum", "epsilon", "centered")),
    "adam": (keras.optimizers.Adam, ("beta_1", "beta_2", "epsilon", "amsgrad")),
    "adamax": (keras.optimizers.Adamax, ("beta_1", "beta_2", "epsilon")),
    "nadam": (keras.optimizers.Nadam, ("beta_1", "beta_2", "epsilon")),
    "adamw": (keras.optimizers.Adam, ("beta_1", "beta_2", "epsilon", "amsgrad")),
}


def create_optimizer(config, schedule, ema=None, learning_rate_factor=None, frozen_steps=None):
    """The optimizer of a config's train.optimizer.

    schedule:              a LearningRateSchedule.
    ema:                   None, or the momentum of an average of the weights kept beside them. Early in training it
                           is less, min(ema, (1 + step) / (10 + step)), so that the average forgets the weights it
                           began with (as tf.train.ExponentialMovingAverage does with num_updates).
    learning_rate_factor:  None, or a function of a variable -> float that its learning rate is multiplied by.
    frozen_steps:          None, or a function of a variable -> int: the first steps, in which it stays as it is.

    Weight decay is decoupled and scaled by the variable's learning rate, w -= rate * decay * w (Loshchilov and Hutter
    2019), for kernels only: not for biases, norms and the slopes of PReLU (see `_is_kernel`).
    """
    base, keys = OPTIMIZERS[config.name]
    factor_of = learning_rate_factor or (lambda variable: 1.0)
    frozen_steps_of = frozen_steps or (lambda variable: 0)
    decay = config.weight_decay

    class Optimizer(base):
        """`base` with a learning-rate factor and a decay for each variable; its average's momentum grows."""

        @property
        def ema_momentum(self):
            step = ops.cast(self.iterations, "float32")
            return ops.minimum(self._longest_ema_momentum, (1 + step) / (10 + step))

        @ema_momentum.setter
        def ema_momentum(self, value):  # Keras' own __init__ sets it
            self._longest_ema_momentum = value

        def build(self, variables):
            super().build(variables)
            self.factors = [factor_of(variable) for variable in variables]
            self.frozen_steps = [frozen_steps_of(variable) for variable in variables]
            self.decays = [decay if _is_kernel(variable) else 0.0 for variable in variables]

        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            learning_rate = learning_rate * self.factors[index]
            if self.frozen_steps[index]:
                is_frozen = self.iterations < self.frozen_steps[index]
                learning_rate = ops.where(is_frozen, ops.zeros_like(learning_rate), learning_rate)
            if self.decays[index]:
                rate = ops.cast(learning_rate * self.decays[index], variable.dtype)
                self.assign_sub(variable, ops.multiply(variable, rate))
            super().update_step(gradient, variable, learning_rate)

    Optimizer.__name__ = base.__name__
    return Optimizer(
        learning_rate=schedule,
        global_clipnorm=config.clip_norm,
        use_ema=ema is not None,
        ema_momentum=ema or 0.99,
        name=config.name,
        **{key: getattr(config, key) for key in keys},
    )
