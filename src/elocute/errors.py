"""The two ways elocute stops: the user's input is wrong (exit status 2), or the run cannot go on (exit status 1).

Any other exception is a defect of the program and ends it, with a traceback: no row is skipped for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Something the user gave is wrong. The message is one clear line: file, line, field, what was expected."""


class RunError(Exception):
    """The run cannot go on (a dead judge, a full disk, weights that turned to NaN). The message is one clear line."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """What raises inside goes on its way with `where` noted below its traceback: which row it was is half the story."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise
