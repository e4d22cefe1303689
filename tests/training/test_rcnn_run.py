"""R-CNN from config to figures: fine-tuned, features, SVMs and regressors fitted, killed in each stage and resumed."""

import json
import shutil

import cv2
import numpy as np
import pytest

import detseg
from detseg.data.dataset import Dataset
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.errors import UserError
from detseg.inference.rcnn_heads import RCNNHeads
from detseg.tasks import rcnn as rcnn_task
from detseg.training.fit import train

pytest.importorskip("sklearn", reason="SVMs are trained by scikit-learn, of the extra rcnn")


class Cards(Dataset):
    """Bright and dark cards on grey; proposals are the cards, shifted and scaled, and places where there is none."""

    classes = ("bright", "dark", "nowhere")

    def __init__(self, count, first=0):
        self.count, self.first = count, first

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng(1000 + self.first + i)
        image = rng.integers(110, 140, (96, 128, 3)).astype(np.uint8)
        labels = np.arange(2)
        corners = np.array([[rng.integers(4, 24), rng.integers(4, 40)], [rng.integers(68, 88), rng.integers(4, 40)]])
        boxes = np.concatenate([corners, corners + rng.integers(28, 40, (2, 2))], axis=1).astype(np.float32)
        for box, value in zip(boxes.astype(int), (230, 20), strict=True):
            cv2.rectangle(image, box[:2].tolist(), (box[2:] - 1).tolist(), (value,) * 3, cv2.FILLED)
        sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        shifted = [boxes + rng.uniform(-0.12, 0.12, boxes.shape) * sizes for _ in range(8)]
        empty = np.concatenate([rng.uniform(0, 90, (10, 1)), rng.uniform(60, 70, (10, 1))], axis=1)
        proposals = np.concatenate([*shifted, np.concatenate([empty, empty + 24], axis=1)])
        proposals = rng.permutation(proposals).clip(0, [128, 96, 128, 96]).astype(np.float32)
        return Sample(image, objects=Objects(boxes, labels), proposals=proposals)


CONFIG = {
    "task": "detection",
    "data": {"format": "custom"},
    "model": {
        "name": "rcnn",
        "backbone": "vgg16",
        "alpha": 0.0625,
        "weights": None,
        "crop_size": 64,
        "context": 8,
        "head_channels": 16,
        "batch_crops": 32,
        "train_proposals": 30,
        "test_proposals": 30,
        "regression_lambda": 1.0,
    },
    "train": {"epochs": 6, "batch_size": 4, "optimizer": {"name": "adam", "learning_rate": 0.003}},
}


def arrays(run):
    with np.load(run / "heads.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rcnn") / "run"
    train(CONFIG, folder, train_set=Cards(32))
    return folder


def test_regression_puts_boxes_on_their_objects_and_evaluate_says_so(run):
    result = detseg.evaluate(run, "val", dataset=Cards(8, first=100))
    before = result["without_regression"]["coco"]
    assert before["AP50"] > 0.8
    assert result["coco"]["AP"] > before["AP"] + 0.1
    assert "gain" in str(result)
    stored = json.loads((run / "evaluation/val.json").read_text())
    assert stored["without_regression"]["coco"]["AP"] == before["AP"]


def test_the_features_are_gone_when_all_is_fitted(run):
    assert not (run / "features").exists()
    assert RCNNHeads.load(run / "heads.npz").svms is not None
    with pytest.raises(UserError, match="all 6 epochs are done"):
        train(CONFIG, run, resume=True, train_set=Cards(32))


def test_a_class_that_has_nothing_to_learn_from_keeps_its_proposals(run):
    heads = RCNNHeads.load(run / "heads.npz")
    assert not heads.regressors[2].deltas(np.ones((4, 128), np.float32)).any()
    assert (heads.svms.scores(np.random.default_rng(0).normal(size=(9, 16)))[:, 2] < -1).all()


@pytest.mark.parametrize("stage", ["features", "SVMs", "regressors"])
def test_a_run_killed_in_any_stage_resumes_to_equal_heads(run, stage, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "heads.npz").unlink()
    name = {"features": "RegionDescriber", "SVMs": "train_svms", "regressors": "fit_box_regressor"}[stage]
    original, calls = getattr(rcnn_task, name), []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == (2 if stage == "regressors" else 1):
            raise KeyboardInterrupt
        return original(*arguments)

    class DyingDescriber(original if stage == "features" else object):
        def __call__(self, image, boxes):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return super().__call__(image, boxes)

    with monkeypatch.context() as patch:
        patch.setattr(rcnn_task, name, DyingDescriber if stage == "features" else dying)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, copy, resume=True, train_set=Cards(32))
    train(CONFIG, copy, resume=True, train_set=Cards(32))
    expected = arrays(run)
    found = arrays(copy)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key
    assert not (copy / "features").exists()


