"""The command line, `detseg train|evaluate|predict|make-shapes`; tools/*.py are other doors to the same functions."""

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

from detseg.errors import UserError

logger = logging.getLogger("detseg")


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends like Ctrl-C, with another exit code."""


def main(arguments=None):
    """Runs a command line and returns its exit code: 0, 2 for a user's mistake, 130 and 143 for Ctrl-C and SIGTERM."""
    options = create_parser().parse_args(arguments)
    _log_to_console()
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def create_parser():
    parser = argparse.ArgumentParser(prog="detseg", description="Object detection and segmentation in Keras 3.")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = _add_command(commands, "train", _train, "train a model from a config file into a run folder")
    train.add_argument("--config", type=Path, metavar="FILE", help="the config; with --resume by default the run's own")
    _add_set(train)
    train.add_argument("--run", type=Path, metavar="DIR", help="run folder; default: runs/ and the config's file name")
    train.add_argument("--resume", action="store_true", help="go on after the last finished epoch of the run folder")
    train.add_argument("--print-schema", action="store_true", help="print the JSON schema of configs, for editors")

    evaluate = _add_command(commands, "evaluate", _evaluate, "score a trained model on a split")
    _add_run(evaluate)
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test"), help="default: val")
    evaluate.add_argument("--name", metavar="NAME", help="of the result, evaluation/NAME.json; default: the split")
    _add_set(evaluate)

    predict = _add_command(commands, "predict", _predict, "write masks and drawings of images")
    _add_run(predict)
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="image file, folder of images or glob pattern")
    predict.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    predict.add_argument("--save-probabilities", action="store_true", help="also write STEM.npz with all probabilities")
    _add_set(predict)

    shapes = _add_command(commands, "make-shapes", _make_shapes, "write the embedded data set of shapes")
    shapes.add_argument("--root", default=Path("data/shapes"), type=Path, metavar="DIR", help="default: data/shapes")
    for split, count in (("train", 400), ("val", 100), ("test", 100)):
        shapes.add_argument(f"--{split}", default=count, type=int, metavar="N", help=f"images, default {count}")
    shapes.add_argument("--size", default=192, type=int, metavar="PIXELS", help="height and width, default 192")
    shapes.add_argument("--seed", default=0, type=int, help="default 0")
    return parser


def _add_command(commands, name, function, text):
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(command=function)
    return command


def _add_run(command):
    command.add_argument("--run", required=True, type=Path, metavar="DIR", help="run folder of the trained model")


def _add_set(command):
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="change a key of the config"
    )


def _train(options):
    from detseg.config import config_schema, load_config

    if options.print_schema:
        print(json.dumps(config_schema(), indent=2))
        return
    run, file = options.run, options.config
    if file is None:
        if not (options.resume and run):
            raise UserError("train: --config FILE is missing; only --resume --run DIR goes without it")
        file = run / "config.yaml"
    config = load_config(file, options.overrides)

    _start_backend_quietly()
    from detseg.training.fit import train

    train(config, run or Path("runs") / file.stem, options.resume)


def _evaluate(options):
    _start_backend_quietly()
    from detseg.data.datasets import check_classes, create_dataset
    from detseg.data.validate import scan_split
    from detseg.evaluation import evaluate, write_evaluation
    from detseg.prediction import load

    predictor = load(options.run, options.overrides)
    dataset = create_dataset(predictor.config.data, options.split)
    check_classes(dataset, predictor.classes, options.run)
    scan_split(dataset)
    result = evaluate(predictor.task, predictor.inference(), dataset, progress=options.split)
    path = predictor.folder.evaluation / f"{options.name or options.split}.json"
    write_evaluation(path, result)
    print(predictor.task.format_scores(result))
    print(path)


def _predict(options):
    _start_backend_quietly()
    from detseg.prediction import load, predict_files

    predict_files(load(options.run, options.overrides), options.inputs, options.output, options.save_probabilities)


def _make_shapes(options):
    from detseg.data.shapes_writer import make_shapes

    counts = {split: getattr(options, split) for split in ("train", "val", "test")}
    print(make_shapes(options.root, **counts, size=options.size, seed=options.seed))


def _start_backend_quietly():
    """Imports Keras with its backend. TensorFlow's native start-up lines, which no setting silences, go nowhere."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)  # grain's word that it found no JAX profiler
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        keras.distribution.list_devices()  # looks for GPUs, and says so
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _log_to_console():
    from tqdm import tqdm

    class Console(logging.Handler):
        """Prints above a running progress bar."""

        def emit(self, record):
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()

    logger.handlers[:] = [Console()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _raise_terminated(signal_number, frame):
    raise Terminated
