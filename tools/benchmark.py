"""The door to `detseg benchmark` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["benchmark", *sys.argv[1:]]))
