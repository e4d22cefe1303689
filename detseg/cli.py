"""The command line, `detseg train|evaluate|predict|...`; tools/*.py are other doors to the same functions."""

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


def create_parser():
    parser = argparse.ArgumentParser(prog="detseg", description="Object detection and segmentation in Keras 3.")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = _add_command(commands, "train", _train, "train a model from a config file into a run folder")
    train.add_argument("--config", type=Path, metavar="FILE", help="the config; with --resume by default the run's own")
    _add_set(train)
    train.add_argument("--run", type=Path, metavar="DIR", help="run folder; default: runs/ and the config's file name")
    train.add_argument("--resume", action="store_true", help="go on after the last finished epoch of the run folder")
    train.add_argument("--print-schema", action="store_true", help="print the JSON schema of configs, for editors")

    evaluate = _add_command(
        commands, "evaluate", _evaluate, "score a trained model, or anybody's detections, on a split"
    )
    evaluate.add_argument("--run", type=Path, metavar="DIR", help="run folder of the trained model")
    evaluate.add_argument(
        "--detections",
        type=Path,
        metavar="FILE",
        help="in place of --run: COCO results, or a folder of VOC's comp4 files; needs --config",
    )
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="with --detections: whose data is the truth")
    evaluate.add_argument(
        "--output", type=Path, metavar="DIR", help="with --detections: folder for scores and drawings; default: none"
    )
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test"), help="default: val")
    evaluate.add_argument(
        "--name",
        metavar="NAME",
        help="of the result, evaluation/NAME.json; default: the split, SPLIT_tta with --tta, SPLIT_tiled with --tile",
    )
    evaluate.add_argument(
        "--drawings",
        type=_positive,
        metavar="N",
        help="draw ground truth beside prediction for the first N images: NAME_drawings/ beside NAME.json",
    )
    _add_tta(evaluate)
    _add_tile(evaluate)
    _add_set(evaluate)

    predict = _add_command(commands, "predict", _predict, "write masks and drawings of images")
    _add_run(predict)
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="image file, folder of images or glob pattern")
    predict.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    predict.add_argument(
        "--save-probabilities", action="store_true", help="segmentation: also write STEM.npz with all probabilities"
    )
    predict.add_argument(
        "--score-threshold",
        type=_share,
        metavar="SCORE",
        help="detection: only what scores above it is drawn and written, default 0.5",
    )
    predict.add_argument(
        "--max-detections", type=_positive, metavar="N", help="detection: the most of an image; default: the config's"
    )
    predict.add_argument("--voc-xml", action="store_true", help="detection: also write STEM.xml in VOC's form")
    predict.add_argument(
        "--voc-boxes",
        choices=("inclusive", "continuous"),
        help="detection: what the numbers in STEM.xml are (data.voc_boxes); default: as in the data, else inclusive",
    )
    _add_tta(predict)
    _add_tile(predict)
    _add_set(predict)

    compare = _add_command(commands, "compare", _compare, "show runs side by side: scores, cost, configs and curves")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, also of a run that goes on")
    compare.add_argument("--split", choices=("train", "val", "test"), help="of the results; default: all there are")
    compare.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for curves.png; default: compare, beside the first run"
    )
    compare.add_argument("--markdown", action="store_true", help="print the tables as Markdown")

    shapes = _add_command(commands, "make-shapes", _make_shapes, "write the embedded data set of shapes")
    shapes.add_argument("--root", default=Path("data/shapes"), type=Path, metavar="DIR", help="default: data/shapes")
    for split, count in (("train", 400), ("val", 100), ("test", 100)):
        shapes.add_argument(f"--{split}", default=count, type=int, metavar="N", help=f"images, default {count}")
    shapes.add_argument("--size", default=192, type=int, metavar="PIXELS", help="height and width, default 192")
    shapes.add_argument("--seed", default=0, type=int, help="default 0")

    benchmark = _add_command(commands, "benchmark", _benchmark, "measure speed and memory, also in turns with a peer")
    benchmark.add_argument("measure", choices=("train-step", "inference"))
    benchmark.add_argument("--config", required=True, type=Path, metavar="FILE", help="its data set is not read")
    _add_set(benchmark)
    benchmark.add_argument("--against", choices=("torch", "detseg"), help="the peer; default: none")
    benchmark.add_argument(
        "--against-set", action="append", default=[], metavar="A.B=C", help="change a key of the peer's config"
    )
    benchmark.add_argument("--torch-python", type=Path, metavar="PATH", help="Python of an environment with torch")
    benchmark.add_argument("--torch-compile", action="store_true", help="the peer goes through torch.compile")
    benchmark.add_argument("--size", nargs=2, default=(256, 256), type=_positive, metavar=("H", "W"), help="256 256")
    benchmark.add_argument("--batch-size", type=_positive, metavar="N", help="default: the config's; inference: 1")
    benchmark.add_argument("--classes", default=21, type=_positive, metavar="N", help="default 21")
    benchmark.add_argument("--rounds", default=9, type=_positive, metavar="N", help="of each side, default 9")
    benchmark.add_argument("--steps", type=_positive, metavar="N", help="in a round; default: about 4 seconds")
    benchmark.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE: to stdout")
    return parser


