"""A file of rows, JSON lines or one JSON array, in spans of whole rows: found without reading any row.

In an array, a row ends where as many braces have closed as have opened outside of strings; a file of any size is looked
through in windows. Much faster is a guess: a row seems to end where what follows looks like the beginning of the first
row. From a true beginning on, only a true end makes a span valid JSON, so whoever decodes it finds a wrong guess out.
"""

import re
from collections.abc import Collection, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO

import msgspec

from elocute.errors import InputError

WINDOW = 256 << 10
PEEK = 16 << 10  # where some row ends, mostly
LONGEST_ROW = 64 << 20
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_LEAD = re.compile(rb"[ \t\r\n]*,?")
_HEAD = re.compile(rb'[ \t\r\n]*(\{[ \t\r\n]*"[^"\\]*")')  # up to a row's first name


class Span(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` of the file: whole rows; an array's with the comma that leads to them. `guessed`: whole if
    they are valid JSON."""

    start: int
    end: int
    first: bool
    guessed: bool = False


class Source:
    """The file of rows at `path`. InputError when it cannot be read or holds nothing."""

    def __init__(self, path: str):
        self.path = path
        try:
            self.size = Path(path).stat().st_size
            with open(path, "rb") as file:
                head = file.read(4096)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        body = head.removeprefix(_BOM).lstrip(_SPACE)
        if not body:
            raise InputError(f"{path}: expected at least one row, the file holds none")
        self.array = body[:1] == b"["
        self.start = len(head) - len(body) + 1 if self.array else len(_BOM) * head.startswith(_BOM)

    def spans(self, size: int, start: int = 0, rows: int = 0) -> Iterator[Span]:
        """Spans of about this size, in order; from `start` on, where a row ends and `rows` are before it."""
        start = max(start, self.start)
        ends = self._array_ends(size, start, rows) if self.array else self._line_ends(size, start)
        for a, b in pairwise(chain([start], ends)):
            yield Span(a, b, a == self.start)

    def guessed_spans(self, size: int, start: int = 0) -> Iterator[Span]:
        """An array's; `start` as above. They end before the array does, or where there is nothing to guess by."""
        start = max(start, self.start)
        for a, b in pairwise(chain([start], self._guessed_ends(size, start))):
            yield Span(a, b, a == self.start, guessed=True)

    def places(self, numbers: Collection[int]) -> dict[int, tuple[str, bytes]]:
        """Rows by number, from 0: their places for messages (file:line, in an array the index), their bytes. Slow."""
        found, before = {}, 0
        with open(self.path, "rb") as file:
            line = 1 + file.read(self.start).count(b"\n")
            for span in self.spans(WINDOW):
                data = read_span(file, span, self.array)
                rows = raw_rows(data, self.array)
                for number, (at, raw) in enumerate(rows, start=before):
                    if number in numbers:
                        here = line + data.count(b"\n", 0, at)
                        where = f"{self.path}:{here}"
                        found[number] = (f"{where}: [{number}]" if self.array else where, raw)
                line, before = line + data.count(b"\n"), before + len(rows)
                if len(found) == len(numbers):
                    break
        return found

    def _line_ends(self, size: int, at: int) -> Iterator[int]:
        with open(self.path, "rb") as file:
            while at < self.size:
                file.seek(min(at + size, self.size) - 1)
                self._check_length(len(file.readline(LONGEST_ROW + 1)))
                yield (at := file.tell())

    def _guessed_ends(self, size: int, at: int) -> Iterator[int]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if not (head := _HEAD.match(file.read(4096))):
                return
            seam = re.compile(rb"\}(?=[ \t\r\n]*,[ \t\r\n]*%b)" % re.escape(head[1]))
            while True:
                file.seek(at + size)
                near = file.read(PEEK)
                if not (found := seam.search(near) or seam.search(near + file.read(WINDOW))):
                    return
                yield (at := at + size + found.end())

    def _array_ends(self, size: int, start: int, rows: int) -> Iterator[int]:
        depth, in_string = 0, False
        cut = last = start
        with open(self.path, "rb") as file:
            file.seek(start)
            while data := file.read(WINDOW):
                while data.endswith(b"\\") and (more := file.read(1)):
                    data += more  # no escape sequence is cut in two
                at = file.tell() - len(data)
                ends, depth, in_string = _row_ends(data, depth, in_string)
                for end in ends:
                    rows, last = rows + 1, at + end
                    if last - cut >= size:
                        yield (cut := last)
                self._check_length(at + len(data) - last)
            if last > cut:
                yield last
            self._check_close(file, last, rows)

    def _check_close(self, file: BinaryIO, last: int, rows: int) -> None:
        file.seek(last)
        rest = file.read(4096).strip(_SPACE)
        if rest != b"]":
            file.seek(0)
            line = 1 + sum(file.read(min(WINDOW, last - at)).count(b"\n") for at in range(0, last, WINDOW))
            after = f"after row {rows}: expected a comma and an object, or ]" if rows else "expected objects, or ]"
            got = repr(rest[:40].decode(errors="replace")) if rest else "the end of the file"
            raise InputError(f"{self.path}:{line}: {after}, got {got}")
        if not rows:
            raise InputError(f"{self.path}: expected at least one row, the array holds none")

    def _check_length(self, length: int) -> None:
        if length > LONGEST_ROW:
            most = f"{LONGEST_ROW >> 20} MiB"
            raise InputError(f"{self.path}: expected rows of at most {most}: is the end of one missing?")


def read_span(file: BinaryIO, span: Span, array: bool) -> bytes:
    """The rows of a span: lines, or an array of its own. The comma that leads to a later span goes; where it lacks, or
    the first one has it, the array gets a comma that it must not have."""
    file.seek(span.start)
    data = file.read(span.end - span.start)
    if not array:
        return data
    lead = _LEAD.match(data)[0]
    right = lead.endswith(b",") != span.first
    return b"".join((b"[", lead.rstrip(b","), b"" if right else b",", memoryview(data)[len(lead) :], b"]"))


def raw_rows(data: bytes, array: bool) -> list[tuple[int, bytes]]:
    """Each row of what `read_span` gave: where it begins, and its bytes; with a comma if there is not just one before
    it."""
    rows, at = [], 0
    if not array:
        for line in data.split(b"\n"):
            if line.strip():
                rows.append((at, line))
            at += len(line) + 1
        return rows
    for start, end in pairwise([1, *_row_ends(data)[0]]):
        row = data[start:end].lstrip(_SPACE + b",")
        right = data[start : end - len(row)].translate(None, _SPACE) == (b"," if start > 1 else b"")
        rows.append((end - len(row), row if right else b"," + row))
    return rows


def _row_ends(data: bytes, depth: int = 0, in_string: bool = False) -> tuple[list[int], int, bool]:
    """Offsets behind the braces that close an object of an array; and depth and state behind `data`."""
    import numpy as np  # here: a worker on good JSON lines starts without it

    if b"\\" in data:
        data = data.replace(rb"\\", b"__").replace(rb"\"", b"__")
    values = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(values == ord('"'))
    braces = np.flatnonzero((values - np.uint8(ord("{"))) & 0xFD == 0)  # { and }, which are two apart
    braces = braces[(np.searchsorted(quotes, braces) + in_string) % 2 == 0]
    closing = values[braces] == ord("}")
    depths = depth + np.cumsum(np.where(closing, -1, 1))
    ends = braces[closing & (depths == 0)] + 1
    return ends.tolist(), int(depths[-1]) if len(depths) else depth, bool((len(quotes) + in_string) % 2)
