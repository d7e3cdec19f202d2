"""Which rows go through the network together: the cut into forward passes with the least to work on."""

from collections.abc import Sequence
from typing import Any

PASS = 64
"""What a pass costs beside its cells, as so many cells."""
CELLS = 2048
"""Cells of a pass on a CPU, unless one row alone has more: larger ones are no faster there, their activations being too
large for its caches, and take memory."""


def cut(
    prompts: Sequence[Any], lengths: Sequence[int], *, rows: int, cells: float, share_prompts: bool = True
) -> list[slice]:
    """Answers of these lengths, in order, as runs of at most `rows` answers and `cells` cells.

    Of all such cuts one with the fewest cells: a pass works on as many for each answer as its longest one has, and for
    each of its different prompts (each answer, if they are not shared) on as many as the longest of them has.
    """
    least, begins = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        longest = asked = 0
        seen: set[int] = set()
        found = []
        for begin in range(end - 1, max(-1, end - 1 - rows), -1):
            longest, asked = max(longest, lengths[begin]), max(asked, len(prompts[begin]))
            seen.add(id(prompts[begin]))
            count = end - begin
            worked = count * longest + (len(seen) if share_prompts else count) * asked
            if worked > cells and count > 1:
                break
            found.append((least[begin] + worked + PASS, begin))
        total, begin = min(found)
        least.append(total)
        begins.append(begin)
    pieces, end = [], len(lengths)
    while end:
        pieces.append(slice(begins[end], end))
        end = begins[end]
    return pieces[::-1]
