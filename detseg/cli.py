"""The command line, `detseg train|evaluate|predict|...`; tools/*.py are other doors to the same functions."""

import argparse
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

from detseg.errors import UserError
from detseg.process import start_backend

logger = logging.getLogger("detseg")


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends like Ctrl-C, with another exit code."""


def main(arguments=None):
    """Runs a command line and returns its exit code.

    0, 2 for a user's mistake, 130 and 143 for Ctrl-C and SIGTERM, 141 where nobody reads the output any more.
    """
    options = create_parser().parse_args(arguments)
    _log_to_console()
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
        return 141
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


_FILE = {"type": Path, "metavar": "FILE"}
_FOLDER = {"type": Path, "metavar": "DIR"}


def create_parser():
    parser = argparse.ArgumentParser(prog="detseg", description="Object detection and segmentation in Keras 3.")
    commands = parser.add_subparsers(required=True, metavar="command")

    add = _add_command(commands, "train", _train, "train a model from a config file into a run folder")
    add("--config", **_FILE, help="the config; with --resume by default the run's own")
    _add_set(add)
    add("--run", **_FOLDER, help="run folder; default: runs/ and the config's file name")
    add("--resume", action="store_true", help="go on after the last finished epoch of the run folder")
    add("--print-schema", action="store_true", help="print the JSON schema of configs, for editors")

    add = _add_command(commands, "evaluate", _evaluate, "score a trained model, or anybody's detections, on a split")
    add("--run", **_FOLDER, help="run folder of the trained model")
    text = "in place of --run: COCO results, or a folder of VOC's comp4 files; needs --config"
    add("--detections", **_FILE, help=text)
    add("--config", **_FILE, help="with --detections: whose data is the truth")
    add("--output", **_FOLDER, help="with --detections: folder for scores and drawings; default: none")
    add("--split", default="val", choices=("train", "val", "test"), help="default: val")
    text = "of the result, evaluation/NAME.json; default: the split, SPLIT_tta with --tta, SPLIT_tiled with --tile"
    add("--name", metavar="NAME", help=text)
    text = "draw ground truth beside prediction for the first N images: NAME_drawings/ beside NAME.json"
    add("--drawings", type=_positive, metavar="N", help=text)
    _add_tta_and_tile(add)
    _add_set(add)

    add = _add_command(commands, "predict", _predict, "write masks and drawings of images")
    add("--run", required=True, **_FOLDER, help="run folder of the trained model")
    add("inputs", nargs="+", metavar="INPUT", help="image file, folder of images or glob pattern")
    add("--output", required=True, **_FOLDER, help="folder for the results")
    text = "segmentation: also write STEM.npz with all probabilities"
    add("--save-probabilities", action="store_true", dest="probabilities", help=text)
    text = "detection: only what scores above it is drawn and written, default 0.5"
    add("--score-threshold", type=_share, metavar="SCORE", help=text)
    text = "detection: the most of an image; default: the config's"
    add("--max-detections", type=_positive, metavar="N", help=text)
    add("--voc-xml", action="store_true", help="detection: also write STEM.xml in VOC's form")
    text = "mask_rcnn: also write STEM_instances.png, 16 bits: the object's number at each pixel"
    add("--instance-ids", action="store_true", help=text)
    add("--overwrite", action="store_true", help="replace files in --output that predict has not written itself")
    text = "detection: what the numbers in STEM.xml are (data.voc_boxes); default: as in the data, else inclusive"
    add("--voc-boxes", choices=("inclusive", "continuous"), help=text)
    _add_tta_and_tile(add)
    _add_set(add)

    text = "write a published model (torchvision's, trained on COCO) as a run that predicts and is fine-tuned"
    add = _add_command(commands, "convert-weights", _convert_weights, text)
    add("--preset", required=True, metavar="NAME", help="such as fasterrcnn_resnet50_fpn_coco; see docs/finetuning.md")
    add("--weights", **_FILE, help="torchvision's file, read without torch; default: it is downloaded")
    text = "folder for the run, or a file ending in .weights.h5 for the weights alone"
    add("--output", required=True, metavar="PATH", type=Path, help=text)

    text = "find boxes that may hold objects, for rcnn and fast_rcnn, by Selective Search"
    add = _add_command(commands, "proposals", _proposals, text)
    add("--config", required=True, **_FILE, help="the config, whose data.proposals names the folder for them")
    add("--split", choices=("train", "val", "test"), help="default: each that the config has")
    add("--mode", choices=("fast", "quality"), help="in place of the config's data.proposals.mode")
    add("--workers", type=_positive, metavar="N", help="processes; default: one for each core")
    _add_set(add)

    add = _add_command(commands, "compare", _compare, "show runs side by side: scores, cost, configs and curves")
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder, also of a run that goes on")
    add("--split", choices=("train", "val", "test"), help="of the results; default: all there are")
    add("--output", **_FOLDER, help="folder for curves.png; default: compare, beside the first run")
    add("--markdown", action="store_true", help="print the tables as Markdown")

    add = _add_command(commands, "make-shapes", _make_shapes, "write the embedded data set of shapes")
    add("--root", default=Path("data/shapes"), **_FOLDER, help="default: data/shapes")
    for split, count in (("train", 400), ("val", 100), ("test", 100)):
        add(f"--{split}", default=count, type=int, metavar="N", help=f"images, default {count}")
    add("--size", default=192, type=int, metavar="PIXELS", help="height and width, default 192")
    add("--seed", default=0, type=int, help="default 0")

    # Its arguments are read by tools/benchmark: none of them is an option here.
    benchmark = commands.add_parser("benchmark", help="measure speed and memory", add_help=False, prefix_chars="\0")
    benchmark.add_argument("arguments", nargs="*")
    benchmark.set_defaults(command=_benchmark)
    return parser


def _add_command(commands, name, function, text):
    """The new command's add_argument."""
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(command=function)
    return command.add_argument


