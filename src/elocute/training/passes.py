"""Which rows go through the network together: forward passes with little padding.

What a pass works on are cells: for each answer as many as the longest one of the pass has and, prompts being run once
for all their answers in it, for each different prompt as many as the longest of these has. Long answers beside short
ones are padding, a prompt in two passes is run twice, and a pass takes its time however little is in it: rows are put
in a few orders, each is cut where the sum of all this is least, and then rows change passes as long as that pays.
Left out: packing answers into one row, where each would be compared with all of them.
"""

import math
from collections.abc import Iterable, Sequence
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


class _Work:
    """What a pass of rows costs, in cells; a row more or less is reckoned without looking at the others again."""

    def __init__(self, prompts: Sequence[Any], lengths: Sequence[int], limits: Limits, share: bool, answers: int):
        self.lengths, self.limits, self.answers = lengths, limits, answers
        self.asked = [len(prompt) for prompt in prompts]
        self.prompts = [id(prompt) if share else row for row, prompt in enumerate(prompts)]
        self.copies = 1 if share else answers

    def cost(self, rows: int, longest: int, prompts: int, asked: int) -> float:
        """Of so many rows and different prompts, the longest of each given; infinite where the pass is too large."""
        count = self.answers * rows
        cells = count * longest + self.copies * prompts * asked
        fits = rows == 1 or (count <= self.limits.rows and cells <= self.limits.cells)
        return cells + self.limits.alone if fits else math.inf


class _Pass:
    def __init__(self, work: _Work, rows: Iterable[int] = ()):
        self.work, self.rows, self.prompts = work, list[int](), set[int]()
        self.longest = self.asked = 0
        self.cost = 0.0
        for row in rows:
            self.add(row)

    def cost_with(self, row: int) -> float:
        work = self.work
        prompts = len(self.prompts) + (work.prompts[row] not in self.prompts)
        longest, asked = max(self.longest, work.lengths[row]), max(self.asked, work.asked[row])
        return work.cost(len(self.rows) + 1, longest, prompts, asked)

    def add(self, row: int) -> None:
        self.cost = self.cost_with(row)
        self.rows.append(row)
        self.prompts.add(self.work.prompts[row])
        self.longest, self.asked = max(self.longest, self.work.lengths[row]), max(self.asked, self.work.asked[row])


def cut(
    prompts: Sequence[Any], lengths: Sequence[int], limits: Limits, *, share_prompts: bool = True, answers: int = 1
) -> list[Piece]:
    """Rows, an answer to each prompt, as passes; every row's place stands once.

    lengths: of the answers; where a row has several `answers`, which stay together, of the longest.
    share_prompts: a prompt is run once for its rows of a pass; otherwise for each answer.
    """

    work = _Work(prompts, lengths, limits, share_prompts, answers)
    cuts = (_runs(order, work) for order in _orders(prompts, lengths))
    return [one.rows for one in _moved(min(cuts, key=lambda passes: sum(one.cost for one in passes)), work)]


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


def _runs(order: Sequence[int], work: _Work) -> list[_Pass]:
    """Of all cuts of the order into runs one that costs least."""
    least, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        found, run = [], _Pass(work)
        for begin in range(end - 1, -1, -1):
            run.add(order[begin])
            if run.cost == math.inf:  # a longer run is no smaller
                break
            found.append((least[begin] + run.cost, begin))
        total, begin = min(found)
        least.append(total)
        begins.append(begin)
    passes, end = [], len(order)
    while end:
        passes.append(_Pass(work, order[begins[end] : end]))
        end = begins[end]
    return passes[::-1]


def _moved(passes: list[_Pass], work: _Work) -> list[_Pass]:
    """The passes after rows went, one by one, where they save most, until none saves anything near by."""
    settled = False
    while not settled:
        settled = True
        for here in range(len(passes)):
            near = [
                there for there in range(here - _NEAR, here + _NEAR + 1) if 0 <= there < len(passes) and there != here
            ]
            for row in list(passes[here].rows):
                without = _Pass(work, (other for other in passes[here].rows if other != row))
                asked = [(passes[there].cost_with(row) - passes[there].cost, there) for there in near]
                more, there = min(asked, default=(math.inf, here))
                if more < passes[here].cost - without.cost:
                    passes[here], settled = without, False
                    passes[there].add(row)
    return [one for one in passes if one.rows]
