"""Fast R-CNN: given proposals through Faster R-CNN's head."""

import keras
import numpy as np
import pytest
from fast_rcnn_cases import SMALL, batch, tiny

from detseg.detection.fast_rcnn import FastRCNN
from detseg.detection.options import FasterRCNNOptions, FastRCNNOptions


@pytest.fixture(scope="module")
def model():
    return tiny()


def detect(model, proposals=None, **arguments):
    images, objects = batch()
    proposals = objects["proposals"] if proposals is None else proposals
    return [np.array(x) for x in model.detect(images, objects["image_sizes"], proposals, **arguments)]


def test_each_detection_tells_the_proposal_it_was_moved_from(model):
    _, labels, scores, valid, sources = detect(model)
    given = batch()[1]["proposals"]
    assert valid.any()
    for own, kept, mine in zip(sources, valid, given, strict=True):
        assert all((mine == source).all(axis=1).any() for source in own[kept])
    assert (labels[valid] >= 0).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_an_image_without_proposals_has_no_detections_and_finite_losses(model):
    images, objects = batch()
    nothing = np.zeros_like(objects["proposals"])
    assert not detect(model, nothing)[3].any()
    empty = {"boxes": np.zeros_like(objects["boxes"]), "labels": np.full_like(objects["labels"], -1)}
    for truth in (objects | {"proposals": nothing}, objects | empty, objects | empty | {"proposals": nothing}):
        losses = model._detector_losses(images, truth, model(images), False)
        assert np.isfinite([float(loss) for loss in losses]).all()
    assert [float(loss) for loss in losses] == [0, 0]


def test_the_order_of_proposals_does_not_matter(model):
    objects = batch()[1]
    order = np.random.default_rng(1).permutation(20)
    for one, other in zip(detect(model), detect(model, objects["proposals"][:, order]), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_it_has_the_parts_of_faster_rcnn_but_for_its_proposals(model):
    shared = {name for name in FasterRCNNOptions.model_fields if name.startswith(("roi_", "head", "box_", "fpn"))}
    assert shared <= FastRCNNOptions.model_fields.keys()
    assert not [name for name in FastRCNNOptions.model_fields if name.startswith(("rpn_", "anchor_"))]
    assert [metric.name for metric in model.loss_trackers] == ["class_loss", "box_loss"]


@pytest.mark.parametrize(
    "options", [{"neck": "fpn", "fpn_channels": 8}, {"roi_pooling": "pool"}, {"head": "stage", "head_channels": None}]
)
def test_a_detector_saved_as_keras_loads_and_detects_the_same(options, tmp_path):
    model = FastRCNN(FastRCNNOptions(**SMALL | {"alpha": 0.0625} | options), 3)
    before = detect(model)
    assert before[3].any()
    model.save(tmp_path / "model.keras")
    for one, other in zip(before, detect(keras.models.load_model(tmp_path / "model.keras")), strict=True):
        assert np.array_equal(one, other)
