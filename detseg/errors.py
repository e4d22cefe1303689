"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake in a config, a file or a command line.

    The message names the file, the field and the value, says what was expected and what to do. The command line prints
    it without a traceback and ends with exit code 2.
    """
