"""The two ways elocute stops: the user's input is wrong (exit status 2), or the run cannot go on (exit status 1)."""


class InputError(Exception):
    """Something the user gave is wrong. The message is one clear line: file, line, field, what was expected."""


class RunError(Exception):
    """The run cannot go on (a dead judge, a full disk, weights that turned to NaN). The message is one clear line."""
