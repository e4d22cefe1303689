"""What detseg logs during a training, kept in the run folder too."""

import contextlib
import logging
import logging.handlers

logger = logging.getLogger("detseg")


@contextlib.contextmanager
def run_log():
    """Gives a function of a path; what detseg logs while inside is written to that file, with times, also what came
    before the call: warnings about the data come before there is a run folder.
    """
    held = logging.handlers.MemoryHandler(capacity=0)  # without a target it keeps all; with one it hands on at once
    level = logger.level
    logger.addHandler(held)
    logger.setLevel(logging.INFO)

    def write_to(path):
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        held.setTarget(file)
        held.flush()

    try:
        yield write_to
    finally:
        logger.setLevel(level)
        logger.removeHandler(held)
        if held.target is not None:
            held.target.close()