def _add_tta_and_tile(add):
    add("--tta", action="store_true", help="segmentation: average over scales and flips: the config's tta")
    text = "segmentation: send images through the model in overlapping tiles of this side, for large images"
    add("--tile", type=_tile, metavar="auto|PIXELS", help=text)
    add("--tile-memory", type=_gigabytes, metavar="GB", help="of one tile, for --tile auto; default 1")


def _add_set(add):
    add("--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="change a key of the config")


def _prediction_options(options, *names):
    """{name: value} of what was asked for, as `Predictor.predict` takes it. names: of options that evaluate hasn't."""
    if options.tile_memory is not None and options.tile != "auto":
        raise UserError(f"--tile-memory {options.tile_memory:g}: it is for --tile auto")
    asked = {name: getattr(options, name) for name in ("tta", "tile", *names)}
    if options.tile_memory is not None:
        asked["tile_memory"] = int(options.tile_memory * 1e9)
    return {name: value for name, value in asked.items() if value is not None and value is not False}


def _tile(text):
    return text if text == "auto" else _positive(text)


def _gigabytes(text):
    return _number(text, lambda value: 0 < value < math.inf, "a number of gigabytes > 0")


def _share(text):
    return _number(text, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text, is_right, expected):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


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

    start_backend()
    from detseg.training.fit import train

    train(config, run or Path("runs") / file.stem, options.resume)


def _evaluate(options):
    is_run = options.detections is None
    excluded = ("config", "output") if is_run else ("run", "tta", "tile", "tile_memory")
    wrong = ", ".join(f"--{name.replace('_', '-')}" for name in excluded if getattr(options, name))
    if is_run and (wrong or options.run is None):
        raise UserError(f"{wrong or 'evaluate'}: expected --run DIR, or --detections FILE --config FILE")
    if not is_run and (wrong or options.config is None):
        remedy = f" and no {wrong}" if wrong else ", whose data section says where the ground truth is"
        raise UserError(f"--detections: takes --config FILE{remedy}")
    asked = _prediction_options(options)
    start_backend()
    from detseg.evaluation import evaluate, evaluate_detections

    common = {"name": options.name, "overrides": options.overrides, "drawings": options.drawings}
    if is_run:
        result = evaluate(options.run, options.split, **common, **asked)
    else:
        common["output"] = options.output
        result = evaluate_detections(options.detections, options.config, options.split, **common)
    print(result)
    for path in result.paths:
        print(path)


def _predict(options):
    asked = _prediction_options(options, "probabilities", "score_threshold", "max_detections")
    start_backend()
    from detseg.predict_files import predict_files
    from detseg.predictor import load

    files = {name: getattr(options, name) for name in ("voc_xml", "voc_boxes", "instance_ids", "overwrite")}
    predict_files(load(options.run, options.overrides), options.inputs, options.output, **files, **asked)


def _convert_weights(options):
    start_backend()
    from detseg.convert_weights import convert_weights

    print(convert_weights(options.preset, options.output, options.weights))


def _proposals(options):
    from detseg.proposals import make_proposals

    mode = [] if options.mode is None else [f"data.proposals.mode={options.mode}"]
    overrides = [*options.overrides, *mode]
    make_proposals(options.config, options.split, overrides=overrides, workers=options.workers)


def _compare(options):
    from detseg.files import make_folder
    from detseg.report.compare import compare, format_markdown
    from detseg.report.plots import draw_curves
    from detseg.report.runs import read_runs

    output = options.output or Path(os.path.normpath(options.runs[0] / "..")) / "compare"
    runs = read_runs([folder for folder in options.runs if folder != output])  # runs/* names it the second time
    tables = compare(runs, options.split)
    print(format_markdown(tables, tables.names) if options.markdown else tables)
    if not any(run.history for run in runs):
        logger.info("no run has finished an epoch: there are no curves to draw")
        return
    make_folder(output, "--output")
    draw_curves(runs, output / "curves.png")
    print(output / "curves.png", file=sys.stderr if options.markdown else sys.stdout)  # stdout: tables for a file


def _make_shapes(options):
    from detseg.data.shapes_writer import make_shapes

    counts = {split: getattr(options, split) for split in ("train", "val", "test")}
    print(make_shapes(options.root, **counts, size=options.size, seed=options.seed))


def _benchmark(options):
    tools = Path(__file__).resolve().parents[1] / "tools"
    if not (tools / "benchmark" / "command.py").is_file():
        raise UserError(
            f"benchmark: there is no {tools / 'benchmark'}: benchmarks are part of a checkout of detseg; "
            "run `python tools/benchmark.py` there"
        )
    sys.path.insert(0, str(tools))
    from benchmark.command import run

    run(options.arguments)


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
