import csv
import json
import logging
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from detseg.data.readers.create import create_dataset
from detseg.data.sampling import image_repeat_factors
from detseg.data.scan import scan_split
from detseg.errors import UserError
from detseg.training import fit
from detseg.training.fit import train
from detseg.training.run_folder import RunFolder
from detseg.training.weights import averaged_weights, load_best_weights

TIME_COLUMNS = ("seconds", "train_images_per_second")


def history_of(run):
    """history.csv without its time columns."""
    with open(run / "history.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIME_COLUMNS} for row in csv.DictReader(file)]


def weights_of(run):
    import h5py

    values = {}
    with h5py.File(run / "best.weights.h5") as file:
        file.visititems(lambda name, item: values.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return values


def test_run_folder_holds_what_the_contract_says(trained_run):
    for name in ("config.yaml", "classes.json", "environment.json", "best.weights.h5", "history.csv", "log.txt"):
        assert (trained_run / name).is_file(), name
    assert any((trained_run / "tensorboard").iterdir())
    assert any((trained_run / "state").iterdir())
    assert json.loads((trained_run / "classes.json").read_text())[0] == "background"
    environment = json.loads((trained_run / "environment.json").read_text())
    assert environment["packages"]["keras"] == keras.__version__
    assert [row["epoch"] for row in history_of(trained_run)] == ["1", "2"]
    assert not list(trained_run.rglob(".*")), "nothing half-written is left"


def test_two_runs_of_one_config_give_the_same_history(quick_config, trained_run, tmp_path):
    train(quick_config(), tmp_path / "again")
    assert history_of(tmp_path / "again") == history_of(trained_run)


def test_the_step_is_traced_once(quick_config, monkeypatch):
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda self, data: traced.append(1) or step(self, data))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    fit.compile_model(model, None, "mse", quick_config(), steps_per_epoch=2)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=2, verbose=0)
    assert len(traced) == 1


RARE_CLASSES = [
    "train.sampling={name: repeat_factor, threshold: 0.9}",
    "augmentation.1.random_crop={size: [64, 64], rare_classes: 0.5, max_class_share: 0.75}",
]
WITH_NORMS = ["model.backbone=mobilenet", "model.alpha=0.25", "model.head_channels=null"]


