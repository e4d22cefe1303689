"""detseg: object detection and segmentation in Keras 3.

Conventions, stated once; everything in the package relies on them:

image            uint8 (H, W, C), C = data.channels (3: RGB), as decoded with the EXIF orientation applied. 16-bit and
                 float images are scaled by their dtype's range. A model takes raw pixels: it normalises them itself.
boxes            float32 (N, 4), x1 y1 x2 y2, absolute pixels, half-open and continuous: width = x2 - x1.
semantic labels  uint8 (H, W), 0..K-1; ignore_label (255 unless the config says otherwise) is not trained or scored.
logits           float32 (B, H, W, K) at input size; scores are softmaxed after the model, not in it.
features         a backbone maps (B, H, W, C) to a dict keyed by each stage's native stride (2, 4, 8, 16, 32: its stride
                 at output_stride 32), also when the stage is dilated; `backbone.strides[key]` is the actual one.
sizes            (height, width) everywhere, in code and in configs.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module. Resolved on first use, so that `import detseg` loads neither Keras nor TensorFlow.
_PUBLIC = {
    "UserError": "detseg.errors",
    "load_config": "detseg.config",
    "create_backbone": "detseg.backbones.create",
    "load": "detseg.inference.predictor",
    "Prediction": "detseg.inference.prediction",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'detseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted(__all__)
