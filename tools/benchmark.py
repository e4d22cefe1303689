"""The door to tools/benchmark/: measures speed and memory, ours in turns with a peer. `--help` says what there is."""

import sys

from benchmark.command import main  # the folder beside this file: a package goes before a module of its name

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
