"""The door to `detseg proposals` for those who run it from a checkout."""

import sys

from detseg.cli import main

if __name__ == "__main__":  # its worker processes import this file
    sys.exit(main(["proposals", *sys.argv[1:]]))