def _add_command(commands, name, function, text):
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(command=function)
    return command


def _add_run(command):
    command.add_argument("--run", required=True, type=Path, metavar="DIR", help="run folder of the trained model")


def _add_tta(command):
    command.add_argument(
        "--tta", action="store_true", help="segmentation: average over scales and flips: the config's tta"
    )


def _add_tile(command):
    command.add_argument(
        "--tile",
        type=_tile,
        metavar="auto|PIXELS",
        help="segmentation: send images through the model in overlapping tiles of this side, for large images",
    )
    command.add_argument("--tile-memory", type=_gigabytes, metavar="GB", help="of one tile, for --tile auto; default 1")


def _tile_memory(options):
    """Bytes."""
    if options.tile_memory is not None and options.tile != "auto":
        raise UserError(f"--tile-memory {options.tile_memory:g}: it is for --tile auto")
    return int((options.tile_memory or 1.0) * 1e9)


def _add_set(command):
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="change a key of the config"
    )


def _tile(text):
    return text if text == "auto" else _positive(text)


def _gigabytes(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of gigabytes > 0")
    return value


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
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

    _start_backend_quietly()
    from detseg.training.fit import train

    train(config, run or Path("runs") / file.stem, options.resume)


def _evaluate(options):
    if options.detections is not None:
        return _evaluate_detections(options)
    unused = [name for name, value in (("--config", options.config), ("--output", options.output)) if value]
    if options.run is None or unused:
        raise UserError(f"{', '.join(unused) or 'evaluate'}: expected --run DIR, or --detections FILE --config FILE")
    tile_memory = _tile_memory(options)
    _start_backend_quietly()
    from detseg.data.datasets import check_classes, create_dataset
    from detseg.data.scan import scan_split
    from detseg.evaluation import evaluate, write_evaluation
    from detseg.inference.prediction import PredictionOptions
    from detseg.inference.predictor import load

    predictor = load(options.run, options.overrides)
    task = predictor.task
    dataset = create_dataset(predictor.config.data, options.split, predictor.config.task)
    check_classes(dataset, predictor.classes, options.run)
    scan_split(dataset)
    asked = PredictionOptions(tta=options.tta, tile=options.tile, tile_memory=tile_memory)
    inference = predictor.inference(task.evaluation_options(asked))
    scores = task.create_scores(extra=True)
    default_name = options.split + ("_tta" if options.tta else "") + ("_tiled" if options.tile else "")
    name = options.name or default_name
    folder = predictor.folder.evaluation
    drawings = _truth_drawings(options, task, folder, name)
    result = evaluate(task, inference, dataset, progress=options.split, scores=scores, drawings=drawings)
    result |= {"tta": options.tta, "tile": options.tile, "overrides": options.overrides}
    write_evaluation(folder / f"{name}.json", result)
    print(task.format_scores(result))
    for path in (folder / f"{name}.json", *task.write_scores(scores, dataset, folder, name)):
        print(path)
    if drawings is not None:
        print(drawings.folder)


def _truth_drawings(options, task, folder, name):
    from detseg.report.truth_drawings import TruthDrawings

    if options.drawings is None:
        return None
    return TruthDrawings(task, folder / f"{name}_drawings", options.drawings)


def _evaluate_detections(options):
    """`evaluate --detections`: scores without a run."""
    wrong = {"--run": options.run, "--tta": options.tta, "--tile": options.tile, "--tile-memory": options.tile_memory}
    wrong = [name for name, value in wrong.items() if value]
    if wrong or options.config is None:
        raise UserError(
            "--detections: takes --config FILE"
            + (f" and no {', '.join(wrong)}" if wrong else ", the config whose data.* says where the ground truth is")
        )
    if options.drawings is not None and options.output is None:
        raise UserError("--drawings: expected --output DIR too, the folder for them")
    from detseg.config import load_config

    config = load_config(options.config, options.overrides)
    if config.task != "detection":
        raise UserError(f"{options.config}: task: {config.task}; --detections needs a config of task: detection")
    _start_backend_quietly()
    from detseg.data.datasets import create_dataset
    from detseg.data.scan import scan_split
    from detseg.evaluation import evaluate_results_file, write_evaluation
    from detseg.files import make_folder
    from detseg.tasks import create_task

    if options.output is not None:
        make_folder(options.output, "--output")
    dataset = create_dataset(config.data, options.split, config.task)
    task = create_task(config, dataset.classes)
    sizes = scan_split(dataset).image_sizes
    name = options.name or options.split
    drawings = _truth_drawings(options, task, options.output, name)
    result, scores = evaluate_results_file(task, dataset, sizes, options.detections, drawings)
    print(task.format_scores(result))
    if options.output is None:
        return
    write_evaluation(options.output / f"{name}.json", result)
    for path in (options.output / f"{name}.json", *task.write_scores(scores, dataset, options.output, name)):
        print(path)
    if drawings is not None:
        print(drawings.folder)


def _predict(options):
    tile_memory = _tile_memory(options)
    _start_backend_quietly()
    from detseg.inference.prediction import PredictionOptions
    from detseg.inference.predictor import load, predict_files

    predictor = load(options.run, options.overrides)
    threshold = predictor.task.shown_from if options.score_threshold is None else options.score_threshold
    asked = PredictionOptions(
        probabilities=options.save_probabilities,
        tta=options.tta,
        tile=options.tile,
        tile_memory=tile_memory,
        score_threshold=threshold,
        max_detections=options.max_detections,
        voc_xml=options.voc_xml,
        voc_boxes=options.voc_boxes,
    )
    predict_files(predictor, options.inputs, options.output, asked)


def _compare(options):
    from detseg.files import make_folder
    from detseg.report.compare import compare, format_markdown, format_text
    from detseg.report.curves import draw_curves
    from detseg.report.runs import read_runs

    output = options.output or Path(os.path.normpath(options.runs[0] / "..")) / "compare"
    runs = read_runs([folder for folder in options.runs if folder != output])  # runs/* names it the second time
    tables = compare(runs, options.split)
    show = format_markdown if options.markdown else format_text
    print(show(tables, [run.name for run in runs]))
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
    from benchmark.harness import benchmark, create_job, detseg_side, format_result, torch_side

    from detseg.files import written_whole

    workload = (options.size, options.batch_size, options.classes)
    sides = [detseg_side(create_job(options.measure, options.config, options.overrides, *workload))]
    if options.against is not None or options.against_set:
        overrides = [*options.overrides, *options.against_set]
        job = create_job(options.measure, options.config, overrides, *workload)
        if options.against == "torch":
            sides.append(torch_side(job, options.torch_python, options.torch_compile))
        else:
            sides.append(detseg_side(job, " ".join(["detseg", *options.against_set])))
    result = benchmark(sides, options.rounds, options.steps)
    text = json.dumps(result, indent=2)
    if options.json == "-":
        print(text)
        return
    print(format_result(result))
    if options.json is not None:
        with written_whole(options.json) as path:
            path.write_text(text + "\n", encoding="utf-8")


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
