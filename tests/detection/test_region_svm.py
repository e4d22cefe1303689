"""Linear SVMs of regions, with hard negative mining."""

import builtins

import numpy as np
import pytest

from detseg.detection import region_svm
from detseg.detection.region_svm import NEVER, Svms, train_svms
from detseg.errors import UserError

pytest.importorskip("sklearn", reason="scikit-learn, of the extra rcnn, is not installed")

CENTRES = np.array([[6.0, 0, 0, 1], [0, 6.0, 0, 1]])


def image(seed, objects=(0, 1), negatives=40):
    """Features, is_object, labels and overlaps of an image; a region that half covers an object looks like one."""
    rng = np.random.default_rng(seed)
    labels = np.array([*objects, *[-1] * (negatives + len(objects))])
    n = len(objects)
    features = rng.normal(size=(len(labels), 4)) + np.array([0, 0, 0, 1])
    overlaps = rng.uniform(0, 0.29, (len(labels), 3))
    for i, k in enumerate(objects):
        features[[i, n + i]] = CENTRES[k] + rng.normal(size=(2, 4)) * 0.3
        overlaps[i, k], overlaps[n + i, k] = 1.0, 0.5
    return features.astype(np.float32), labels >= 0, labels, overlaps


def images(count=30, **arguments):
    return lambda: (image(seed, **arguments) for seed in range(count))


def trained(images, **options):
    return train_svms(images, ("a", "b", "c"), 3.0, cost=0.01, **options)


def test_objects_score_above_zero_for_their_class_and_everything_else_below():
    svms = trained(images())
    features, is_object, labels, overlaps = image(99)
    scores = svms.scores(features)
    assert (scores[is_object, labels[is_object]] > 0).all()
    for k in range(2):
        assert (scores[overlaps[:, k] < 0.3, k] < 0).all()


def test_mining_ends_near_the_svm_of_all_negatives(monkeypatch):
    mined = trained(images())
    monkeypatch.setattr(region_svm, "HARD_MARGIN", -np.inf)
    monkeypatch.setattr(region_svm, "EASY_MARGIN", -np.inf)
    whole = trained(images())
    features = np.concatenate([image(seed)[0] for seed in range(200, 210)])
    assert np.abs(mined.scores(features) - whole.scores(features))[:, :2].max() < 0.1


def test_what_overlaps_an_object_of_a_class_is_no_negative_of_it_and_no_positive():
    seen = []

    class Spy:
        def __init__(self, **form):
            pass

        def fit(self, features, labels):
            seen.append((features, labels))
            self.coef_, self.intercept_ = np.zeros((1, 4)), np.zeros(1)
            return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.svm.LinearSVC", Spy)
        trained(images(3))
    features, labels = seen[-1]
    objects = np.concatenate([image(seed)[0][1:2] for seed in range(3)]) * np.float32(3)
    assert np.array_equal(features[labels > 0], objects)
    near = np.concatenate([image(seed)[0][3:4] for seed in range(3)]) * np.float32(3)
    assert not any((features == row).all(axis=1).any() for row in near)


def test_a_class_without_objects_finds_nothing_and_the_log_says_so(caplog):
    with caplog.at_level("WARNING", "detseg"):
        svms = trained(images())
    assert (svms.scores(image(5)[0])[:, 2] == NEVER).all()
    assert "c: no object to learn from" in caplog.text


def test_a_class_without_negatives_has_an_svm_that_finds_everything():
    svms = trained(images(2, objects=(0,), negatives=0))
    assert np.isfinite(svms.scores(image(1)[0])).all()


def test_easy_negatives_are_dropped_when_there_are_many(monkeypatch, caplog):
    monkeypatch.setattr(region_svm, "RETRAIN_EVERY", 30)
    with caplog.at_level("INFO", "detseg"):
        trained(images(60))
    line = next(message for message in caplog.messages if message.startswith("a: SVM"))
    kept, seen = int(line.split(" objects and ")[1].split()[0]), int(line.split(" of ")[-1].split(",")[0])
    assert kept < seen / 3


def test_the_same_images_train_the_same_svms_which_are_made_again_of_their_arrays():
    first, second = trained(images()), trained(images())
    features = image(7)[0]
    assert np.array_equal(first.scores(features), second.scores(features))
    assert np.array_equal(Svms.from_arrays(first.arrays()).scores(features), first.scores(features))


def test_where_scikit_learn_is_missing_the_message_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r'pip install "detseg\[rcnn\]"'):
        trained(images(1))
