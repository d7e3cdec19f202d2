"""A file of candidates in parts, made by some processes.

Each writes its pairs, still without weights, and a record of each into a file of its own, part behind part. A worker is
told its parts on its standard input, a line each, and answers with what each gave.
"""

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import cycle
from pathlib import Path

import msgspec

from elocute.errors import RunError
from elocute.pipelines.pairs.fill import RowPairs
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.rows import BadRow, Row, RowCodec
from elocute.pipelines.pairs.rules import NoPair, Pair
from elocute.pipelines.pairs.source import Span, raw_rows, read_span

MOST_WORKERS = 4
AHEAD = 8  # parts that wait in front of each worker
FIRST_DROPPED = 3
MOST_BAD = 50
RECORD = struct.Struct("<dddd8s8sIi")
"""Of a pair: margin, gap, chosen score, rejected score (NaN: none), hash of the seed and of the pair's id or content,
hash of the row's id (0: none), number of the row, length of the pair's line."""


class Made(msgspec.Struct):
    """What rows, numbered from 0, gave: counts, reasons with how many rows and the first of them, malformed rows.
    `end`: where the rows end in the input; `lines`: where the pairs stand (file, offset, bytes), their records behind.
    `torn`: nothing, for what was guessed to be whole rows is none.
    """

    end: int = 0
    lines: tuple[str, int, int] = ("", 0, 0)
    rows: int = 0
    with_pairs: int = 0
    pairs: int = 0
    dropped: dict[str, tuple[int, list[int]]] = {}
    candidates: dict[str, int] = msgspec.field(default_factory=Counter)
    bad: list[tuple[int, str]] = []
    torn: bool = False

    def drop(self, why: str, rows: list[int], count: int = 1) -> None:
        before, first = self.dropped.get(why, (0, []))
        self.dropped[why] = (before + count, (first + rows)[:FIRST_DROPPED])

    def add(self, behind: "Made") -> None:
        """Count what the rows behind these gave, but for their pairs."""
        for why, (count, first) in behind.dropped.items():
            self.drop(why, [self.rows + row for row in first], count)
        for why, count in behind.candidates.items():
            self.candidates[why] += count
        self.bad += [(self.rows + row, problem) for row, problem in behind.bad]
        self.end = behind.end
        self.rows += behind.rows
        self.with_pairs += behind.with_pairs
        self.pairs += behind.pairs


Job = tuple[PairOptions, str, bool]
"""What PartMaker is told: options, the folder for pairs, whether the input is a JSON array."""


