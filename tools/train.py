"""The door to `detseg train` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
