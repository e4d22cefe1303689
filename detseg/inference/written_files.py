"""Which files of a folder predict wrote itself: only these does it replace."""

from pathlib import Path

from detseg.errors import UserError

_LIST = ".detseg-written"  # a line "size time-of-change name" for each file written, the last one of a name counts


class WrittenFiles:
    """The files in a folder that were written before and have not been changed since."""

    def __init__(self, folder):
        self._folder = Path(folder)
        try:
            lines = (self._folder / _LIST).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        parts = [line.split(" ", 2) for line in lines if line.count(" ") > 1]
        self._states = {name: f"{size} {time}" for size, time, name in parts}

    def check_free(self, names):
        """UserError if one of the files, names in the folder, is there and somebody else's."""
        foreign = [name for name in names if _state(self._folder / name) not in (None, self._states.get(name))]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise UserError(
                f"--output {self._folder}: {foreign[0]}{more} is there already, and not written by predict or changed "
                "since; choose another folder, or --overwrite to replace it"
            )

    def note(self, names):
        """Remembers files that have just been written; what isn't there is passed over."""
        states = [(name, _state(self._folder / name)) for name in names]
        with open(self._folder / _LIST, "a", encoding="utf-8") as file:
            file.writelines(f"{state} {name}\n" for name, state in states if state is not None)


def _state(path):
    try:
        status = path.lstat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"
