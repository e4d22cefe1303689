import numpy as np
import pytest
from PIL import Image

from detseg.errors import UserError
from detseg.metrics.voc import VocScores
from detseg.report.plots import draw_confusion, draw_precision_recall

A, B = [0, 0, 10, 10], [20, 0, 30, 10]


def curves_of(classes):
    scores = VocScores(classes)
    scores.update([A, B], [0, 0], [A, A, B], [0, 0, 0], [0.9, 0.8, 0.7])
    return scores.curves()


@pytest.mark.parametrize("classes", [("$cat", "no objects", "_hidden"), tuple(f"class {i}" for i in range(45))])
def test_curves_are_drawn_for_any_number_of_classes(tmp_path, classes):
    path = tmp_path / "curves.png"
    draw_precision_recall(curves_of(classes), path)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_curves_without_any_object_or_detection_are_drawn(tmp_path):
    draw_precision_recall(VocScores(("cat", "dog")).curves(), tmp_path / "curves.png")
    missed = VocScores(("cat",))
    missed.update([A], [0], [], [], [])
    draw_precision_recall(missed.curves(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [2, 30])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, count):
    matrix = np.random.default_rng(0).integers(0, 50, (count + 1, count + 1))
    matrix[0] = 0
    draw_confusion(matrix, [f"$class {i}" for i in range(count)], tmp_path / "confusion.png", "IoU 0.5, score 0.5")
    picture = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB"))
    assert min(picture.shape[:2]) > 300


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.confusion\.png: can't be written"):
        draw_confusion(np.eye(2, dtype=int), ["cat"], tmp_path / "nowhere" / "confusion.png")
