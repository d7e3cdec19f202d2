"""What the numbers of all kept pairs come to, and which of them are worth listening to."""

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

BARS = 12
EXAMPLES = 3
Place = tuple[int, int]
"""(part, line of the part's pairs)."""


def summary(values: Iterable[np.ndarray]) -> dict[str, float] | None:
    """{mean, std (population), min, max} of a stream of columns; NaN is no number; None when there are none."""
    count, total, squares, least, largest = 0, 0.0, 0.0, math.inf, -math.inf
    for column in values:
        column = column[~np.isnan(column)]
        if len(column):
            count, total, squares = count + len(column), total + column.sum(), squares + np.square(column).sum()
            least, largest = min(least, column.min()), max(largest, column.max())
    if not count:
        return None
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    return {"mean": float(mean), "std": std, "min": float(least), "max": float(largest)}


def histogram(values: Iterable[np.ndarray], least: float, largest: float) -> list[dict[str, float]]:
    """[{from, below, pairs}]: at most BARS + 1 bins of a round width, from `least` to `largest`."""
    width = _round_up((largest - least) / BARS) if largest > least else 1.0
    first = math.floor(least / width)
    edges = np.arange(first, math.floor(largest / width) + 2) * width
    counts = sum(np.histogram(column[~np.isnan(column)], edges)[0] for column in values)
    return [
        {"from": round(float(a), 9), "below": round(float(b), 9), "pairs": int(n)}
        for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]


def examples(records: Iterable[np.ndarray], draws: Iterable[np.ndarray]) -> dict[Place, str]:
    """Where a few pairs stand, and why these: the widest, the narrowest, and some at random; none twice."""
    found: dict[str, list[tuple]] = {"widest margin": [], "narrowest margin": [], "drawn at random": []}
    for part, (some, drawn) in enumerate(zip(records, draws, strict=True)):
        known = np.flatnonzero(~np.isnan(some["margin"]))
        margins = some["margin"][known]
        for why, keys, places in (
            ("widest margin", -margins, known),
            ("narrowest margin", margins, known),
            ("drawn at random", drawn, np.arange(len(some))),
        ):
            order = _first(keys, drawn[places])
            rows = ((keys[i], drawn[places[i]], part, int(places[i])) for i in order)
            found[why] = heapq.nsmallest(3 * EXAMPLES, [*found[why], *rows])
    chosen: dict[Place, str] = {}
    for why, rows in found.items():
        new = [(part, place) for _, _, part, place in rows if (part, place) not in chosen]
        chosen |= dict.fromkeys(new[:EXAMPLES], why)
    return chosen


def _first(keys: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Where the few smallest keys are; of equals those that were drawn."""
    most = 3 * EXAMPLES
    few = np.flatnonzero(keys <= np.partition(keys, most)[most]) if len(keys) > most else np.arange(len(keys))
    return few[np.lexsort((draws[few], keys[few]))][:most]


def columns(records: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    return (some[name] for some in records)


def _round_up(width: float) -> float:
    """The least of 1, 2, 5 × 10^k that is no smaller."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def exact_mean(values: Iterable[np.ndarray]) -> float:
    """The mean of all numbers that are none of NaN, correctly rounded: in whatever order they come. 1 for none."""
    counted = 0

    def each() -> Iterator[Any]:
        nonlocal counted
        for column in values:
            some = column[~np.isnan(column)].tolist()
            counted += len(some)
            yield from some

    total = math.fsum(each())
    return total / counted if counted else 1.0