class PartMaker:
    """Makes the parts of an input, one by one."""

    def __init__(self, options: PairOptions, folder: str, array: bool):
        self.options = options
        self._lines = Path(folder) / f"{os.getpid()}.jsonl"
        self._codec = RowCodec(array)
        self._row_pairs = RowPairs(options)
        self._seeded = blake2b(str(options.seed).encode(), digest_size=8)

    def make(self, span: Span) -> Made:
        """What a part gives; its pairs are written. RunError when something cannot be read or written."""
        made, lines, records = self.look(span)
        try:
            with self._lines.open("ab") as file:
                made.lines = (self._lines.name, file.tell(), len(lines))
                file.write(lines + records)
        except OSError as error:
            raise RunError(f"{self.options.output}: cannot be written ({error.strerror or error})") from None
        return made

    def look(self, span: Span) -> tuple[Made, bytes, bytes]:
        """What a part gives, its pairs and their records; nothing is written."""
        made, array = Made(end=span.end), self._codec.array
        try:
            with open(self.options.input, "rb") as file:
                data = read_span(file, span, array)
        except OSError as error:
            raise RunError(f"{self.options.input}: cannot be read ({error.strerror or error})") from None
        try:
            return made, *self._add(made, self._codec.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if span.guessed:
                return Made(torn=True), b"", b""
            some = [self._add_one(made, raw) for _, raw in raw_rows(data, array)]
            return made, b"".join(lines for lines, _ in some), b"".join(records for _, records in some)

    def _add_one(self, made: Made, raw: bytes) -> tuple[bytes, bytes]:
        """A row that stands beside a malformed one, or is one."""
        try:
            return self._add(made, self._codec.decode_one(raw))
        except BadRow as error:
            made.bad.append((made.rows, str(error)))
            made.rows += 1
            return b"", b""

    def _add(self, made: Made, rows: list[Row]) -> tuple[bytes, bytes]:
        """Count what rows give; returns their pairs and the records of these."""
        found: list[Pair] = []
        filled: list[Row] = []
        rows_of: list[tuple[int, str | int | None]] = []
        for number, row in enumerate(rows, start=made.rows):
            own = row.id  # several pairs of a row get ids of their own
            try:
                pairs, pair_rows = self._row_pairs(row, made.candidates)
            except NoPair as reason:
                made.drop(str(reason), [number])
            except BadRow as error:
                made.bad.append((number, str(error)))
            else:
                found += pairs
                filled += pair_rows
                rows_of += [(number, own)] * len(pairs)
                made.with_pairs += 1
        made.rows += len(rows)
        made.pairs += len(found)
        lines = self._codec.encode(filled)
        return lines, b"".join(map(self._record, found, filled, rows_of, lines.split(b"\n")))

    def _record(self, pair: Pair, row: Row, of: tuple[int, str | int | None], line: bytes) -> bytes:
        number, own = of
        if own is None or own == "":
            draw, row_id = self._hash(line), bytes(8)
        else:
            row_id = self._hash(str(own).encode())
            draw = row_id if row.id == own else self._hash(row.id.encode())
        scores = -pair.chosen[0], -pair.rejected[0]
        return RECORD.pack(pair.margin, pair.gap, *scores, draw, row_id, number, len(line) + 1)

    def _hash(self, content: bytes) -> bytes:
        seeded = self._seeded.copy()
        seeded.update(content)
        return seeded.digest()


def worker_count(size: int) -> int:
    """For `size` bytes of input: small work is done before a process has started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if size < 8 << 20 else min(MOST_WORKERS, cores)


@contextlib.contextmanager
def part_makers(job: Job, count: int) -> Iterator[Callable[[Iterable[Span]], Iterator[Made]]]:
    """What makes parts, in order: `count` processes, for one none but this. RunError when a part cannot be made."""
    if count == 1:
        yield partial(map, PartMaker(*job).make)
        return
    processes: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            processes.append(_started())
            _send(processes[-1], job)
        yield partial(_asked, processes)
    finally:
        for process in processes:
            process.kill()  # all it was asked has been answered, or does not matter any more
        for process in processes:
            process.communicate()


def _started() -> subprocess.Popen:
    command, pipe = [sys.executable, "-P", "-m", __name__], subprocess.PIPE
    try:
        # A group of its own: Ctrl-C reaches the first process alone, which decides.
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0)
    except OSError as error:
        raise RunError(f"no worker can be started ({error.strerror or error})") from None


def _asked(processes: list[subprocess.Popen], spans: Iterable[Span]) -> Iterator[Made]:
    waiting: deque[subprocess.Popen] = deque()
    for span, process in zip(spans, cycle(processes), strict=False):
        waiting.append(process)
        _send(waiting[-1], span)
        if len(waiting) == AHEAD * len(processes):
            yield _received(waiting.popleft())
    yield from map(_received, waiting)


def _send(process: subprocess.Popen, what: object) -> None:
    try:
        process.stdin.write(msgspec.json.encode(what) + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise RunError("a worker process ended early") from None


def _received(process: subprocess.Popen) -> Made:
    line = process.stdout.readline()
    if not line:
        raise RunError("a worker process ended early")
    answer = msgspec.json.decode(line, type=Made | str)
    if isinstance(answer, str):
        raise RunError(answer)
    return answer


def serve() -> None:
    """A worker's life. It ends with its input, or when nobody listens: none outlives the process that started it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    lines, out = sys.stdin.buffer, sys.stdout.buffer
    maker = PartMaker(*msgspec.json.decode(lines.readline(), type=Job))
    for line in lines:
        try:
            answer = maker.make(msgspec.json.decode(line, type=Span))
        except RunError as error:
            answer = str(error)
        out.write(msgspec.json.encode(answer) + b"\n")
        out.flush()


if __name__ == "__main__":
    serve()
