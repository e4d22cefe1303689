"""The door to `detseg predict` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
