"""What R-CNN fits on its network's features after it is trained: linear SVMs and bounding-box regressors."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detseg.detection.box_regression import BoxRegressor
from detseg.detection.region_svm import Svms
from detseg.errors import UserError
from detseg.files import written_whole

_VERSION = 1


@dataclass(frozen=True, eq=False)
class RCNNHeads:
    """SVMs and regressors; what isn't fitted yet is None.

    fingerprint:  str, of the features that they were fitted on.
    svms:         `Svms`, of all classes.
    regressors:   tuple of `BoxRegressor`, those of the first classes.
    """

    fingerprint: str
    svms: Svms | None = None
    regressors: tuple = ()

    def with_regressor(self, regressor):
        return replace(self, regressors=(*self.regressors, regressor))

    def save(self, path):
        """Writes an .npz file without pickles, whole or not at all."""
        arrays = {"version": np.array(_VERSION), "fingerprint": np.array(self.fingerprint)}
        parts = {"svms": self.svms} | {f"regressor{k}": part for k, part in enumerate(self.regressors)}
        for name, part in parts.items():
            if part is not None:
                arrays |= {f"{name}.{key}": array for key, array in part.arrays().items()}
        with written_whole(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path):
        """The RCNNHeads in a file that `save` wrote. Raises UserError where it is missing or damaged."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: missing: the run has not fitted its SVMs and regressors; go on with --resume")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            if arrays["version"] != _VERSION:
                raise UserError(f"{path}: of version {arrays['version']}, expected {_VERSION}; delete it and --resume")
            parts = {}
            for name, array in arrays.items():
                part, _, key = name.partition(".")
                parts.setdefault(part, {})[key] = array
            svms = Svms.from_arrays(parts["svms"]) if "svms" in parts else None
            count = sum(name.startswith("regressor") for name in parts)
            regressors = tuple(BoxRegressor.from_arrays(parts[f"regressor{k}"]) for k in range(count))
            return cls(str(arrays["fingerprint"]), svms, regressors)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and go on with --resume") from error
