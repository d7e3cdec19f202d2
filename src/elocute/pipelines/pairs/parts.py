"""One part of a file of candidates → its pairs, in files of their own: what is done of a part is done for good."""

import math
import os
import struct
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import msgspec

from elocute.pipelines.pairs.fill import RowPairs
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.rows import BadRow, Row, RowCodec
from elocute.pipelines.pairs.rules import NoPair, Pair
from elocute.pipelines.pairs.split import Span, blocks, raw_rows

MOST_BAD = 50
FIRST_DROPPED = 3
RECORD = struct.Struct("<dddd8s?II")
"""Of a pair: margin, gap, chosen score, rejected score (NaN: none), hash of the row's id or content, whether that is an
id, number of the row in its part, bytes of the pair's line."""


class Made(msgspec.Struct):
    """What a part gave. Its rows are numbered from 0. `dropped`: reason → how many rows, and the first of them."""

    rows: int = 0
    with_pairs: int = 0
    pairs: int = 0
    dropped: dict[str, tuple[int, list[int]]] = {}
    candidates: dict[str, int] = {}
    bad: list[tuple[int, str]] = []


class PartMaker:
    """Makes the parts of one file, each in `folder`: its lines, a record for each, and last, for it says that the part
    is done, what it gave."""

    def __init__(self, options: PairOptions, folder: Path, array: bool):
        self.options, self.folder = options, Path(folder)
        self._codec = RowCodec(array)
        self._row_pairs = RowPairs(options)

    def make(self, span: Span) -> Made:
        """Make a part, unless it is there."""
        done = self.folder / f"{span.index:06d}.json"
        if done.exists():
            return msgspec.json.decode(done.read_bytes(), type=Made)
        part = self._part(span)
        made = part.made()
        for suffix, content in (
            ("jsonl", part.lines),
            ("records", part.records),
            ("json", [msgspec.json.encode(made)]),
        ):
            unfinished = self.folder / f"{span.index:06d}.{os.getpid()}"
            with open(unfinished, "wb") as file:
                file.writelines(content)
            unfinished.replace(self.folder / f"{span.index:06d}.{suffix}")
        return made

    def look(self, span: Span) -> Made:
        """What a part gives; nothing is written."""
        return self._part(span).made()

    def _part(self, span: Span) -> "_Part":
        part = _Part(self._codec, self._row_pairs)
        with open(self.options.input, "rb") as file:
            for block, no_comma in blocks(file, span):
                if no_comma:
                    part.bad.append((part.rows, "row: expected a comma before it"))
                part.add(block)
        return part


def _record(pair: Pair, row: Row, number: int, line: bytes) -> bytes:
    named = row.id is not None and row.id != ""
    identity = blake2b(str(row.id).encode() if named else line, digest_size=8).digest()
    chosen = math.nan if pair.chosen_score is None else pair.chosen_score
    return RECORD.pack(pair.margin, pair.gap, chosen, pair.rejected_score, identity, named, number, len(line) + 1)


class _Part:
    """A part being made, block by block."""

    def __init__(self, codec: RowCodec, row_pairs: RowPairs):
        self.codec, self.row_pairs = codec, row_pairs
        self.rows = self.with_pairs = 0
        self.dropped: dict[str, tuple[int, list[int]]] = {}
        self.candidates: Counter[str] = Counter()
        self.bad: list[tuple[int, str]] = []
        self.lines: list[bytes] = []
        self.records: list[bytes] = []

    def add(self, block: bytes) -> None:
        """All rows of a block: pairs, drops and what is malformed."""
        try:
            rows = self.codec.decode(block)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._add_one_by_one(block)
        else:
            self._add_rows(rows)

    def _add_rows(self, rows: list[Row]) -> None:
        found: list[Pair] = []
        filled: list[Row] = []
        numbers: list[int] = []
        with_pairs = 0
        for number, row in enumerate(rows, start=self.rows):
            try:
                pairs, pair_rows = self.row_pairs(row, self.candidates)
            except NoPair as reason:
                count, first = self.dropped.get(str(reason), (0, []))
                self.dropped[str(reason)] = (count + 1, first + [number] if count < FIRST_DROPPED else first)
            except BadRow as error:
                self.bad.append((number, str(error)))
            else:
                found += pairs
                filled += pair_rows
                numbers += [number] * len(pairs)
                with_pairs += 1
        self.rows += len(rows)
        self.with_pairs += with_pairs
        lines = self.codec.encode(filled)
        self.lines.append(lines)
        self.records += map(_record, found, filled, numbers, lines.split(b"\n"))

    def made(self) -> Made:
        return Made(
            self.rows, self.with_pairs, len(self.records), self.dropped, dict(self.candidates), self.bad[:MOST_BAD]
        )

    def _add_one_by_one(self, block: bytes) -> None:
        """A block with a malformed row: find out which."""
        before, bad = self.rows, len(self.bad)
        for raw in raw_rows(block, self.codec.array):
            if problem := self.codec.problem(raw):
                self.bad.append((self.rows, problem))
                self.rows += 1
            else:
                self._add_rows(self.codec.decode(raw))
        if len(self.bad) == bad:
            rows = self.rows - before
            self.bad.append((before, f"row: expected JSON: of {rows} rows from here on, a comma is wrong"))
