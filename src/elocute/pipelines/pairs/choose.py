"""Which pairs of all parts are kept: the widest, some drawn by a seed. The order of the file plays no part in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elocute.pipelines.pairs.fill import WEIGHT_LATER
from elocute.pipelines.pairs.parts import RECORD

DTYPE = np.dtype(
    [
        ("margin", "<f8"),
        ("gap", "<f8"),
        ("chosen_score", "<f8"),
        ("rejected_score", "<f8"),
        ("identity", "<u8"),
        ("named", "?"),
        ("row", "<u4"),
        ("bytes", "<u4"),
    ]
)
assert DTYPE.itemsize == RECORD.size
Keys = tuple[np.ndarray, ...]
"""Columns [pairs]; earlier ones count first, smaller values are kept."""


def read_records(folder: Path, parts: int) -> Iterator[np.ndarray]:
    """Each part's records, one a pair."""
    for index in range(parts):
        yield np.fromfile(folder / f"{index:06d}.records", dtype=DTYPE)


def widest(records: np.ndarray, seed: int) -> Keys:
    """The wider the margin, then the gap, the sooner kept; equals as the seed draws."""
    return -records["margin"], -records["gap"], draws(records, seed)


def drawn(records: np.ndarray, seed: int) -> Keys:
    return (draws(records, seed),)


def weighted(lines: np.ndarray, records: np.ndarray, kept: np.ndarray | None, mean_margin: float) -> np.ndarray:
    """A part's kept lines (all: None), bytes uint8 [all lines], with each weight in the room that is left for it.

    A weight is the margin's share of the mean margin, so the mean of all is 1; it is 1 where nothing was measured.
    """
    width = len(bytes(WEIGHT_LATER))
    margins, places = np.unique(records["margin"], return_inverse=True)
    weights = np.nan_to_num(margins / mean_margin, nan=1.0)
    digits = b"".join([b"%-*.6g" % (width, weight) for weight in weights.tolist()])
    ends = np.cumsum(records["bytes"], dtype=np.int64) - len(b"}\n")
    lines[ends[:, None] + np.arange(-width, 0)] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, width)[places]
    return lines if kept is None else lines[np.repeat(kept, records["bytes"])]


def draws(records: np.ndarray, seed: int) -> np.ndarray:
    """A number for each pair, uint64 [pairs], by its row's id (or content) and the seed alone: splitmix64."""
    mixed = records["identity"] ^ _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix(mixed)


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Best:
    """The `n` smallest of a stream of keys. Look at all, then ask for each again, in the same order.

    Memory: some n keys, however long the stream.
    """

    def __init__(self, n: int):
        self.n = n
        self._pending: list[Keys] = []
        self._count = 0
        self._bound: list[Any] | None = None
        self._equals = 0

    def look(self, keys: Keys) -> None:
        self._pending.append(keys)
        self._count += len(keys[0])
        if self._count > 2 * self.n + 100_000:
            self._compress()

    def close(self) -> None:
        """All was seen."""
        self._compress()
        columns = self._pending[0] if self._pending else ()
        if self._count == self.n:
            self._bound = [column[-1] for column in columns]
            self._equals = int(_compared(columns, self._bound)[1].sum())

    def keeps(self, keys: Keys) -> np.ndarray:
        """bool [pairs]. Of pairs that equal the last one in everything, the first are kept."""
        if self._bound is None:
            return np.ones(len(keys[0]), dtype=bool)
        less, equal = _compared(keys, self._bound)
        places = np.flatnonzero(equal)[: self._equals]
        self._equals -= len(places)
        less[places] = True
        return less

    def _compress(self) -> None:
        if not self._pending:
            return
        columns = [np.concatenate(parts) for parts in zip(*self._pending, strict=True)]
        order = np.lexsort(columns[::-1])[: self.n]
        self._pending = [tuple(column[order] for column in columns)]
        self._count = len(order)


def _compared(keys: Keys, bound: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    less, equal = np.zeros(len(keys[0]), dtype=bool), np.ones(len(keys[0]), dtype=bool)
    for column, value in zip(keys, bound, strict=True):
        less |= equal & (column < value)
        equal &= column == value
    return less, equal
