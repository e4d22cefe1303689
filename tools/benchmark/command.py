"""The command line of the benchmarks: `python tools/benchmark.py train-step|inference|loader|evaluation ...`."""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

from benchmark.harness import MEASURES, benchmark, create_job, detseg_side, format_result, torch_side
from detseg.errors import UserError
from detseg.files import written_whole

OTHERS = {
    "loader": "detection_loader",
    "evaluation": "coco_evaluation",
}  # files beside this one, with their own options


def main(arguments):
    """Runs a command line and returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(arguments):
    """Measures what the command line `arguments`, a list of str, asks for, and prints it. Raises UserError."""
    if arguments and arguments[0] in OTHERS:
        importlib.import_module(f"benchmark.{OTHERS[arguments[0]]}").main(arguments[1:])
        return
    options = create_parser().parse_args(arguments)
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


def create_parser():
    parser = argparse.ArgumentParser(
        prog="benchmark",
        description="Measures speed and memory of a config, alone or in turns with a peer.",
        epilog="`loader` (our loader beside torch's) and `evaluation` (COCO's figures beside pycocotools) in place of "
        "MEASURE have options of their own: add --help.",
    )
    parser.add_argument("measure", choices=MEASURES, metavar="MEASURE", help=" or ".join(MEASURES))
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="its data set is not read")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="change a key of the config"
    )
    parser.add_argument("--against", choices=("torch", "detseg"), help="the peer; default: none")
    parser.add_argument(
        "--against-set", action="append", default=[], metavar="A.B=C", help="change a key of the peer's config"
    )
    parser.add_argument("--torch-python", type=Path, metavar="PATH", help="Python of an environment with torch")
    parser.add_argument("--torch-compile", action="store_true", help="the peer goes through torch.compile")
    parser.add_argument("--size", nargs=2, default=(256, 256), type=_positive, metavar=("H", "W"), help="256 256")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="default: the config's; inference: 1")
    parser.add_argument("--classes", default=21, type=_positive, metavar="N", help="default 21")
    parser.add_argument("--rounds", default=9, type=_positive, metavar="N", help="of each side, default 9")
    parser.add_argument("--steps", type=_positive, metavar="N", help="in a round; default: about 4 seconds")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE: to stdout")
    return parser


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
