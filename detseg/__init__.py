"""detseg: object detection and segmentation in Keras 3.

Conventions, stated once; everything in the package relies on them:

image            uint8 (H, W, C), C = data.channels (3: RGB, any number), as decoded with the EXIF orientation applied.
                 data.value_range, or the dtype's range, of 16-bit and float files becomes 0 to 255. A model takes raw
                 pixels: it normalises them itself.
boxes            float32 (N, 4), x1 y1 x2 y2, absolute pixels, half-open and continuous: width = x2 - x1.
proposals        boxes that may hold an object, within the image, the best first.
semantic labels  uint8 (H, W), 0..K-1; ignore_label (255 unless the config says otherwise) is not trained or scored.
logits           float32 (B, H, W, K) at input size; scores are softmaxed after the model, not in it.
features         a backbone maps (B, H, W, C) to a dict keyed by each stage's native stride (2, 4, 8, 16, 32: its stride
                 at output_stride 32), also when the stage is dilated; `backbone.strides[key]` is the actual one.
sizes            (height, width) everywhere, in code and in configs.
"""

import importlib

__version__ = "0.1.0"

# Public names by module. Loaded on first use, so that `import detseg` loads neither Keras nor TensorFlow.
_NAMES = {
    "detseg.training.fit": ("train",),
    "detseg.evaluation": ("evaluate", "evaluate_detections"),
    "detseg.predictor": ("load", "Predictor"),
    "detseg.predict_files": ("predict_files",),
    "detseg.proposals": ("make_proposals",),
    "detseg.report.compare": ("compare",),
    "detseg.config": ("Config", "load_config", "save_config", "config_schema"),
    "detseg.data.shapes_writer": ("make_shapes",),
    "detseg.data.dataset": ("Dataset",),
    "detseg.data.sample": ("Sample",),
    "detseg.data.objects": ("Objects",),
    "detseg.data.readers.create": ("create_dataset",),
    "detseg.data.readers.voc": ("VOCSegmentation", "VOCDetection"),
    "detseg.data.readers.coco": ("CocoSegmentation", "CocoDetection"),
    "detseg.data.readers.folder": ("FolderSegmentation", "InstanceFolder"),
    "detseg.backbones.create": ("create_backbone",),
    "detseg.models": ("create_model",),
    "detseg.inference.prediction": ("Prediction",),
    "detseg.report.drawing": ("draw_label_map", "draw_detections"),
    "detseg.errors": ("UserError",),
}
_PUBLIC = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = ("boxes", "losses", "metrics", "models")  # public modules
_WITHOUT_KERAS = (
    "detseg.proposals",
    "detseg.config",
    "detseg.data",
    "detseg.errors",
    "detseg.report",
    "detseg.metrics",
)
__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name):
    if name not in _PUBLIC and name not in _MODULES:
        raise AttributeError(f"module 'detseg' has no attribute {name!r}")
    module = _PUBLIC.get(name, f"detseg.{name}")
    if not module.startswith(_WITHOUT_KERAS):
        from detseg.process import start_backend

        start_backend()
    module = importlib.import_module(module)
    return module if name in _MODULES else getattr(module, name)


def __dir__():
    return sorted(__all__)
