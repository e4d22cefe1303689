"""The door to `detseg proposals` for those who run it from a checkout."""

import sys

from detseg.cli import main

sys.exit(main(["proposals", *sys.argv[1:]]))
