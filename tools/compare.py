"""The door to `detseg compare` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
