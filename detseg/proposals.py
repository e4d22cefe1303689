"""Proposals of a data set's splits by Selective Search, and how well they cover its objects."""

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
from tqdm import tqdm

from detseg.config import Config, load_data_config
from detseg.data.proposals import (
    ProposalSet,
    ProposalsPart,
    describe_proposals,
    load_proposals,
    proposal_path,
    write_proposals,
)
from detseg.data.readers.create import create_dataset
from detseg.data.scan import scan_split
from detseg.detection import selective_search
from detseg.errors import UserError
from detseg.files import make_folder
from detseg.metrics.proposals import COUNTS, ProposalScores
from detseg.report.plots import draw_recall

logger = logging.getLogger("detseg")


class ProposalFigures(dict):
    """What `ProposalScores.result` has, with split, path, and seconds_per_image of one core (None: they were there
    before). str() of it is what the command prints."""

    def __str__(self):
        seconds = self["seconds_per_image"]
        lines = [
            f"{self['split']}: {self['images']} images, {self['boxes_per_image']:.0f} proposals each"
            + (f", {seconds:.2f} s an image on one core" if seconds is not None else "")
            + f": {self['path']}",
            f"{'':10}" + "".join(f"{count:>8}" for count in COUNTS) + "   first proposals",
        ]
        for iou, row in self["recall"].items():
            lines.append(
                f"IoU {iou:<6}" + "".join(f"{value:8.3f}" for value in row.values()) + "   of the objects found"
            )
        lines.append(f"mean average best overlap {self['mabo']:.3f}")
        if self["images_without_proposals"]:
            lines.append(f"without any proposal: {self['images_without_proposals']} images")
        return "\n".join(lines)


def make_proposals(
    config: str | os.PathLike | Mapping | Config,
    split: str | None = None,
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
) -> list[ProposalFigures]:
    """Makes the proposals that data.proposals says, unless they are there, and measures how well they cover objects.

    config:     whose data section counts; others are not needed and not read.
    split:      "train", "val" or "test"; None: each that the config has.
    overrides:  "a.b=c" as for --set.
    workers:    processes; None: one for each core. More than one import the script that calls this: its calls stand
                under `if __name__ == "__main__":`. 1: this process.
    Returns     the figures of each split, which are logged. SPLIT_MODE.npz and SPLIT_MODE_recall.png are written into
                the folder; a call that was killed goes on where it was.
    Raises      UserError for a config without data.proposals, for broken images, and files that can't be written.
    """
    config = load_data_config(config, overrides)
    if config.task != "detection":
        raise UserError(f"task: {config.task}; proposals are for task: detection")
    if config.data.proposals is None:
        raise UserError("data.proposals: null; name a folder for them, such as {folder: proposals/mine}")
    splits = [split] if split else [name for name in ("train", "val", "test") if getattr(config.data, name) is not None]
    figures = []
    for name in splits:
        figures.append(_figures_of(config.data, name, workers))
        logger.info("%s", figures[-1])
    return figures


def _figures_of(data, split, workers):
    dataset = create_dataset(data, split, "detection")
    sizes = scan_split(dataset, "detection").image_sizes
    path = proposal_path(data, split)
    seconds = None
    if data.proposals.mode != "file" and not path.is_file():
        make_folder(path.parent, "data.proposals.folder")
        seconds = _search_all(data, dataset, sizes, path, workers or os.cpu_count() or 1)
    proposals = load_proposals(data, dataset, sizes)
    scores = ProposalScores(dataset.classes)
    for i in range(len(dataset)):
        objects = dataset.objects(i)
        scores.update(objects.boxes, objects.labels, proposals.of(i), objects.is_crowd, objects.difficult)
    draw_recall(scores, path.with_name(f"{path.stem}_recall.png"))
    return ProposalFigures(scores.result() | {"split": split, "path": str(path), "seconds_per_image": seconds})


def _search_all(data, dataset, sizes, path, workers):
    """Writes the proposals of a data set; returns seconds of one core an image, None where all were there already."""
    description, seconds = describe_proposals(data, dataset, sizes), []
    with ProposalsPart(path.with_name(f".{path.name}.part"), description) as part:
        found = part.read()
        missing = [i for i in range(len(dataset)) if i not in found]
        bar = tqdm(total=len(dataset), initial=len(found), desc=f"proposals {dataset.split}", unit="img", disable=None)
        jobs = ((i, (dataset.image(i), data.proposals.mode, data.proposals.seed)) for i in missing)
        with bar:
            for i, (boxes, took) in _in_processes(jobs, workers):
                part.add(i, boxes)
                found[i] = boxes
                seconds.append(took)
                bar.update()
        write_proposals(path, ProposalSet.of_images([found[i] for i in range(len(dataset))]), description)
        part.remove()
    return float(np.mean(seconds)) if seconds else None


def _in_processes(jobs, workers):
    """(key, what `_search` returns) of jobs (key, its arguments), in their order; few of them are in memory at once."""
    if workers == 1:
        yield from ((key, _search(*arguments)) for key, arguments in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads there are
    pool = ProcessPoolExecutor(workers, context, _prepare_worker)
    try:
        running = deque()
        for key, arguments in itertools.chain(jobs, [(None, None)] * 2 * workers):
            running.append((key, None if arguments is None else pool.submit(_search, *arguments)))
            if len(running) > 2 * workers:
                key, future = running.popleft()
                if future is not None:
                    yield key, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "proposals: a worker process was ended from outside, or by lack of memory; --workers 1 takes the least. "
            'A script of one\'s own calls make_proposals under `if __name__ == "__main__":`, or with workers=1'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker():
    """Ctrl-C ends the parent, which ends its workers; so does whatever else ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _search(image, mode, seed):
    """(proposals (P, 4), seconds of processor time)."""
    start = time.process_time()
    return selective_search.selective_search(image, mode, seed), time.process_time() - start
