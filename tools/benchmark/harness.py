"""Benchmarks: images per second and peak memory of a config, alone or in turns with a peer.

Every side is a worker process of its own: worker.py or, for torch, torch_twin.py, beside this file. Both are
started and warmed up before the first round; then they take turns, and one waits at its stdin while the other measures.
They speak JSON, one object a line:

    to the worker    the job (`create_job`), then {"steps": n} for each round; the end of stdin ends it
    from the worker  the facts ("parameters", "step_seconds", "threads", "device", "versions", ...) once it is warm,
                     then {"seconds": s, "peak_memory": bytes, "loss": x or null} for each round; or {"error": "..."}
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detseg.config import load_config
from detseg.errors import UserError

MEASURES = ("train-step", "inference")
ROUND_SECONDS = 4.0  # of the slower side, where the number of steps is not given
OBJECTS = 8  # in each random image
STILL = 1e-9  # a learning rate at which nothing is learnt
PARAMETER_TOLERANCE = 1e-3  # a twin whose parameters differ by more is another network
STDERR_LINES = 15  # of a dead worker that are shown

_WORKER, _TORCH_TWIN = (Path(__file__).resolve().with_name(name) for name in ("worker.py", "torch_twin.py"))


@dataclass(frozen=True, slots=True)
class Side:
    """What is measured.

    name:     str, in tables.
    command:  list of str, the worker's command line.
    job:      dict of `create_job`.
    is_twin:  bool, whether it claims to be the first side's network in another library.
    """

    name: str
    command: list
    job: dict
    is_twin: bool = False


def create_job(measure, config_file, overrides=(), size=(256, 256), batch_size=None, classes=21):
    """What a worker builds and measures, as JSON values.

    A detector's job has the objects of its random images, and the learning rate `STILL`: what it learns decides which
    boxes are left after suppression, and so how much work its next step is.

    measure:     one of `MEASURES`. "train-step": a step of keras' fit. "inference": one image to its label map or to
                 its detections.
    size:        (height, width) of the random images.
    batch_size:  int; None: the config's train.batch_size, or 1 for inference.
    classes:     int, number of classes: no data set is read.
    """
    config = load_config(config_file, [*overrides, "data.resize=null"])  # images have `size` already
    if not 2 <= classes <= 255:
        raise UserError(f"--classes {classes}: expected 2 to 255")
    if measure == "inference" and batch_size not in (None, 1):
        raise UserError(f"--batch-size {batch_size}: inference takes one image at a time, as predict does")
    job = {
        "measure": measure,
        "config": config.model_dump(mode="json"),
        "size": list(size),
        "batch_size": 1 if measure == "inference" else batch_size or config.train.batch_size,
        "classes": classes,
    }
    if config.task == "detection":
        job["config"]["train"]["optimizer"]["learning_rate"] = STILL
        job["objects"] = _random_objects(config.seed, job["batch_size"], size, classes)
    return job


def _random_objects(seed, batch_size, size, classes):
    """For each image `OBJECTS` boxes x1 y1 x2 y2 and labels. Their sides, spread evenly over the octaves, are 1/16 to
    1/2 of the image's shorter one, which anchors of the usual sizes find."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(batch_size):
        sides = min(size) * 2 ** rng.uniform(-4, -1, (OBJECTS, 2))
        starts = rng.uniform(0, np.array([size[1], size[0]]) - sides)
        boxes = np.concatenate([starts, starts + sides], axis=1)
        images.append({"boxes": boxes.tolist(), "labels": rng.integers(0, classes, OBJECTS).tolist()})
    return images


def detseg_side(job, name="detseg"):
    # -P: this folder, with its common names, is no place to import from
    return Side(name, [sys.executable, "-P", str(_WORKER)], job)


def torch_side(job, python, compiled=False):
    """The twin in torch.

    python:    path of the Python of an environment with torch and torchvision.
    compiled:  bool, whether it goes through torch.compile.
    Raises UserError without a Python.
    """
    if python is None:
        raise UserError(
            "--against torch: needs --torch-python PATH, the Python of an environment with torch and torchvision: "
            "python -m venv torch-env && torch-env/bin/pip install torch torchvision"
        )
    name = "torch.compile" if compiled else "torch"
    return Side(name, [str(python), str(_TORCH_TWIN)], job | {"compiled": compiled}, is_twin=True)


