"""Proposals of a split as a file: ours (.npz), a COCO results file, or the .mat of the VOC authors."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import io

from detseg.data.checks import raise_problems
from detseg.data.coco_checks import is_number
from detseg.data.dataset import Dataset
from detseg.data.objects import clip_boxes
from detseg.errors import UserError
from detseg.files import written_whole

_VERSION = 1  # of our file's form and of what Selective Search finds: raise it with every change of either
_MARGIN = 1.0  # pixels outside of the image that are taken for rounding, as in checks.py
SUFFIXES = (".json", ".mat")  # of anybody's proposals


@dataclass(frozen=True, eq=False)
class ProposalSet:
    """The proposals of N images: boxes float32 (M, 4), image by image, each image's best first; starts int (N + 1,)."""

    boxes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of_images(cls, boxes: Sequence[np.ndarray]):
        """Of the proposals (P, 4) of each image."""
        counts = np.array([0, *map(len, boxes)])
        return cls(np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32), np.cumsum(counts))

    def __len__(self):
        return len(self.starts) - 1

    def of(self, i):
        """float32 (P, 4) of the i-th image."""
        return self.boxes[self.starts[i] : self.starts[i + 1]]


class WithProposals(Dataset):
    """A Dataset whose samples have proposals; the rest is the other's."""

    def __init__(self, dataset, proposals):
        """proposals: ProposalSet."""
        self._dataset, self._proposals = dataset, proposals
        for name in ("classes", "split", "channels", "ignore_label", "names", "image_paths", "image_ids"):
            setattr(self, name, getattr(dataset, name))
        self.category_ids, self.has_masks = dataset.category_ids, dataset.has_masks

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, i):
        return replace(self._dataset[i], proposals=self._proposals.of(i))

    def image(self, i):
        return self._dataset.image(i)

    def label_map(self, i):
        return self._dataset.label_map(i)

    def objects(self, i):
        return self._dataset.objects(i)

    def proposals(self, i):
        return self._proposals.of(i)

    def true_instances(self, i):
        return self._dataset.true_instances(i)

    def labels_source(self, i):
        return self._dataset.labels_source(i)

    def fingerprint(self):
        return self._dataset.fingerprint()


def proposal_path(data, split):
    """Where the proposals of a split are.

    data:    the config's data section, with `proposals`.
    Raises   UserError where data.proposals.mode is file and there is none, or there are two.
    """
    folder, mode = Path(data.proposals.folder), data.proposals.mode
    if mode != "file":
        return folder / f"{split}_{mode}.npz"
    paths = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    there = [path for path in paths if path.is_file()]
    if len(there) != 1:
        found = "both are there; keep one" if there else "there is neither"
        raise UserError(f"data.proposals: mode is file, so {paths[0]} or {paths[1].name} is expected, but {found}")
    return there[0]


def load_proposals(data, dataset, image_sizes):
    """The ProposalSet of a Dataset.

    data:         the config's data section, with `proposals`.
    image_sizes:  N (height, width).
    Raises        UserError naming the file and what in it isn't as it has to be, and the command that makes it anew.
    """
    path = proposal_path(data, dataset.split)
    if path.suffix == ".json":
        return _read_coco(path, dataset, image_sizes)
    if path.suffix == ".mat":
        return _read_mat(path, dataset, image_sizes)
    return read_proposals(path, describe_proposals(data, dataset, image_sizes), len(dataset))


def describe_proposals(data, dataset, image_sizes):
    """{field: value}: what our file of a split is made of, all of which has to be equal for it to be read."""
    digest = hashlib.blake2b(digest_size=16)
    for name, path, size in zip(dataset.names, dataset.image_paths, image_sizes, strict=True):
        file_bytes = None if path is None else path.stat().st_size
        digest.update(json.dumps([name, file_bytes, [int(side) for side in size]]).encode())
    return {
        "version": _VERSION,
        "mode": data.proposals.mode,
        "seed": data.proposals.seed,
        "channels": data.channels,
        "value_range": list(data.value_range) if data.value_range else None,
        "images": f"{len(dataset)} images, {digest.hexdigest()}",
    }


def write_proposals(path, proposals, description):
    """Writes a ProposalSet with its `describe_proposals`: whole pixels of less than 65536 take 2 bytes a coordinate."""
    boxes = proposals.boxes
    is_compact = not boxes.size or (boxes.max() < 2**16 and (boxes == np.rint(boxes)).all())
    arrays = {"boxes": boxes.astype(np.uint16) if is_compact else boxes, "counts": np.diff(proposals.starts)}
    with written_whole(path) as temporary:
        np.savez_compressed(temporary, description=np.array(json.dumps(description)), **arrays)


