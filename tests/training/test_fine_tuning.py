"""Fine-tuning: a run's weights taken over by class, what is frozen at first, and what learns faster."""

import itertools
import json
import logging
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from detseg.config import load_config
from detseg.errors import UserError
from detseg.tasks import create_task
from detseg.training.fit import train
from detseg.training.optimizers import create_optimizer
from detseg.training.weights import take_over_weights


def optimizer_config(name):
    own = {"sgd": {"momentum": 0.9, "nesterov": False}, "adam": {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}}
    return SimpleNamespace(name=name, weight_decay=0.1, clip_norm=None, amsgrad=False, **own[name])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_is_frozen_stays_to_the_last_bit_and_then_moves_as_the_rest(name):
    layers = [keras.layers.Dense(3, name=each) for each in ("old", "new")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    frozen = set(map(id, layers[0].trainable_variables))
    optimizer = create_optimizer(
        optimizer_config(name), keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9),
        frozen_steps=lambda variable: 2 * (id(variable) in frozen),
    )  # fmt: skip
    model.compile(optimizer, loss="mse")
    history = [[x.copy() for x in model.get_weights()]]
    for _ in range(3):
        model.train_on_batch(np.ones((4, 2)), np.zeros((4, 3)))
        history.append([x.copy() for x in model.get_weights()])
    for step, (before, after) in enumerate(itertools.pairwise(history)):
        moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [step == 2] * 2 + [True] * 2


def test_rows_of_the_same_classes_come_from_the_other_run(trained_run, quick_config, caplog):
    """Reordered and renamed classes keep what was learned of them."""
    config = quick_config()
    source = json.loads((trained_run / "classes.json").read_text())
    classes = (source[2], "nothing of the kind", source[0])
    model, backbone = create_task(config, classes).create_model()
    fresh = model.get_layer("score32").get_weights()
    with caplog.at_level(logging.INFO, "detseg"):
        loaded = take_over_weights(model, backbone, classes, trained_run)
    assert f"classes taken over: {source[2]}, {source[0]}; new: nothing of the kind" in caplog.text
    assert "score32" not in loaded
    assert "fc6" in loaded
    other, _ = create_task(load_config(trained_run / "config.yaml"), source).create_model(pretrained=False)
    other.load_weights(trained_run / "best.weights.h5")
    for ours, theirs, new in zip(
        model.get_layer("score32").get_weights(), other.get_layer("score32").get_weights(), fresh, strict=True
    ):
        np.testing.assert_array_equal(ours[..., [0, 2]], theirs[..., [2, 0]])
        np.testing.assert_array_equal(ours[..., 1], new[..., 1])
    np.testing.assert_array_equal(model.get_layer("fc6").get_weights()[0], other.get_layer("fc6").get_weights()[0])


def test_a_run_keeps_which_layers_were_loaded_and_resumes_as_if_it_had_not_stopped(trained_run, quick_config, tmp_path):
    settings = (
        f"train.initial_weights={trained_run}",
        "train.freeze={until_epoch: 1}",
        "train.new_layers_learning_rate_factor=2.0",
        "train.schedule={name: constant}",
        "model.name=fcn16s",
    )
    whole = train(quick_config(*settings), tmp_path / "whole")
    train(quick_config(*settings, "train.epochs=1"), tmp_path / "parts")
    parts = train(quick_config(*settings), tmp_path / "parts", resume=True)
    assert [row["loss"] for row in parts.read_history()] == [row["loss"] for row in whole.read_history()]
    loaded = json.loads((whole.path / "model.json").read_text())["loaded_layers"]
    assert "block1_conv1" in loaded


def test_freezing_needs_something_that_was_loaded(quick_config, tmp_path):
    with pytest.raises(UserError, match=r"train\.freeze: no layer's weights were loaded; expected model\.weights or"):
        train(quick_config("train.freeze={until_epoch: 1}"), tmp_path / "run")
