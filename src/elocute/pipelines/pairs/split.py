"""A file of rows, JSON lines or one JSON array, in parts of whole rows: found without reading any row.

A part of JSON lines ends with a line. In an array, a row ends where as many braces have closed as have opened outside
of strings; a file of any size is looked through in windows.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from elocute.errors import InputError

WINDOW = 1 << 20
BLOCK = 64 << 10  # decoded together: small enough for a processor's cache
LONGEST_ROW = 64 << 20
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class Span(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` of the file: whole rows, with an array's commas. `cuts`: an array's blocks' ends in it."""

    index: int
    start: int
    end: int
    array: bool
    cuts: tuple[int, ...] = ()


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

    def spans(self, part_bytes: int) -> Iterator[Span]:
        """Parts of about this size, in order: always the same ones."""
        return self._array_spans(part_bytes) if self.array else self._line_spans(part_bytes)

    def row(self, span: Span, before: int, row: int) -> tuple[str, bytes]:
        """Row number `row` of a part that `before` rows are in front of: its place for messages (file:line, and in an
        array its index), and its bytes. Slow."""
        with open(self.path, "rb") as file:
            lines = _newlines(file, span.start)
            data = file.read(span.end - span.start)
        raws = raw_rows(data, self.array)
        place = 0
        for raw in raws[:row]:
            place = data.index(raw, place) + len(raw)
        line = lines + data.count(b"\n", 0, data.index(raws[row], place)) + 1
        return f"{self.path}:{line}" + (f": [{before + row}]" if self.array else ""), raws[row]

    def _line_spans(self, part_bytes: int) -> Iterator[Span]:
        index, start = 0, self.start
        with open(self.path, "rb") as file:
            while start < self.size:
                file.seek(min(start + part_bytes, self.size) - 1)
                while (tail := file.readline(WINDOW)) and not tail.endswith(b"\n"):
                    self._check_length(file.tell() - start - part_bytes)
                yield Span(index, start, file.tell(), False)
                index, start = index + 1, file.tell()

    def _array_spans(self, part_bytes: int) -> Iterator[Span]:
        index = rows = 0
        start = last = self.start
        cuts: list[int] = []
        for at, ends in self._row_ends():
            for end in ends:
                rows += 1
                if end - (cuts[-1] if cuts else start) >= BLOCK:
                    cuts.append(end)
                last = end
                if end - start >= part_bytes:
                    yield Span(index, start, end, True, tuple(cut - start for cut in cuts if cut < end))
                    index, start, cuts = index + 1, end, []
            self._check_length(at - last)
        if last > start:
            yield Span(index, start, last, True, tuple(cut - start for cut in cuts if cut < last))
        self._check_close(last, rows)

    def _row_ends(self) -> Iterator[tuple[int, list[int]]]:
        """How far the file was looked through, and where rows ended since."""
        depth, in_string, at = 0, False, self.start
        with open(self.path, "rb") as file:
            file.seek(at)
            while data := file.read(WINDOW):
                while data.endswith(b"\\") and (more := file.read(1)):
                    data += more  # no escape sequence is cut in two
                ends, depth, in_string = _ends(data, depth, in_string)
                yield at + len(data), (ends + at).tolist()
                at += len(data)

    def _check_close(self, last: int, rows: int) -> None:
        with open(self.path, "rb") as file:
            line = _newlines(file, last) + 1
            rest = file.read(4096).strip(_SPACE)
        if rest != b"]":
            after = f"after row {rows}: expected a comma and an object, or ]" if rows else "expected objects, or ]"
            raise InputError(f"{self.path}:{line}: {after}, got {_shown(rest)}")
        if not rows:
            raise InputError(f"{self.path}: expected at least one row, the array holds none")

    def _check_length(self, length: int) -> None:
        if length > LONGEST_ROW:
            most = f"{LONGEST_ROW >> 20} MiB"
            raise InputError(f"{self.path}: expected rows of at most {most}: is the end of one missing?")


def blocks(file: BinaryIO, span: Span) -> Iterator[tuple[bytes, bool]]:
    """The rows of a part, block by block; and whether the comma lacks that an array has before each block but one."""
    file.seek(span.start)
    if not span.array:
        while (left := span.end - file.tell()) > 0:
            block = file.read(min(BLOCK, left))
            yield block if block.endswith(b"\n") else block + file.readline(), False
        return
    for begin, end in pairwise((0, *span.cuts, span.end - span.start)):
        block = file.read(end - begin).strip(_SPACE)
        bare = block.removeprefix(b",").lstrip(_SPACE)
        first = span.index == 0 and begin == 0
        yield bare if not first else block, not first and len(bare) == len(block)


def raw_rows(block: bytes, array: bool) -> list[bytes]:
    """The rows of a block, each as the bytes it has there."""
    if not array:
        return [line for line in block.split(b"\n") if line.strip()]
    ends, _, _ = _ends(block, 0, False)
    return [block[a:b].lstrip(_SPACE + b",") for a, b in pairwise((0, *ends.tolist()))]


def _ends(data: bytes, depth: int, in_string: bool) -> tuple[Any, int, bool]:
    """Offsets behind the braces that close an object of an array, int64 [rows]; and depth and state behind `data`."""
    import numpy as np  # here: a worker on good JSON lines starts without it

    values = np.frombuffer(data, dtype=np.uint8)
    braces = np.flatnonzero((values - np.uint8(ord("{"))) & 0xFD == 0)  # { and }, which are two apart
    quotes = np.flatnonzero(values == ord('"'))
    escaped = [int(at) for at in quotes[values[quotes - 1] == ord("\\")] if _is_escaped(data, int(at))]
    if escaped:
        quotes = np.setdiff1d(quotes, escaped, assume_unique=True)
    braces = braces[(np.searchsorted(quotes, braces) + in_string) % 2 == 0]
    closing = values[braces] == ord("}")
    depths = depth + np.cumsum(np.where(closing, -1, 1))
    ends = braces[closing & (depths == 0)] + 1
    return ends, int(depths[-1]) if len(depths) else depth, bool((len(quotes) + in_string) % 2)


def _is_escaped(data: bytes, at: int) -> bool:
    run = re.search(rb"\\*\Z", data[max(0, at - 64) : at])[0]
    if len(run) == 64:
        run = data[:at][len(data[:at].rstrip(b"\\")) :]
    return len(run) % 2 == 1


def _newlines(file, end: int) -> int:
    """How many there are in front of offset `end`, where the file then stands."""
    return sum(file.read(min(WINDOW, end - at)).count(b"\n") for at in range(0, end, WINDOW))


def _shown(rest: bytes) -> str:
    return repr(rest[:40].decode(errors="replace")) if rest else "the end of the file"
