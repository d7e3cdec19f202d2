"""The second pass of `elocute pairs`, which knows all pairs: what is too many, weights, the output and its card."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.files import write_atomically
from elocute.errors import InputError, RunError
from elocute.pipelines.pairs.card import Card, card_path, example, markdown, reasons, to_json
from elocute.pipelines.pairs.fill import WEIGHT_LATER
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.parts import MOST_BAD, Made
from elocute.pipelines.pairs.source import Source

SCORES = ("margin", "gap", "chosen_score", "rejected_score")
HASHES = ("draw", "id")
DTYPE = np.dtype(
    [*((name, "<f8") for name in SCORES), *((name, "<u8") for name in HASHES), ("row", "<u4"), ("bytes", "<i4")]
)
"""Of parts.RECORD."""
BARS = 12
EXAMPLES = 3


class NoPairLeft(InputError):
    """The options leave no pair at all; says how many rows each reason took."""


def merge(
    options: PairOptions, source: Source, folder: Path, total: Made, parts: list[Made], origin: dict[str, Any]
) -> Card:
    """The output of all parts, whose pairs are in `folder`. InputError when no pair is left or an id comes twice."""
    records = _records(folder, parts)
    unusable = {why: count for why, count in sorted(total.candidates.items()) if why != "read"}
    if not len(records):
        why = reasons({why: count for why, (count, _) in total.dropped.items()})
        of = f" (of {total.candidates['read']:,} candidates, {reasons(unusable)})" if unusable else ""
        raise NoPairLeft(f"{options.input}: no pair is left of {total.rows:,} rows: {why}{of}")
    _check_ids(source, records)
    keep, too_many = kept(records, options)
    weights = _weights(np.where(keep, records["margin"], np.nan))
    try:
        _write(folder, parts, records["bytes"], keep, weights)
    except OSError as error:
        raise RunError(f"{options.output}: cannot be written ({error.strerror or error})") from None
    records, weights = records[keep], weights[keep]
    starts = np.cumsum(records["bytes"]) - records["bytes"]
    card = {
        "made_by": "elocute pairs",
        "origin": origin,
        "output": {"path": options.output, "bytes": (folder / "output").stat().st_size},
        "rows": {
            "read": total.rows,
            "with_pairs": total.with_pairs,
            "dropped": {
                why: {"rows": n, "first": [1 + row for row in first]}
                for why, (n, first) in sorted(total.dropped.items())
            },
        },
        "candidates": {"read": total.candidates["read"], "unusable": unusable},
        "pairs": {"found": total.pairs, "dropped": too_many, "written": len(records)},
        **{name: _summary(records[name]) for name in ("chosen_score", "rejected_score")},
        "score_gap": _summary(records["gap"]),
        "weight": _summary(weights),
        "histogram": _histogram(records["gap"]),
        "examples": [example(why, folder / "output", starts[place]) for place, why in _examples(records).items()],
    }
    write_atomically(card_path(options.output, "md"), markdown(card).encode())
    write_atomically(card_path(options.output, "json"), to_json(card))
    os.replace(folder / "output", options.output)
    return card


def _check_ids(source: Source, records: np.ndarray) -> None:
    """Training reads a row by its id: two rows of one id, both with pairs, are a mistake in the candidates."""
    _, place = np.unique(records["row"], return_index=True)
    ids, rows = np.unique(records["id"][place], return_counts=True)
    twice = ids[(rows > 1) & (ids > 0)]
    if not len(twice):
        return
    first: dict[int, int] = {}
    again = records[place][np.isin(records["id"][place], twice)]
    rows = [(row, first.setdefault(row_id, row)) for row, row_id in again[["row", "id"]].tolist()]
    rows = [(row, other) for row, other in rows if row != other][:MOST_BAD]
    places = source.places({row for twins in rows for row in twins})
    said = [(*places[row], places[other][0]) for row, other in rows]
    raise InputError(
        "\n".join(f"{at}: id: {json.loads(raw)['id']!r} is already the id at {to}" for at, raw, to in said)
    )


def _records(folder: Path, parts: list[Made]) -> np.ndarray:
    """Of all pairs, their rows numbered through the input."""
    records = np.empty(sum(part.pairs for part in parts), dtype=DTYPE)
    pairs = rows = 0
    for part in parts:
        name, offset, size = part.lines
        here = records[pairs : pairs + part.pairs]
        here[:] = np.fromfile(folder / name, dtype=DTYPE, count=part.pairs, offset=offset + size)
        here["row"] += rows
        pairs, rows = pairs + part.pairs, rows + part.rows
    return records


def _write(folder: Path, parts: list[Made], sizes: np.ndarray, keep: np.ndarray, weights: np.ndarray) -> None:
    """The kept lines of all parts, with their weights, into one file."""
    width, before = len(bytes(WEIGHT_LATER)), 0
    room, form = np.arange(-width, 0) - len(b"}\n"), b"%%-%d.6g" % width
    with open(folder / "output", "wb") as output:
        for part in parts:
            name, offset, size = part.lines
            lines = np.fromfile(folder / name, dtype=np.uint8, count=size, offset=offset)
            here = slice(before, before := before + part.pairs)
            digits = form * part.pairs % tuple(weights[here].tolist())
            lines[np.cumsum(sizes[here])[:, None] + room] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, width)
            output.write(lines if keep[here].all() else lines[np.repeat(keep[here], sizes[here])])


def kept(records: np.ndarray, options: PairOptions) -> tuple[np.ndarray, dict[str, int]]:
    """Which pairs are kept, bool [pairs]: the widest `top_k`, and `max_samples` that the seed draws of these; and how
    many are dropped for either. The order of the file plays no part in it."""
    if options.top_k is not None and np.isnan(records["margin"]).any():
        raise InputError("--top-k: expected a chosen_score in every row: without, targets have no gap")
    keep, dropped = np.ones(len(records), dtype=bool), {}
    for why, limit, widest in (
        ("beyond --top-k", options.top_k, ("margin", "gap")),
        ("not drawn for --max-samples", options.max_samples, ()),
    ):
        places = np.flatnonzero(keep)
        if limit is not None and limit < len(places):
            some = records[places]
            first = _first(limit, *(-some[name] for name in widest), some["draw"])
            keep[np.delete(places, first)] = False
            dropped[why] = len(places) - limit
    return keep, dropped


def _weights(margins: np.ndarray) -> np.ndarray:
    """Each margin's share of the mean margin, so that weights are 1 on average; 1 where nothing was measured."""
    known = margins[~np.isnan(margins)]
    mean = math.fsum(known) / len(known) if len(known) else 1.0  # exact: the same in whatever order
    return np.nan_to_num(margins / mean, nan=1.0)


