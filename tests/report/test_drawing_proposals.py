"""Drawings of proposals and of regression."""

import numpy as np
import pytest

from detseg.report.drawing import draw_detections
from detseg.report.drawing_proposals import draw_proposals, draw_regression

GREY = np.full((300, 400, 3), 90, np.uint8)
BOXES = np.array([[50, 60, 150, 160], [200, 100, 320, 220]], float)
SHIFT = np.array([12, -9, -7, 11])


def changed(drawing, ground=GREY):
    return (drawing != ground).any(axis=2)


def test_all_proposals_are_seen_and_the_best_of_each_object_stands_out():
    proposals = np.concatenate([BOXES + SHIFT, [[10, 10, 40, 290]]])
    drawing = draw_proposals(GREY, proposals, BOXES)
    grey = (drawing == 150).all(axis=2)
    green = (drawing == (60, 180, 75)).all(axis=2)
    assert grey[10:290, 10].all()
    assert green[51:170, 62].all()
    assert not green[:, 5:45].any()


@pytest.mark.parametrize("size", [(300, 400), (60, 90)])
def test_it_is_as_large_as_the_drawing_of_detections(size):
    image = np.zeros((*size, 3), np.uint8)
    boxes, labels, scores = BOXES / 5, np.array([0, 1]), np.array([0.9, 0.6])
    expected = draw_detections(image, boxes, labels, ("a", "b"), scores).shape
    assert draw_proposals(image, boxes, boxes).shape == expected
    assert draw_regression(image, boxes, boxes, labels, ("a", "b"), scores).shape == expected


def test_arrows_lead_from_the_proposal_to_the_box():
    labels, scores = np.array([0, 1]), np.array([0.9, 0.6])
    detections = draw_detections(GREY, BOXES, labels, ("a", "b"), scores)
    drawing = draw_regression(GREY, BOXES + SHIFT, BOXES, labels, ("a", "b"), scores)
    more = changed(drawing, detections)
    assert more[100, 62]  # the proposal's left edge
    assert more[55, 56]  # between the corners (62, 51) and (50, 60)
    assert not more[:, 330:].any()


def test_nothing_passes():
    none = np.zeros((0, 4))
    assert not changed(draw_proposals(GREY, none, BOXES)).any()
    assert changed(draw_proposals(GREY, BOXES, none)).any()
    assert not changed(draw_regression(GREY, none, none, [], ("a",), [])).any()
