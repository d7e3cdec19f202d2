"""Files that are either there whole or not at all."""

import os
import re
import secrets
from pathlib import Path

from elocute.errors import RunError


def write_atomically(path: str | Path, content: bytes) -> None:
    """Put `content` at `path`, making its folder: a reader, or a run killed half-way, never sees a part of it.

    Raises RunError when it cannot be written (no permission, a full disk).
    """
    path = Path(path)
    # Beside the target, for os.replace is atomic only within one file system; a name of its own for every writer.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None


def is_unfinished(path: Path) -> bool:
    """Whether this is what a writer of `write_atomically` leaves behind when it is killed."""
    return re.fullmatch(r"\..+\.\d+-[0-9a-f]{8}", path.name) is not None