def benchmark(sides, rounds=9, steps=None):
    """Measures one or two sides in alternating rounds.

    steps:   int, steps in a round; None: as many as take the slower side about `ROUND_SECONDS`.
    Returns  the result as JSON values. "ratio" is the first side's speed over the second's, round by round.
    Raises UserError for a worker that cannot be started, refuses its job or dies, and for a twin that is none.
    """
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(side)) for side in sides]
        facts = [worker.ask(worker.side.job) for worker in workers]  # one after the other: none warms up beside another
        _check_twin(sides, facts)
        if steps is None:
            steps = max(1, round(ROUND_SECONDS / max(fact["step_seconds"] for fact in facts)))
        answers = []
        for _ in tqdm(range(rounds), desc=sides[0].job["measure"], leave=False, disable=None):
            answers.append([worker.ask({"steps": steps}) for worker in workers])
    for side, answer in zip(sides, answers[-1], strict=True):
        _check_loss(side, answer["loss"])
    return _result(sides, facts, answers, steps) | {"load_average_before": load}


class _Worker:
    """A side's process. A context: the process ends with it."""

    def __init__(self, side):
        self.side = side

    def __enter__(self):
        self._stderr = tempfile.TemporaryFile()
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # or the first side takes the memory of the GPU that both share
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        try:
            self._process = subprocess.Popen(
                self.side.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                text=True,
                bufsize=1,
            )
        except OSError as error:
            self._stderr.close()
            raise UserError(
                f"{self.side.name}: {self.side.command[0]} cannot be run: {error.strerror}; correct --torch-python"
            ) from error
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def ask(self, question):
        """The answer to a JSON object, which may take its time."""
        with contextlib.suppress(BrokenPipeError):  # it is dead: then there is no answer either
            self._process.stdin.write(json.dumps(question) + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise UserError(self._last_words())
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self.side.name}: {self.side.command[0]} is no Python: it says {line!r}") from error
        if "error" in answer:
            raise UserError(f"{self.side.name}: {answer['error']}")
        return answer

    def _last_words(self):
        code = self._process.wait()
        end = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = " (9: often, that memory has run out)" if code == -9 else ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()[-STDERR_LINES:]
        return "\n  ".join([f"{self.side.name}: its process {end}{hint}. The end of its stderr:", *lines])


def _check_twin(sides, facts):
    ours = facts[0]["parameters"]
    for side, fact in zip(sides, facts, strict=True):
        if side.is_twin and abs(fact["parameters"] - ours) > PARAMETER_TOLERANCE * ours:
            raise UserError(
                f"{side.name}: its network has {fact['parameters']:,} trainable parameters, ours {ours:,}: these are "
                "not the same layers, and their speeds don't compare"
            )


def _check_loss(side, loss):
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"{side.name}: the loss became {loss}; lower train.optimizer.learning_rate with --set")


def _result(sides, facts, answers, steps):
    job = sides[0].job
    seconds = np.array([[answer["seconds"] for answer in answer_pair] for answer_pair in answers])  # (rounds, sides)
    speeds = steps * job["batch_size"] / seconds
    described = [
        {
            "name": side.name,
            "images_per_second": _spread(speed),
            "peak_memory": answer["peak_memory"],
            "loss": answer["loss"],
            "model": side.job["config"]["model"],
            "precision": side.job["config"]["train"]["precision"],
            **fact,
        }
        for side, fact, answer, speed in zip(sides, facts, answers[-1], speeds.T, strict=True)
    ]
    return {
        **{key: job[key] for key in ("measure", "size", "batch_size", "classes")},
        "rounds": len(answers),
        "steps": steps,
        "sides": described,
        "ratio": _spread(speeds[:, 0] / speeds[:, 1]) if len(sides) == 2 else None,
    }


def _spread(values):
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "quartiles": [low, high], "rounds": values.tolist()}


def format_result(result):
    """A result of `benchmark` as lines of text."""
    model = result["sides"][0]["model"]
    height, width = result["size"]
    lines = [
        f"{result['measure']}: {model['name']} on {model['backbone']}, {result['batch_size']} x {height}x{width}, "
        f"{result['classes']} classes; {result['rounds']} rounds of {result['steps']} steps, in turns",
        f"load average of the machine before the start: {result['load_average_before']:.2f} (figures of a busy one are "
        "worth nothing)",
        "",
    ]
    rows = [("", "images/s", "quartiles", "peak memory", "parameters", "precision", "threads", "device", "versions")]
    for side in result["sides"]:
        memory = side["peak_memory"]
        rows.append(
            (
                side["name"],
                *_format_spread(side["images_per_second"]),
                "unknown" if memory is None else f"{memory / 1e9:.2f} GB",
                f"{side['parameters']:,}",
                side["precision"],
                str(side["threads"]),
                side["device"],
                ", ".join(f"{name} {version}" for name, version in side["versions"].items()),
            )
        )
    if result["ratio"] is not None:
        rows.append(("ratio", *_format_spread(result["ratio"]), *[""] * 6))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _format_spread(spread):
    low, high = spread["quartiles"]
    return f"{spread['median']:.3g}", f"{low:.3g} to {high:.3g}"
