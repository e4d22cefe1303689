"""Rows of classifiers taken over by the names of their classes."""

import numpy as np
import pytest

from detseg.pretrained.class_rows import CLASS_LAYERS, ClassOutputs, same_classes, taken_over


def test_names_are_the_same_whatever_their_case_and_blanks_and_in_vocs_spelling():
    names = ("Person", "potted-plant", "aeroplane", "tv", "unicorn")
    source = (None, "person", "pottedplant", "airplane", "tvmonitor")
    assert same_classes(names, source).tolist() == [1, 2, 3, 4, -1]


def test_outputs_of_no_class_are_nobodys():
    assert same_classes(("none", "a"), (None, "a", None)).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("outputs", "source", "expected"),
    [
        (ClassOutputs(), [10, 11, 12], [12, -1, 10]),
        (ClassOutputs(has_background=True), [10, 11, 12, 99], [12, -1, 10, 99]),
        (ClassOutputs(numbers=2), [10, 10.5, 11, 11.5, 12, 12.5], [12, 12.5, -1, -1, 10, 10.5]),
        (ClassOutputs(), [10, 11, 12, 20, 21, 22], [12, -1, 10, 22, -1, 20]),  # of two anchors
    ],
    ids=["classes", "background", "numbers", "anchors"],
)
def test_rows_come_to_the_place_of_their_class_and_the_others_stay(outputs, source, expected):
    """Ours are z, new, x; the source's x, y, z."""
    places = same_classes(("z", "new", "x"), ("x", "y", "z"))
    bias = np.array(source, float)
    own = [np.full((5, len(expected)), -1.0), np.full(len(expected), -1.0)]
    kernel, new_bias = taken_over(own, [np.tile(bias, (5, 1)), bias], outputs, places, 3)
    np.testing.assert_array_equal(new_bias, expected)
    np.testing.assert_array_equal(kernel, np.tile(expected, (5, 1)))


def test_another_number_of_outputs_or_features_does_not_fit():
    places = same_classes(("a",), ("a", "b"))
    own = [np.zeros((5, 1)), np.zeros(1)]
    assert taken_over(own, [np.zeros((5, 3)), np.zeros(3)], ClassOutputs(), places, 2) is None
    assert taken_over(own, [np.zeros((4, 2)), np.zeros(2)], ClassOutputs(), places, 2) is None


def test_every_classifying_layer_of_our_models_is_known():
    assert set(CLASS_LAYERS) >= {"class_logits", "class_boxes", "mask_logits", "class_output", "logits_conv", "score32"}
