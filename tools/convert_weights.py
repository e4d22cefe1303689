"""Make a run of a published model's weights: the same as `detseg convert-weights`."""

import sys

from detseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert-weights", *sys.argv[1:]]))
