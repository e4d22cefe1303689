"""Features of regions on disk: whole, resumed, refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from detseg.data.dataset import Dataset
from detseg.data.objects import Objects
from detseg.data.sample import Sample
from detseg.detection.rcnn_options import RCNNOptions
from detseg.errors import UserError
from detseg.tasks.rcnn_features import RegionFeatures

MODEL = SimpleNamespace(class_count=2, feature_count=3, map_values=8)


class Pictures(Dataset):
    classes = ("a", "b")

    def __len__(self):
        return 4

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        corners = rng.uniform(0, 40, (i, 2))  # the first has no object
        objects = Objects(np.concatenate([corners, corners + 20], axis=1), rng.integers(0, 2, i))
        low = rng.uniform(0, 60, (6, 2))
        proposals = np.concatenate([np.concatenate([low, low + 15], axis=1), objects.boxes + 1]).astype(np.float32)
        return Sample(np.full((100, 100, 3), i, np.uint8), str(i), objects=objects, proposals=proposals)


def describe(image, boxes):
    """Values that tell of which image and box they are; float16 has them exactly."""
    number = image[0, 0, 0] + np.round(boxes[:, :1])  # (n, 1)
    return np.tile(number, 8), np.tile(number, 3)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "best.weights.h5"
    path.write_bytes(b"weights")
    return path


def features(tmp_path, weights, **changes):
    options = RCNNOptions(backbone="mobilenetv2", **changes)
    return RegionFeatures(tmp_path / "features", Pictures(), options, MODEL, weights)


def everything(features):
    rows = [rows for rows, *_ in features.for_svms()]
    return [*rows, *(maps for k in range(2) for maps, _ in features.for_regressor(k))]


def test_every_region_has_its_own_features(tmp_path, weights):
    stored = features(tmp_path, weights)
    stored.collect(describe)
    for i, (rows, is_truth, labels, overlaps) in enumerate(stored.for_svms()):
        regions = stored.regions(i)
        assert len(rows) == len(regions.boxes) == 6 + 2 * i == len(labels) == len(overlaps)
        assert np.array_equal(rows, np.tile(i + np.round(regions.boxes[:, :1]), 3))
        assert is_truth.sum() == i


def test_regressors_learn_of_regions_that_overlap_an_object_of_their_class_enough(tmp_path, weights):
    stored = features(tmp_path, weights, regression_iou=0.6)
    stored.collect(describe)
    for k in range(2):
        batches = list(stored.for_regressor(k))
        wanted = sum(int((stored.regions(i).overlaps[:, k] > 0.6).sum()) for i in range(4))
        assert sum(len(maps) for maps, _ in batches) == sum(len(targets) for _, targets in batches) == wanted
        assert wanted >= 2 * sum(int((Pictures()[i].objects.labels == k).sum()) for i in range(4))  # truth and its copy


@pytest.mark.parametrize("kill_at", [0, 2, 3])
def test_a_killed_pass_goes_on_to_the_same_features(tmp_path, weights, kill_at):
    whole = features(tmp_path / "whole", weights)
    whole.collect(describe)
    seen = []

    def dying(image, boxes):
        seen.append(int(image[0, 0, 0]))
        if seen[-1] == kill_at:
            raise KeyboardInterrupt
        return describe(image, boxes)

    stored = features(tmp_path / "killed", weights)
    with pytest.raises(KeyboardInterrupt):
        stored.collect(dying)
    with open(tmp_path / "killed/features/features.f16", "ab") as file:
        file.write(b"half a row")  # of a kill in the middle of a write
    again = []
    stored = features(tmp_path / "killed", weights)
    stored.collect(lambda image, boxes: again.append(int(image[0, 0, 0])) or describe(image, boxes))
    assert again == list(range(kill_at, 4))
    for one, other in zip(everything(stored), everything(whole), strict=True):
        assert np.array_equal(one, other)


def test_features_of_other_weights_or_settings_are_made_anew(tmp_path, weights):
    features(tmp_path, weights).collect(describe)
    calls = []
    features(tmp_path, weights).collect(lambda *arguments: calls.append(1))
    assert not calls
    weights.write_bytes(b"other weights")
    for changes in ({}, {"context": 8}, {"train_proposals": 3}):
        calls.clear()
        other = features(tmp_path, weights, **changes)
        other.collect(lambda *arguments: calls.append(1) or describe(*arguments))
        assert len(calls) == 4


def test_a_full_disk_is_told_with_what_is_needed(tmp_path, weights):
    stored = features(tmp_path, weights)

    def full(image, boxes):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*GB; make room and go on with --resume"):
        stored.collect(full)
    stored.collect(describe)
    assert len(everything(stored)) > 4
