"""The door to `detseg evaluate` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
