"""The run folder: what a training run leaves behind, and how later tools find it."""

import csv
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import keras

from detseg import __version__
from detseg.config import load_config, save_config
from detseg.errors import UserError
from detseg.files import make_folder, written_whole

_RECORDED_PACKAGES = ("tensorflow", "jax", "keras", "numpy", "opencv-python-headless", "albumentations", "grain")


class RunFolder:
    """Paths in a run folder, and reading and writing of its small files."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.classes = self.path / "classes.json"
        self.category_ids = self.path / "category_ids.json"
        self.environment = self.path / "environment.json"
        self.class_weights = self.path / "class_weights.json"
        self.best_weights = self.path / "best.weights.h5"
        self.state = self.path / "state" / "last_epoch.npz"
        self.history = self.path / "history.csv"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"

    def check_new(self):
        """UserError where files of another run are."""
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path}: already holds files. Go on with --resume, or choose another folder with --run"
            )

    def create(self, config, classes, class_weights=None, category_ids=None):
        """Starts a new run.

        category_ids:   the source's id of each class, which results carry; None where it has none.
        class_weights:  {class name: weight} where they were computed from the data, else None.
        """
        self.check_new()
        make_folder(self.path, "--run")
        save_config(config, self.config)
        self._write_json(self.classes, list(classes))
        if category_ids is not None:
            self._write_json(self.category_ids, list(category_ids))
        self._write_json(self.environment, describe_environment())
        if class_weights is not None:
            self._write_json(self.class_weights, class_weights)

    def read_config(self, overrides=()):
        if not self.config.is_file():
            raise UserError(f"{self.path}: not a run folder: it has no config.yaml. Train first, or correct --run")
        return load_config(self.config, overrides)

    def read_classes(self):
        try:
            return tuple(json.loads(self.classes.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.classes}: cannot be read ({error}); it is written when training starts") from error

    def read_class_weights(self):
        """The class weights that `create` kept, or None."""
        return self._read_optional(self.class_weights, "delete it to have it computed anew")

    def read_category_ids(self):
        """The ids that `create` kept, or None."""
        return self._read_optional(self.category_ids, "delete it to have classes counted from 1")

    def _read_optional(self, path, remedy):
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); {remedy}") from error

    def continue_from(self, epoch, config):
        """Prepares the folder for a resumed run: the config with its new number of epochs, no rows after `epoch`."""
        save_config(config, self.config)
        rows = [row for row in self.read_history() if int(row["epoch"]) <= epoch]
        if rows:
            self.write_history(rows)

    def append_history(self, row):
        """Adds a row (dict) to history.csv. Columns that only some rows have (val_miou) are empty in the others."""
        rows = [*self.read_history(), {key: str(value) for key, value in row.items()}]
        self.write_history(rows)

    def write_history(self, rows):
        with written_whole(self.history) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            columns = max(rows, key=len)
            writer = csv.DictWriter(file, fieldnames=list(columns), restval="")
            writer.writeheader()
            writer.writerows(rows)

    def read_history(self):
        if not self.history.is_file():
            return []
        with open(self.history, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write_json(self, path, value):
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def describe_environment():
    """What a run's figures may depend on: versions, commit, processor and accelerators."""
    installed = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    return {
        "detseg": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "keras_backend": keras.backend.backend(),
        "packages": {name: metadata.version(name) for name in _RECORDED_PACKAGES if name in installed},
        "accelerators": accelerators(),
    }


def accelerators():
    """The names of the GPUs and TPUs that the backend sees."""
    return [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]


def _commit():
    """The commit of a detseg that runs from a git checkout, else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git on this machine
        return None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
