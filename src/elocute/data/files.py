"""Files that are either there whole or not at all, and JSON that holds an object."""

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from elocute.errors import InputError, RunError

_WEIGHTS = (".safetensors", ".pt", ".bin")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """RunError, naming `path`, where what is written inside cannot be (no permission, a full disk)."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def write_atomically(path: str | Path, content: bytes) -> None:
    """Put `content` at `path`, making its folder: a reader, or a run killed half-way, never sees a part of it.

    Raises RunError when it cannot be written (no permission, a full disk).
    """
    path = Path(path)
    # Beside the target, for os.replace is atomic only within one file system; a name of its own for every writer.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def cache_folder(name: str) -> Path:
    """Where what every run may use again is kept: `$ELOCUTE_CACHE/name`, or `~/.cache/elocute/name` without the
    variable."""
    root = os.environ.get("ELOCUTE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "elocute") / name


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Of all processes that would make `path`, one at a time is inside; who comes later looks whether it is there now.

    A file system that knows no locks lets all of them in.
    """
    lock = path.with_name(f".{path.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # whoever locks a new one after this finds what was made


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and its folders but what is hidden (a repository's own book-keeping)."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(name.startswith(".") for name in path.relative_to(folder).parts)]


def link_folder(source: Path, target: Path) -> None:
    """Put a folder's files into another that does not depend on it: whichever is moved or deleted, the other is whole.

    Weights, which nobody edits, are hard links and take no room; all else, and what lies on another disk, is copied.
    """
    for file in files_below(source):
        link_file(file, target / file.relative_to(source))


def link_file(file: Path, place: Path) -> None:
    """The same for one file; what lies at `place` is replaced."""
    if place.exists() and place.samefile(file):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if not (file.suffix in _WEIGHTS and _linked(file, place)):
        shutil.copyfile(file, place)


def _linked(file: Path, place: Path) -> bool:
    """Whether a hard link could be made."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        return False
    return True


def read_json(file: Path, what: str) -> dict:
    """The object in a JSON file. InputError, saying that it is not `what`, when there is none."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not {what}: {error}") from error
    if not isinstance(said, dict):
        raise InputError(f"{file}: not {what}: expected a JSON object")
    return said


def model_type(folder: Path) -> str | None:
    """What a folder in transformers' layout says it holds; None where there is no such config.json."""
    try:
        return json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_unfinished(path: Path) -> bool:
    """Whether this is what a writer of `write_atomically` leaves behind when it is killed."""
    return re.fullmatch(r"\..+\.\d+-[0-9a-f]{8}", path.name) is not None
