"""What a config's train section may say: optimizers, schedules, sampling, and how long and on what to train."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detseg.fields import Count, Fraction, NotEmpty, NotNegative, Positive, Probability, Section, Several, Text, Whole

_OPTIMIZER = "The optimizer, by Keras' name."
_WEIGHT_DECAY = "Decoupled decay: w -= learning rate * decay * w; not on norms and biases."
_AMSGRAD = "Divide by the largest mean of squares so far (Reddi et al. 2018)."


class _Optimizer(Section):
    name: str = Field(description=_OPTIMIZER)
    learning_rate: Positive = Field(description="The learning rate at its peak; the schedule scales it.")
    weight_decay: NotNegative = Field(0.0, description=_WEIGHT_DECAY)
    clip_norm: Positive | None = Field(None, description="The most that the norm over all gradients may be; null: any.")


class _EpsilonOptimizer(_Optimizer):
    epsilon: Positive = Field(1e-7, description="Small number against division by zero.")


class _BetaOptimizer(_EpsilonOptimizer):
    beta_1: Fraction = Field(0.9, description="Decay of the mean of the gradients.")
    beta_2: Fraction = Field(0.999, description="Decay of the mean (adamax: maximum) of their squares.")


class SGD(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = Field(description=_OPTIMIZER)
    momentum: Fraction = Field(0.0, description="Share of the last step that is repeated.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")


class Adagrad(_EpsilonOptimizer):
    """Adagrad."""

    name: Literal["adagrad"] = Field(description=_OPTIMIZER)
    initial_accumulator_value: NotNegative = Field(0.1, description="First value of the sums of squares.")


class Adadelta(_EpsilonOptimizer):
    """Adadelta."""

    name: Literal["adadelta"] = Field(description=_OPTIMIZER)
    rho: Fraction = Field(0.95, description="Decay of the means of squares.")


class RMSprop(_EpsilonOptimizer):
    """RMSprop."""

    name: Literal["rmsprop"] = Field(description=_OPTIMIZER)
    rho: Fraction = Field(0.9, description="Decay of the mean of squares.")
    momentum: Fraction = Field(0.0, description="Share of the last step that is repeated.")
    centered: bool = Field(False, description="Divide by the variance instead of the mean of squares.")


class Adam(_BetaOptimizer):
    """Adam."""

    name: Literal["adam"] = Field(description=_OPTIMIZER)
    amsgrad: bool = Field(False, description=_AMSGRAD)


class Adamax(_BetaOptimizer):
    """Adamax."""

    name: Literal["adamax"] = Field(description=_OPTIMIZER)


class Nadam(_BetaOptimizer):
    """Adam with Nesterov momentum."""

    name: Literal["nadam"] = Field(description=_OPTIMIZER)


class AdamW(_BetaOptimizer):
    """Adam with Keras' default decay."""

    name: Literal["adamw"] = Field(description=_OPTIMIZER)
    weight_decay: NotNegative = Field(0.004, description=_WEIGHT_DECAY)
    amsgrad: bool = Field(False, description=_AMSGRAD)


Optimizer = SGD | Adagrad | Adadelta | RMSprop | Adam | Adamax | Nadam | AdamW


_SCHEDULE = "How the learning rate changes."


class _Schedule(Section):
    name: str = Field(description=_SCHEDULE)
    warmup_steps: Whole = Field(0, description="Steps over which the learning rate first rises linearly.")


class ConstantSchedule(_Schedule):
    """The learning rate stays."""

    name: Literal["constant"] = Field(description=_SCHEDULE)


class PolySchedule(_Schedule):
    """Falls to 0 as (1 - step / steps) ** power."""

    name: Literal["poly"] = Field(description=_SCHEDULE)
    power: Positive = Field(0.9, description="The exponent.")


class CosineSchedule(_Schedule):
    """Falls along half a cosine."""

    name: Literal["cosine"] = Field(description=_SCHEDULE)
    final_fraction: float = Field(0.0, ge=0, le=1, description="Share of the learning rate left at the end.")


class StepSchedule(_Schedule):
    """Falls in steps."""

    name: Literal["step"] = Field(description=_SCHEDULE)
    epochs: Annotated[Several[Count], NotEmpty] = Field(
        description="Numbers of finished epochs after which the rate is multiplied by gamma; ascending."
    )
    gamma: Positive = Field(0.1, description="The factor at each of them.")

    @model_validator(mode="after")
    def _ascending(self):
        if any(a >= b for a, b in zip(self.epochs, self.epochs[1:], strict=False)):
            raise ValueError(f"epochs is {list(self.epochs)}: expected ascending numbers")
        return self


Schedule = ConstantSchedule | PolySchedule | CosineSchedule | StepSchedule


class RepeatFactorSampling(Section):
    """Images with rare classes come more often (Gupta et al. 2019)."""

    name: Literal["repeat_factor"] = Field(description="How images are drawn.")
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Share t of the images: those of a class that is in a smaller share f come sqrt(t / f) "
        "times a pass."
    )


class Freeze(Section):
    """Layers that stay as they are while the new ones find their way."""

    until_epoch: Count = Field(description="How many epochs they stay as they are.")
    layers: Literal["loaded", "backbone"] = Field(
        "loaded",
        description="loaded: all layers whose weights come from model.weights or train.initial_weights; backbone: the "
        "backbone's. Batch norms among them (norm: batch) go on learning statistics.",
    )


class Train(Section):
    """How the model is trained."""

    epochs: Count = Field(description="Passes over the training split.")
    batch_size: Count = Field(description="Images in a step.")
    optimizer: Optimizer = Field(discriminator="name", description="What turns gradients into steps.")
    schedule: Schedule = Field(ConstantSchedule(name="constant"), discriminator="name", description=_SCHEDULE)
    backbone_learning_rate_factor: NotNegative = Field(1.0, description="Factor on the rate of the backbone's layers.")
    new_layers_learning_rate_factor: Positive = Field(
        1.0,
        description="Factor on the rate of layers that no weights were loaded into, or not for all classes, where "
        "others have theirs from model.weights or train.initial_weights.",
    )
    freeze: Freeze | None = Field(None, description="What is not trained at first; null: all is.")
    bias_learning_rate_factor: Positive = Field(
        1.0, description="Factor on the rate of biases; FCN's paper doubles it."
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="Keras' dtype policy; loss and logits stay float32."
    )
    ema: Probability | None = Field(
        None,
        description="Momentum of an average of the weights, which is then what is evaluated and saved; early in "
        "training it is less, (1 + step) / (10 + step). null: none.",
    )
    early_stopping: Count | None = Field(
        None, description="Epochs without a better validation score after which training ends; null: never."
    )
    validate_every: Count = Field(1, description="Epochs from one validation to the next.")
    sampling: RepeatFactorSampling | None = Field(
        None, description="How often each image comes in a pass, which has more steps then; null: once."
    )
    steps_per_epoch: Count | None = Field(None, description="Steps of an epoch; null: all of the training split.")
    workers: Whole = Field(2, description="Threads that load images.")
    initial_weights: Text | None = Field(
        None,
        description="Run folder whose weights are taken over before training, for layers of the same name: "
        "fine-tuning, and FCN-32s -> 16s -> 8s.",
    )
