"""A published model as a run folder, or its weights as a file."""

import os
from pathlib import Path

from detseg.config import load_config
from detseg.errors import UserError
from detseg.pretrained.catalogue import COCO_CLASSES, COCO_NAMES, PRESETS, VOC_CLASSES
from detseg.pretrained.class_rows import CLASS_LAYERS
from detseg.process import model_settings
from detseg.tasks import create_task
from detseg.training.run_folder import RunFolder
from detseg.training.weights import save_weights

# What a preset's images are resized to; torchvision's 320 has its own.
_RESIZES = {"segmentation": {"shorter": 520, "longer": 1300}, "detection": {"shorter": 800, "longer": 1333}}
_SMALL = {"shorter": 320, "longer": 640}


def convert_weights(preset: str, output: str | os.PathLike, weights: str | os.PathLike | None = None) -> Path:
    """Writes a published model with all of its classes, as predict, evaluate and train.initial_weights take it.

    preset:   one of `detseg.pretrained.catalogue.PRESETS`.
    output:   a folder, new or empty, that becomes a run; or the path of a .weights.h5 file.
    weights:  the path of torchvision's file (.pth); None: it is downloaded.
    Returns   the path of what was written. Raises UserError for a file that doesn't fit or is of a backbone alone, and
              as `detseg.load_config`.
    """
    model_section = {"preset": preset} if weights is None else {"preset": preset, "weights": os.fspath(weights)}
    task_name = PRESETS[preset].task if preset in PRESETS else "detection"  # load_config says which there are
    resize = _SMALL if "_320_" in preset else _RESIZES[task_name]
    train = {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 0.01}}
    data = {"format": "custom", "resize": resize}
    config = load_config({"task": task_name, "data": data, "model": model_section, "train": train})
    classes = COCO_CLASSES if task_name == "detection" else VOC_CLASSES
    output = Path(output)
    is_file = output.name.endswith(".weights.h5")
    if is_file and output.exists():
        raise UserError(f"--output {output}: is there already; delete it or choose another name")
    folder = RunFolder(output)
    if not is_file:
        folder.check_new()
    with model_settings(config.train.precision):
        task = create_task(config, classes)
        model, backbone = task.create_model()
    if CLASS_LAYERS.keys().isdisjoint(backbone.loaded_layers):
        raise UserError(f"--weights {weights}: is of a backbone alone, without a classifier; expected all of {preset}")
    if is_file:
        save_weights(model, output)
        return output
    ids = (
        range(1, 22) if task.name == "segmentation" else [i for i, name in enumerate(COCO_NAMES, 1) if name is not None]
    )
    facts = {"parameters": model.count_params(), "score_name": task.score_name}
    folder.create(config, classes, None, ids, {**facts, "from_python": []})
    save_weights(model, folder.best_weights)
    return folder.path
