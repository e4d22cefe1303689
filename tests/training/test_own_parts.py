"""Parts of a training that are given from Python: what cannot work is one message, before anything is written."""

import keras
import numpy as np
import pytest

import detseg
from detseg.data.dataset import Dataset
from detseg.data.sample import Sample
from detseg.errors import UserError
from detseg.training.fit import train


class Squares(Dataset):
    classes = ("background", "square")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        label_map = np.zeros((32, 32), np.int64)
        label_map[4 + index : 20, 5:21] = 1
        return Sample(
            image=np.full((32, 32, 3), 60, np.uint8) + label_map[..., None].astype(np.uint8), label_map=label_map
        )


CONFIG = {
    "task": "segmentation",
    "data": {"format": "custom"},
    "model": {"name": "custom"},
    "train": {"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
}


def model_of(channels=3, classes=2):
    images = keras.Input((None, None, channels))
    return keras.Model(images, keras.layers.Conv2D(classes, 1)(images))


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        (CONFIG, {}, r"data\.format: custom: the data set is given from Python"),
        (CONFIG, {"train_set": [1, 2]}, r"train_set=: got list, expected a detseg\.Dataset"),
        (CONFIG, {"train_set": Squares()}, r"model\.name: custom: the model is given from Python"),
        (CONFIG, {"train_set": Squares(), "model": "resnet"}, r"model=: got str, expected a keras\.Model"),
        (CONFIG, {"train_set": Squares(), "model": model_of(classes=5)}, r"logits \(batch, height, width, 2\)"),
        (CONFIG, {"train_set": Squares(), "model": model_of(channels=1)}, r"raw pixels \(batch, height, width, 3\)"),
        (CONFIG, {"train_set": Squares(), "model": model_of(), "loss": 3}, r"loss=: got int"),
        (
            CONFIG | {"model": {"name": "unet", "width": 4, "depth": 1}},
            {"train_set": Squares(), "model": model_of()},
            r"model=: a model from Python, but model\.name is unet; expected model\.name: custom",
        ),
        (5, {}, "got int, expected the path of a YAML file or a mapping"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(config, parts, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", **parts)
    assert not (tmp_path / "run").exists()


def test_a_run_with_parts_of_ones_own_is_scored_resumed_and_told_apart(tmp_path):
    run, parts = tmp_path / "run", {"train_set": Squares(), "model": model_of()}
    train(CONFIG, run, **parts)
    with pytest.raises(UserError, match=r"model\.name: custom"):
        detseg.load(run)
    result = detseg.evaluate(detseg.load(run, model=parts["model"]), "mine", dataset=Squares())
    assert result["split"] == "mine"
    assert (run / "evaluation" / "mine.json") in result.paths
    with pytest.raises(UserError, match=r"dataset=: got list"):
        detseg.evaluate(detseg.load(run, model=parts["model"]), "mine", dataset=[])
    longer = CONFIG | {"train": CONFIG["train"] | {"epochs": 2}}
    with pytest.raises(UserError, match=r"started with model=, train_set=, and is resumed with train_set="):
        train(longer, run, resume=True, train_set=Squares())
    folder = train(longer, run, resume=True, **parts)
    assert len(folder.read_history()) == 2


def test_an_augmentation_of_ones_own_gives_samples(tmp_path):
    parts = {"train_set": Squares(), "model": model_of(), "augment": lambda sample, rng: sample.image}
    with pytest.raises(UserError, match=r"augment=: \d: gave ndarray, expected a detseg\.Sample"):
        train(CONFIG, tmp_path / "run", **parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": "large"}, "tile: got 'large', expected auto or a number of pixels"),
        ({"tile": 0}, "tile: got 0"),
        ({"tile_memory": "1 GB"}, "tile_memory: got '1 GB', expected a number of bytes > 0"),
        ({"score_threshold": 0.5}, "--score-threshold: not for task: segmentation"),
        ({"views": 3}, "--views: not for task: segmentation, which is this run's; it takes probabilities, tile"),
    ],
)
def test_options_that_cannot_work_are_told(trained_run, options, message):
    with pytest.raises(UserError, match=message):
        detseg.load(trained_run).predict(np.zeros((8, 8, 3), np.uint8), **options)
