"""Every detector on every backbone, as configs make them: an image of any size gives boxes inside it."""

import keras
import numpy as np
import pytest

from detseg.backbones.catalogue import CATALOGUE
from detseg.config import load_config
from detseg.tasks.detection import DETECTORS

CLASSES, MOST = 2, 3
SMALL = "alpha: {alpha}, score_threshold: 0.0, max_detections: 3, weights: null, norm: batch"
PARTS = {
    "faster_rcnn": "fpn_channels: 8, rpn_channels: 8, head_channels: 8, test_proposals: 20, test_candidates: 300",
    "single_map": "neck: none, rpn_channels: 8, test_proposals: 20, test_candidates: 300",
    "retinanet": "fpn_channels: 8, head_convolutions: 1",
}
CONFIG = """
task: detection
data: {{format: voc, root: r, train: train}}
model: {{name: {name}, backbone: {backbone}, {parts}}}
train: {{epochs: 1, batch_size: 1, optimizer: {{name: sgd, learning_rate: 0.1}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("backbone", CATALOGUE)
def test_every_detector_detects_on_every_backbone(backbone, kind, tmp_path):
    parts = [SMALL.format(alpha=0.25 if backbone.startswith("mobilenetv3") else 0.125), PARTS[kind]]
    if kind == "single_map" and backbone.startswith("vgg"):
        parts.append("head_channels: 8")  # fc6 and fc7; the others' head is their last stage
    path = tmp_path / "config.yaml"
    name = "retinanet" if kind == "retinanet" else "faster_rcnn"
    path.write_text(CONFIG.format(name=name, backbone=backbone, parts=", ".join(parts)))
    options = load_config(path).model
    keras.utils.set_random_seed(1)  # some first weights of deep nets give a score that rounds to 1
    model = DETECTORS[options.name].create(options, CLASSES, pretrained=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3)).astype("uint8")
    sizes = np.array([[70, 90], [50, 60]], "float32")
    boxes, labels, scores, valid = (np.array(part) for part in model.detect(images, sizes))
    assert (boxes.shape, labels.shape, scores.shape, valid.shape) == ((2, MOST, 4), *[(2, MOST)] * 3)
    assert valid.any(axis=1).all()
    assert np.isfinite(boxes).all()
    assert np.isfinite(scores).all()
    assert ((scores[valid] > 0) & (scores[valid] < 1)).all()
    assert ((labels[valid] >= 0) & (labels[valid] < CLASSES)).all()
    limits = np.broadcast_to(sizes[:, None, [1, 0, 1, 0]], boxes.shape)
    assert ((boxes >= 0) & (boxes <= limits)).all()
    assert (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()
