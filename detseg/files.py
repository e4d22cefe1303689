"""Writing files whole or not at all."""

import contextlib
import os
from pathlib import Path

from detseg.errors import UserError


def make_folder(path, field):
    """Creates a folder with its parents unless it exists; UserError naming `field` where that can't be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{field}: {path} can't be made a folder: {error.strerror}") from error


@contextlib.contextmanager
def written_whole(path):
    """Gives a temporary path beside `path` to write to; it takes the name `path` when the block ends without error.

    Raises UserError where the file can't be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix: encoders choose the format by it
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