def _summary(values: np.ndarray) -> dict[str, float] | None:
    """{mean, std (population), min, max}; NaN is no number; None when there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    return {name: float(getattr(known, name)()) for name in ("mean", "std", "min", "max")}


def _histogram(values: np.ndarray) -> list[dict[str, float]]:
    """[{from, below, pairs}]: at most BARS + 1 bins of a round width; NaN is no number."""
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    least, largest = known.min(), known.max()
    width = _round_up((largest - least) / BARS) if largest > least else 1.0
    edges = np.arange(math.floor(least / width), math.floor(largest / width) + 2) * width
    return [
        {"from": round(float(a), 9), "below": round(float(b), 9), "pairs": int(n)}
        for a, b, n in zip(edges, edges[1:], np.histogram(known, edges)[0], strict=False)
    ]


def _examples(records: np.ndarray) -> dict[int, str]:
    """Where a few pairs stand, and why these: the widest, the narrowest, and some at random; none twice."""
    margins, draws = records["margin"], records["draw"]
    known = np.flatnonzero(~np.isnan(margins))
    found: dict[int, str] = {}
    for why, places in (
        ("widest margin", known[_first(3 * EXAMPLES, -margins[known], draws[known])]),
        ("narrowest margin", known[_first(3 * EXAMPLES, margins[known], draws[known])]),
        ("drawn at random", _first(3 * EXAMPLES, draws)),
    ):
        new = [place for place in places.tolist() if place not in found]
        found |= dict.fromkeys(new[:EXAMPLES], why)
    return found


def _first(n: int, *columns: np.ndarray) -> np.ndarray:
    """Where the n smallest stand, in order: by the first column, then the second …; of equals the first."""
    few = np.arange(len(columns[0]))
    if n < len(few):
        few = np.flatnonzero(columns[0] <= np.partition(columns[0], n - 1)[n - 1])
    return few[np.lexsort([column[few] for column in reversed(columns)])][:n]


def _round_up(width: float) -> float:
    """The least of 1, 2, 5 × 10^k that is no smaller."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