def read_proposals(path, description, image_count):
    """The ProposalSet that `write_proposals` wrote with an equal description; UserError for any other file."""
    remedy = "make it anew by `detseg proposals` with this config"
    if not path.is_file():
        raise UserError(f"{path}: there are no proposals (data.proposals); {remedy}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = json.loads(str(file["description"]))
            boxes, counts = file["boxes"], file["counts"]
        proposals = ProposalSet(boxes.astype(np.float32), np.cumsum([0, *counts.tolist()]))
        differing = [key for key in description if found.get(key) != description[key]]
        is_whole = boxes.shape == (proposals.starts[-1], 4) and counts.min(initial=0) >= 0
        if not differing and not (is_whole and len(proposals) == image_count):
            raise ValueError(f"{len(boxes)} boxes and {len(counts)} counts")
    except Exception as error:  # zipfile, zlib and numpy raise whatever they like on damaged files
        raise UserError(f"{path}: damaged ({error}); delete it and {remedy}") from error
    if differing:
        key = differing[0]
        raise UserError(
            f"{path}: made for other images or settings: its {key} is {found.get(key)}, expected {description[key]}; "
            f"delete it and {remedy}"
        )
    return proposals


# ----- anybody's -----------------------------------------------------------------------------------------------------


def _read_coco(path, dataset, image_sizes):
    """Entries {image_id, bbox [x, y, width, height], score}; an image without entries has no proposals."""
    try:
        entries = json.loads(path.read_bytes())
        ids = [entry["image_id"] for entry in entries]
        scores = np.array([entry["score"] for entry in entries], np.float64)
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        expected = "expected COCO's results format: a list of {image_id, bbox, score}"
        raise UserError(f"{path}: the proposals cannot be read ({error!r}); {expected}") from error
    if not np.isfinite(scores).all():
        raise UserError(f"{path}: [{int(np.argmin(np.isfinite(scores)))}]: field score is no number; expected one")
    numbers = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    is_id = [isinstance(image_id, str) or is_number(image_id) for image_id in ids]
    unknown = [n for n, image_id in enumerate(ids) if not (is_id[n] and image_id in numbers)]
    raise_problems(path, [f"[{n}]: field image_id is {ids[n]!r}, but the split has no such image" for n in unknown])
    boxes[:, 2:] += boxes[:, :2]
    own, order = [[] for _ in numbers], np.argsort(-scores, kind="stable")
    for n in order.tolist():
        own[numbers[ids[n]]].append(n)
    return _checked(path, [boxes[rows] for rows in own], dataset, image_sizes)


def _read_mat(path, dataset, image_sizes):
    """Cells `images` of names, `boxes` of (P, 4) ymin xmin ymax xmax: the first pixel is 1, the last one inside."""
    try:
        content = io.loadmat(path, variable_names=("images", "boxes"))
        names = [str(cell.item()) for cell in content["images"].ravel()]
        cells = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in content["boxes"].ravel()]
        boxes = dict(zip(names, cells, strict=True))
        if len(boxes) < len(names):
            raise ValueError("an image is there twice")
    except Exception as error:  # loadmat raises whatever it likes on damaged files
        expected = "expected the VOC authors' form: cells `images` and `boxes`"
        raise UserError(f"{path}: the proposals cannot be read ({error!r}); {expected}") from error
    missing = [f"image {name} of the split is not in it" for name in dataset.names if name not in boxes]
    raise_problems(path, missing)
    own = [boxes[name][:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0]) for name in dataset.names]
    return _checked(path, own, dataset, image_sizes)


def _checked(path, boxes, dataset, image_sizes):
    """The ProposalSet of boxes (P, 4) of each image, clipped to it; UserError for those beyond it or without size."""
    problems, clipped = [], []
    for name, own, (height, width) in zip(dataset.names, boxes, image_sizes, strict=True):
        inside = clip_boxes(own, (height, width))
        is_wrong = ~(np.abs(inside - own) <= _MARGIN).all(axis=1) | ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
        for row in np.flatnonzero(is_wrong)[:1]:
            where = f"is no box within the image of {width}x{height} pixels (width x height)"
            problems.append(f"image {name}: {own[row].tolist()}, as x1 y1 x2 y2, {where}")
        clipped.append(inside)
    raise_problems(path, problems)
    return ProposalSet.of_images(clipped)


class ProposalsPart:
    """The proposals of a split that is being worked on: a file to which each image's are added, for a call that is
    killed and begun again.

    path:         of the file.
    description:  dict: what is in a file of another one is not used.
    Raises        UserError where the file can't be written.
    """

    def __init__(self, path, description):
        self._path, self._header = path, json.dumps(description, sort_keys=True).encode() + b"\n"

    def __enter__(self):
        with self._errors_told():
            self._file = open(self._path, "a+b")
        return self

    def __exit__(self, *exception):
        self._file.close()

    def read(self):
        """{image number: boxes float32 (P, 4)} of what is there whole; the rest is cut off."""
        self._file.seek(0)
        content, found, end = self._file.read(), {}, len(self._header)
        if content[:end] != self._header:
            self._file.truncate(0)
            self._append(self._header)
            return found
        while len(content) >= end + 8:
            number, count = np.frombuffer(content, np.int32, 2, end).tolist()
            if not 0 <= count <= (len(content) - end - 8) // 16:
                break
            found[number] = np.frombuffer(content, np.float32, 4 * count, end + 8).reshape(count, 4)
            end += 8 + 16 * count
        self._file.truncate(end)
        return found

    def add(self, number, boxes):
        """Appends an image's."""
        self._append(np.array([number, len(boxes)], np.int32).tobytes() + boxes.astype(np.float32).tobytes())

    def _append(self, content):
        with self._errors_told():
            self._file.write(content)
            self._file.flush()

    @contextlib.contextmanager
    def _errors_told(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: can't be written: {error.strerror or error}") from error

    def remove(self):
        self._path.unlink(missing_ok=True)
