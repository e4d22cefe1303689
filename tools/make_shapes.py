"""Write the embedded data set of shapes: the same as `detseg make-shapes`."""

import sys

from detseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["make-shapes", *sys.argv[1:]]))
