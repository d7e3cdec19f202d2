"""Which rows go through the network together: forward passes with little padding.

What a pass works on are cells: for each answer as many as the longest one of the pass has and, prompts being run once
for all their answers in it, for each different prompt as many as the longest of these has. Long answers beside short
ones are padding, a prompt in two passes is run twice, and a pass takes its time however little is in it: rows are put
in a few orders, each is cut where the sum of all this is least, and then rows change passes as long as that pays.
Left out: packing answers into one row, where each would be compared with all of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Of a pass: rows and cells at most, unless one row alone has more; alone: its cost beside them, in cells."""

    rows: int
    cells: float
    alone: float

    @classmethod
    def of(cls, device: str, rows: int) -> "Limits":
        """On a CPU a pass of more cells is no faster, its activations being too large for the caches, and takes memory.

        There a pass is as dear as 70 cells of the starter's small networks, and as 2 of one of 0.5 B.
        """
        return cls(rows, 2048, 16) if device == "cpu" else cls(rows, math.inf, 64)


_NEAR = 16
"""How far off a pass may be to which a row goes: they are in order, and so the work grows with the rows alone."""

Piece = Sequence[int]
"""The places of a pass's rows."""


def cut(
    prompts: Sequence[Any], lengths: Sequence[int], limits: Limits, *, share_prompts: bool = True, answers: int = 1
) -> list[Piece]:
    """Rows, an answer to each prompt, as passes; every row's place stands once.

    lengths: of the answers; where a row has several `answers`, which stay together, of the longest.
    share_prompts: a prompt is run once for its rows of a pass; otherwise for each answer.
    """

    def cost(piece: Piece) -> float:
        """In cells; infinite where the pass is too large."""
        if not piece:
            return 0
        count, longest = answers * len(piece), max(lengths[row] for row in piece)
        asked = len({id(prompts[row]) for row in piece}) if share_prompts else count
        cells = count * longest + asked * max(len(prompts[row]) for row in piece)
        fits = len(piece) == 1 or (count <= limits.rows and cells <= limits.cells)
        return cells + limits.alone if fits else math.inf

    cuts = (_runs(order, cost) for order in _orders(prompts, lengths))
    return _moved(min(cuts, key=lambda pieces: sum(map(cost, pieces))), cost)


def _orders(prompts: Sequence[Any], lengths: Sequence[int]) -> list[list[int]]:
    """All rows by their length; and prompt by prompt, those with long answers, or that are long, last."""
    rows = range(len(prompts))
    first: dict[int, int] = {}
    longest: dict[int, int] = {}
    for row in rows:
        prompt = id(prompts[row])
        first.setdefault(prompt, row)
        longest[prompt] = max(lengths[row], longest.get(prompt, 0))
    keys = (
        lambda row: (lengths[row], first[id(prompts[row])]),
        lambda row: (longest[id(prompts[row])], first[id(prompts[row])], lengths[row]),
        lambda row: (len(prompts[row]), first[id(prompts[row])], lengths[row]),
    )
    return [sorted(rows, key=key) for key in keys]


def _runs(order: Piece, cost: Callable[[Piece], float]) -> list[Piece]:
    """Of all cuts of the order into runs one that costs least."""
    least, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        found = []
        for begin in range(end - 1, -1, -1):
            one = cost(order[begin:end])
            if one == math.inf:  # a longer run is no smaller
                break
            found.append((least[begin] + one, begin))
        total, begin = min(found)
        least.append(total)
        begins.append(begin)
    pieces, end = [], len(order)
    while end:
        pieces.append(order[begins[end] : end])
        end = begins[end]
    return pieces[::-1]


def _moved(pieces: list[Piece], cost: Callable[[Piece], float]) -> list[Piece]:
    """The passes after rows went, one by one, where they save most, until none saves anything near by."""
    costs, settled = [cost(piece) for piece in pieces], False
    while not settled:
        settled = True
        for here in range(len(pieces)):
            for row in list(pieces[here]):
                without = [other for other in pieces[here] if other != row]
                saved = costs[here] - cost(without)
                near = [there for there in range(max(0, here - _NEAR), here + _NEAR + 1) if there != here]
                asked = [(cost([*pieces[there], row]) - costs[there], there) for there in near if there < len(pieces)]
                more, there = min(asked, default=(math.inf, here))
                if more < saved:
                    pieces[here], pieces[there] = without, [*pieces[there], row]
                    costs[here], costs[there], settled = cost(without), cost(pieces[there]), False
    return [piece for piece in pieces if piece]
