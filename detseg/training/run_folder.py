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
from detseg.process import accelerators

_RECORDED_PACKAGES = ("tensorflow", "jax", "keras", "numpy", "opencv-python-headless", "albumentations", "grain")
_RENAMED = {"images_per_second": "train_images_per_second"}  # columns of history.csv, old name -> name


class RunFolder:
    """Paths in a run folder, and reading and writing of its small files."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.classes = self.path / "classes.json"
        self.category_ids = self.path / "category_ids.json"
        self.environment = self.path / "environment.json"
        self.class_weights = self.path / "class_weights.json"
        self.model_facts = self.path / "model.json"
        self.best_weights = self.path / "best.weights.h5"
        self.state = self.path / "state" / "last_epoch.npz"
        self.history = self.path / "history.csv"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"

    def check_new(self):
        """UserError where files are; hidden ones, such as temporary files of a killed process, don't count."""
        if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise UserError(
                f"{self.path}: already holds files. Go on with --resume, or choose another folder with --run"
            )

    def create(self, config, classes, class_weights, category_ids, model_facts):
        """Starts a run, or one again that was stopped before its first epoch ended.

        class_weights:  {class name: weight} where they were computed from the data, else None.
        category_ids:   the source's id of each class, which results carry.
        model_facts:    {"parameters": int, "score_name": the figure that chooses the best weights, "from_python": names
                        of the arguments of `train` that no config holds}.
        """
        make_folder(self.path, "--run")
        save_config(config, self.config)  # first: with it, a run that is killed now can be resumed
        self.history.unlink(missing_ok=True)
        contents = {
            self.classes: list(classes),
            self.category_ids: list(category_ids),
            self.environment: describe_environment(),
            self.model_facts: model_facts,
            self.class_weights: class_weights,
        }
        for path, value in contents.items():
            if value is not None:
                with written_whole(path) as temporary:
                    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

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

    def read_model_facts(self):
        """The facts that `create` kept; {} in runs of versions that kept none."""
        return self._read_optional(self.model_facts, "delete it") or {}

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
            self._write_history(rows)

    def append_history(self, row):
        """Adds a row (dict) to history.csv; columns that only some rows have (val_miou) are empty in the others."""
        self._write_history([*self.read_history(), row])

    def _write_history(self, rows):
        with written_whole(self.history) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            columns = list(max(rows, key=len))
            writer = csv.DictWriter(file, fieldnames=columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def read_history(self):
        if not self.history.is_file():
            return []
        with open(self.history, newline="", encoding="utf-8") as file:
            return [{_RENAMED.get(name, name): value for name, value in row.items()} for row in csv.DictReader(file)]


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
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
