"""A file of JSON lines that grows while long work goes on and survives a kill at any moment.

Beside the file `F` stands `F.origin.json`: what it is made of; a file goes on only from the same origin. A line is
final once its newline is written. What was half written is cut off and made again, so that a file that was killed and
resumed holds what it would have held.
"""

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from elocute.data.files import write_atomically, writing
from elocute.errors import InputError


class Journal:
    """The lines at `path`; `origin`, a JSON object, says by which command and from what they are made."""

    def __init__(self, path: Path, origin: dict[str, Any]):
        self.path, self.origin = path, origin
        self.origin_file = path.with_name(f"{path.name}.origin.json")

    def check(self, *, resume: bool) -> bool:
        """Whether there is something to go on with. InputError unless the place is free or `origin` continues it."""
        there = self.origin_file.exists() or (self.path.exists() and self.path.stat().st_size > 0)
        if there and not resume:
            raise InputError(f"{self.path}: there already; --resume goes on with it, or choose another place")
        if there and not self.origin_file.exists():
            raise InputError(f"{self.path}: not made by {self.origin['made_by']}; choose another place")
        if there:
            self._check_same()
        return there

    @contextlib.contextmanager
    def writing(
        self, seen: Callable[[dict[str, Any]], None], *, whole: int = 1, end: int | None = None
    ) -> Iterator["Writer"]:
        """Open for appending, behind the lines that are there: `seen` gets each of them, once, in order.

        whole: lines that are made together; a part of such a batch is made again, for what its members have in common
        (padding) may show in the last digit. `end`: the number of lines when all is done, where the last batch may be
        smaller.
        """
        with alone(self.path, str(self.path)) as file:
            if not self.origin_file.exists():
                write_atomically(self.origin_file, (json.dumps(self.origin, indent=2) + "\n").encode())
            lines, size = 0, 0
            for batch, bytes_ in _batches(self.path, file, whole, end):
                for row in batch:
                    seen(row)
                lines, size = lines + len(batch), size + bytes_
            file.truncate(size)
            file.seek(size)
            yield Writer(self.path, file, lines)

    def _check_same(self) -> None:
        try:
            old = json.loads(self.origin_file.read_text())
        except ValueError as error:
            raise InputError(f"{self.origin_file}: not JSON ({error})") from None
        now = json.loads(json.dumps(self.origin))
        for key in sorted(now.keys() | old.keys()):
            if old.get(key) != now.get(key):
                raise InputError(
                    f"{self.origin_file}: {key}: the work was started with {old.get(key)!r}, now it is {now.get(key)!r}"
                )


class Writer:
    """Appends to a journal. `lines`: how many it holds."""

    def __init__(self, path: Path, file, lines: int):
        self.path, self._file, self.lines = path, file, lines

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows, a line each. RunError when that cannot be done (a full disk)."""
        lines = [json.dumps(row) + "\n" for row in rows]
        content = memoryview("".join(lines).encode())
        with writing(self.path):
            while content:
                content = content[self._file.write(content) :]
        self.lines += len(lines)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[BinaryIO]:
    """The file, made if need be, unbuffered, for this process alone: a lock that the system ends even after a kill.

    Raises RunError when it cannot be written, InputError when another process is writing `what`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+b", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{what}: another process is writing it") from None
        yield file


def _batches(path: Path, file, whole: int, end: int | None) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The batches of whole lines at the file's beginning, each with its size in bytes."""
    batch, size, torn = [], 0, 0
    with open(file.fileno(), "rb", closefd=False) as reader:  # buffered: a line at a time costs no system call
        for number, line in enumerate(reader, start=1):
            if torn:
                raise InputError(f"{path}:{torn}: not a line that was written here; delete it and what follows")
            if (row := _row(line)) is None:
                torn = number  # as a kill leaves it, if it is the last one
                continue
            batch.append(row)
            size += len(line)
            if len(batch) == whole or number == end:
                yield batch, size
                batch, size = [], 0


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None