def test_more_epochs_fit_the_heads_anew(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    longer = CONFIG | {"train": CONFIG["train"] | {"epochs": 7}}
    train(longer, copy, resume=True, train_set=Cards(32))
    assert arrays(copy)["fingerprint"] != arrays(run)["fingerprint"]


def test_one_run_is_scored_by_softmax_svms_and_iterated(run):
    scores = {}
    for name, overrides in {
        "softmax": ["model.classifier=softmax", "model.box_regression=none"],
        "svm": ["model.box_regression=none"],
        "iterated": ["model.box_regression=iterated"],
    }.items():
        result = detseg.evaluate(run, "val", dataset=Cards(8, first=100), overrides=overrides, name=name)
        scores[name] = result["coco"]["AP"]
        assert ("without_regression" in result) == (name == "iterated")
    assert scores["iterated"] > scores["svm"] > 0.3
    assert scores["softmax"] > 0.3


def test_an_image_without_proposals_is_searched(run):
    found = detseg.load(run).predict(Cards(1, first=100)[0].image, score_threshold=0.0)
    assert len(found.boxes) == len(found.proposals) > 0


def test_heads_that_are_missing_damaged_or_other_ones_are_told(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "heads.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"heads\.npz: damaged"):
        detseg.load(copy)
    (copy / "heads.npz").unlink()
    with pytest.raises(UserError, match=r"heads\.npz: missing.*--resume"):
        detseg.load(copy)
    heads = RCNNHeads.load(run / "heads.npz")
    RCNNHeads(heads.fingerprint, None, heads.regressors).save(copy / "heads.npz")
    with pytest.raises(UserError, match="no SVMs"):
        detseg.load(copy)
    assert detseg.load(copy, ["model.classifier=softmax"])


def test_a_model_that_is_given_proposals_says_where_they_come_from(tmp_path):
    class Bare(Cards):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return Sample(sample.image, objects=sample.objects)

    with pytest.raises(UserError, match=r"data\.proposals: null.*detseg proposals"):
        train(CONFIG, tmp_path / "run", train_set=Bare(4))


def test_images_that_can_not_share_a_batch_are_told(tmp_path):
    for batch_size in (5, 32):
        config = CONFIG | {"train": CONFIG["train"] | {"batch_size": batch_size}}
        with pytest.raises(UserError, match=r"train\.batch_size: .* are to share model\.batch_crops, 32"):
            train(config, tmp_path / "run", train_set=Cards(32))


# ----- one word of the config ----------------------------------------------------------------------------------------

SAME = {"backbone": "vgg16", "alpha": 0.0625, "weights": None, "head_channels": 16}
OWN = {
    "rcnn": {
        "crop_size": 64,
        "batch_crops": 32,
        "head_channels": 16,
        "classifier": "softmax",
        "box_regression": "none",
    },
    "fast_rcnn": {"roi_size": 3, "head_channels": 16, "train_proposals": 30, "test_proposals": 30},
    "faster_rcnn": {"fpn_channels": 8, "head_channels": 16, "test_proposals": 30},
}


@pytest.mark.parametrize("name", OWN)
def test_one_word_of_a_config_chooses_the_step_of_the_line(name, tmp_path):
    config = CONFIG | {"model": SAME | OWN[name] | {"name": name}, "train": CONFIG["train"] | {"epochs": 1}}
    train(config, tmp_path / "run", train_set=Cards(8))
    result = detseg.evaluate(tmp_path / "run", "val", dataset=Cards(3), drawings=2)
    assert 0 <= result["coco"]["AP"] <= 1
    pictures = [cv2.imread(str(path)) for path in sorted((tmp_path / "run/evaluation/val_drawings").iterdir())]
    assert len(pictures) == 2
    panels = {"rcnn": 4, "fast_rcnn": 4, "faster_rcnn": 2 + 1}[name]  # the data's proposals are drawn for each
    assert abs(pictures[0].shape[1] / panels - 128 * 3) < 20
    found = detseg.load(tmp_path / "run").predict(Cards(1)[0].image, score_threshold=0.0)
    assert (found.proposals is None) == (name == "faster_rcnn")


def test_fast_rcnn_learns_to_move_proposals_and_its_head_can_be_compressed(tmp_path):
    options = {"roi_size": 4, "head_channels": 32, "train_proposals": 30, "test_proposals": 30, "roi_samples": 30}
    options |= {"finest_stride": 4, "neck": "fpn", "fpn_channels": 16, "name": "fast_rcnn"}
    training = CONFIG["train"] | {"epochs": 25, "optimizer": {"name": "adam", "learning_rate": 0.01}}
    train(CONFIG | {"model": SAME | options, "train": training}, tmp_path / "run", train_set=Cards(32))
    predictor = detseg.load(tmp_path / "run")
    result = detseg.evaluate(predictor, "val", dataset=Cards(8, first=100))
    assert result["coco"]["AP50"] > 0.8
    found = predictor.predict([Cards(1, first=100)[0].image] * 2)
    assert len(found) == 2
    whole = result["coco"]["AP"]
    for ranks, least, most in (("{fc6: 32, fc7: 32}", whole - 0.02, whole + 0.02), ("{fc6: 1}", 0, whole - 0.1)):
        overrides = [f"model.truncated_svd={ranks}"]
        compressed = detseg.evaluate(tmp_path / "run", "val", dataset=Cards(8, first=100), overrides=overrides)
        assert least <= compressed["coco"]["AP"] <= most
        assert compressed["without_truncated_svd"]["coco"]["AP"] == whole
        assert "truncated SVD" in str(compressed)
    assert (tmp_path / "run/evaluation/val_svd.json").is_file()
    with pytest.raises(UserError, match=r"model\.truncated_svd: fc8: no dense layer; the head has fc6, fc7"):
        detseg.load(tmp_path / "run", ["model.truncated_svd={fc8: 1}"])
