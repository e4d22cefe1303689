"""Writing files whole or not at all."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def written_whole(path):
    """Gives a temporary path beside `path` to write to; it takes the name `path` when the block ends without error."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix: encoders choose the format by it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