@pytest.mark.parametrize(
    "extra", [[], [*WITH_NORMS, "train.optimizer={name: adam, learning_rate: 0.01}", "train.ema=0.9", *RARE_CLASSES]]
)
def test_resumed_run_equals_uninterrupted_run(quick_config, tmp_path, monkeypatch, extra):
    """From what the run has left behind when its second epoch begins."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    begin_epoch = fit.Record.on_epoch_begin

    def copy_at_second_epoch(self, epoch, logs=None):
        begin_epoch(self, epoch, logs)
        if epoch == 1:
            shutil.copytree(whole, resumed)

    with monkeypatch.context() as patch:
        patch.setattr(fit.Record, "on_epoch_begin", copy_at_second_epoch)
        train(quick_config(*extra), whole)
    assert len(history_of(resumed)) == 1
    train(quick_config(*extra), resumed, resume=True)
    assert history_of(resumed) == history_of(whole)
    expected, actual = weights_of(whole), weights_of(resumed)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_resume_with_more_epochs_goes_on_and_other_changes_are_refused(quick_config, tmp_path):
    run = tmp_path / "run"
    constant = "train.schedule={name: constant}"
    train(quick_config("train.epochs=1", constant), run)
    with pytest.raises(UserError, match=r"train\.batch_size"):
        train(quick_config("train.batch_size=2", constant), run, resume=True)
    with pytest.raises(UserError, match="all 1 epochs are done"):
        train(quick_config("train.epochs=1", constant), run, resume=True)
    train(quick_config("train.epochs=2", constant), run, resume=True)
    assert len(history_of(run)) == 2


def test_a_row_of_history_without_its_state_is_not_doubled_by_resuming(quick_config, tmp_path):
    run = tmp_path / "run"
    constant = "train.schedule={name: constant}"
    folder = train(quick_config("train.epochs=1", constant), run)
    folder.append_history(
        folder.read_history()[0] | {"epoch": "2", "loss": "9"}
    )  # stopped before the state was written
    train(quick_config("train.epochs=2", constant), run, resume=True)
    rows = history_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[1]["loss"] != "9"
    assert RunFolder(run).read_config().train.epochs == 2


def test_a_run_of_a_version_that_named_a_column_otherwise_goes_on(quick_config, tmp_path):
    constant = "train.schedule={name: constant}"
    folder = train(quick_config("train.epochs=1", constant, "data.val=null"), tmp_path / "run")
    folder.history.write_text(folder.history.read_text().replace("train_images_per_second", "images_per_second"))
    train(quick_config("train.epochs=2", constant, "data.val=null"), tmp_path / "run", resume=True)
    assert all(float(row["train_images_per_second"]) > 0 for row in folder.read_history())
    assert len(folder.read_history()) == 2


def test_a_damaged_state_is_told(quick_config, tmp_path):
    folder = train(quick_config("train.epochs=1"), tmp_path / "run")
    folder.state.write_bytes(folder.state.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        train(quick_config("train.epochs=2"), tmp_path / "run", resume=True)


def test_splits_with_other_classes_are_refused(shapes_root, quick_config, tmp_path):
    annotations = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    annotations["categories"] = annotations["categories"][::-1][:-1]
    kept = {category["id"] for category in annotations["categories"]}
    annotations["annotations"] = [item for item in annotations["annotations"] if item["category_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    data = {"format": "coco", "root": str(shapes_root)}
    data["train"] = {"annotations": "annotations/instances_train.json", "images": "JPEGImages"}
    data["val"] = {"annotations": str(tmp_path / "val.json"), "images": "JPEGImages"}
    with pytest.raises(UserError, match=r"data\.val: its classes are .* but those of data\.train"):
        train(quick_config(f"data={json.dumps(data)}"), tmp_path / "run")


def test_augmentation_to_different_sizes_is_told_with_the_image(quick_config, tmp_path):
    crop = "{albumentations: {name: RandomScale, arguments: {scale_limit: 0.5, p: 1.0}}}"
    with pytest.raises(UserError, match=r"shapes_train_\d+: augmentation made it"):
        train(quick_config(f"augmentation=[{crop}]"), tmp_path / "run")


def test_a_run_folder_with_files_is_never_overwritten(quick_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        train(quick_config(), run)
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]


def test_resume_without_a_run_says_so(quick_config, tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        train(quick_config(), tmp_path / "nothing", resume=True)


class Killed(BaseException):
    """The end of a process, at a moment that a test chooses."""


def killed_before(monkeypatch, name, count=1):
    """From now on the `count`-th file of this name is not renamed into place: the process ends instead."""
    seen, replace = [], os.replace

    def end(source, target):
        seen.extend([target] if Path(target).name == name else [])
        if len(seen) == count and Path(target).name == name:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", end)


@pytest.mark.parametrize(
    "name",
    [
        "classes.json",
        pytest.param("model.json", marks=pytest.mark.slow),
        pytest.param("history.csv", marks=pytest.mark.slow),
        pytest.param("best.weights.h5", marks=pytest.mark.slow),
        "last_epoch.npz",
    ],
)
def test_a_run_killed_before_its_first_state_is_resumed_from_the_beginning(
    name, quick_config, trained_run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        killed_before(patch, name)
        with pytest.raises(Killed):
            train(quick_config(), tmp_path / "run")
    train(quick_config(), tmp_path / "run", resume=True)
    assert history_of(tmp_path / "run") == history_of(trained_run)


def test_a_run_killed_before_its_folder_has_a_config_is_started_anew(quick_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_before(patch, "config.yaml")
        with pytest.raises(Killed):
            train(quick_config("train.epochs=1"), tmp_path / "run")
    (tmp_path / "run" / ".123-config.yaml").write_text("what a killed process leaves")
    train(quick_config("train.epochs=1"), tmp_path / "run")


@pytest.mark.parametrize("name", ["best.weights.h5", "last_epoch.npz"])
def test_without_validation_a_run_killed_at_its_end_can_be_resumed_to_its_weights(
    name, quick_config, tmp_path, monkeypatch
):
    config = quick_config("data.val=null")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_before(patch, name, 1 if name == "best.weights.h5" else 2)
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    expected, actual = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(np.array_equal(actual[key], value) for key, value in expected.items())
    with pytest.raises(UserError, match="all 2 epochs are done"):
        train(config, tmp_path / "run", resume=True)


def test_weights_that_an_older_version_had_no_time_to_write_are_written(quick_config, tmp_path):
    """Its last state came before them, and a resumed run had nothing left to do."""
    config = quick_config("data.val=null", "train.epochs=1")
    folder = train(config, tmp_path / "run")
    expected = weights_of(folder.path)
    folder.best_weights.unlink()
    train(config, tmp_path / "run", resume=True)
    assert all(np.array_equal(weights_of(folder.path)[key], value) for key, value in expected.items())


def test_a_non_finite_loss_stops_with_the_names_of_the_images(quick_config, tmp_path):
    config = quick_config("train.optimizer={name: sgd, learning_rate: 1e+30}", "train.schedule={name: constant}")
    with pytest.raises(UserError, match=r"the loss is (nan|inf).*shapes_train_\d+.*learning_rate"):
        train(config, tmp_path / "run")


def test_frozen_stages_keep_their_weights_and_statistics(quick_config, tmp_path):
    config = quick_config(*WITH_NORMS, "model.freeze_stages=3", "train.epochs=1")
    keras.utils.set_random_seed(config.seed)
    task = fit.create_task(config, ["a"] * 6)
    initial, backbone = task.create_model()
    names = {layer.name for layer in backbone.stage_layers(3)}
    expected = {layer.name: layer.get_weights() for layer in backbone.model.layers}
    train(config, tmp_path / "run")
    load_best_weights(initial, RunFolder(tmp_path / "run"))
    for layer in backbone.model.layers:
        same = all(np.array_equal(a, b) for a, b in zip(expected[layer.name], layer.get_weights(), strict=True))
        if layer.weights:
            assert same == (layer.name in names), layer.name


def test_initial_weights_take_over_equal_layers_and_say_what_is_left(quick_config, trained_run, tmp_path, caplog):
    logging.getLogger("detseg").propagate = True
    config = quick_config(
        "model.name=fcn16s", f"train.initial_weights={trained_run}", "train.epochs=1", "train.steps_per_epoch=1"
    )
    with caplog.at_level(logging.INFO, logger="detseg"):
        train(config, tmp_path / "run")
    assert "initial weights:" in caplog.text
    assert "left as they were: none" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averaged_weights_are_swapped_in_and_out(precision):
    keras.config.set_dtype_policy(precision)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), loss="mse", jit_compile=False)
    for _ in range(6):  # mixed_float16 skips the first steps until its loss scale fits
        model.train_on_batch(np.full((1, 1), 0.5), np.zeros((1, 1)))
    raw = np.array(model.weights[0])
    with averaged_weights(model):
        assert not np.array_equal(np.array(model.weights[0]), raw)
    np.testing.assert_array_equal(np.array(model.weights[0]), raw)


def test_without_a_validation_split_the_last_weights_are_kept(quick_config, tmp_path):
    folder = train(quick_config("data.val=null", "train.epochs=1"), tmp_path / "run")
    assert folder.best_weights.is_file()
    assert "val_miou" not in history_of(folder.path)[0]


def test_early_stopping_ends_the_run(quick_config, tmp_path):
    config = quick_config(
        "train.early_stopping=1",
        "train.epochs=30",
        "train.optimizer={name: sgd, learning_rate: 1e-12}",
        "train.schedule={name: constant}",
        "train.steps_per_epoch=1",
    )
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match="early stopping ended the training after epoch"):
        train(config, tmp_path / "run", resume=True)
    scores = [float(row["val_miou"]) for row in history_of(tmp_path / "run")]
    assert len(scores) < 30
    assert scores[-1] <= max(scores[:-1]), "the last epoch brought nothing"
    assert all(score > max(scores[:index]) for index, score in enumerate(scores[:-1]) if index), "all others did"


def test_repeat_factors_lengthen_the_pass_and_are_logged(shapes_root, quick_config, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fit, "_fit", lambda *arguments: calls.append(arguments))
    config = quick_config(*RARE_CLASSES, "train.batch_size=2")
    folder = train(config, tmp_path / "run")
    scan = scan_split(create_dataset(config.data, "train"), "segmentation")
    steps_per_epoch = int(image_repeat_factors(scan.class_presence, 0.9).sum()) // 2
    assert steps_per_epoch > 12 // 2
    ((training,),) = calls
    assert training.steps_per_epoch == steps_per_epoch
    assert len(training.stream) == 2 * 2 * steps_per_epoch
    assert "repeat factors: " in folder.log.read_text()


def test_median_frequency_weights_are_computed_once_and_kept_in_the_run(quick_config, tmp_path):
    folder = train(quick_config("loss.0.class_weights=median_frequency", "train.epochs=1"), tmp_path / "run")
    weights = json.loads((folder.path / "class_weights.json").read_text())
    assert list(weights) == json.loads((folder.path / "classes.json").read_text())
    assert weights["background"] < 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augmentation=[{scale_jitter: [0.5, 2.0]}]"], "scale_jitter"),
        (["loss.0.class_weights=[1, 2]"], r"2 weights, but the data has 6 classes"),
        (["data.train=trian"], "trian"),
        (["augmentation.2={albumentations: {name: GaussNoize}}"], "GaussNoize"),
        (["model={name: deeplabv3, backbone: vgg16}", "train.batch_size=1"], "1 image gives the batch norm"),
        (["loss=[{name: tversky, alpha: 0, beta: 0}]"], "no error would count"),
        (["train.early_stopping=2", "data.val=null"], r"early_stopping.*data\.val"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(quick_config, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(quick_config(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mixed_precision_trains(quick_config, tmp_path):
    folder = train(quick_config("train.precision=mixed_bfloat16", "train.epochs=1"), tmp_path / "run")
    assert np.isfinite(float(history_of(folder.path)[0]["loss"]))
