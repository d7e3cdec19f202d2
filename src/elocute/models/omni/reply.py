"""An answer of Qwen2.5-Omni: what the thinker writes, one cell a step, then the talker's codes, one cell a step.

All of it is sampled. The text ends with a terminator, which is part of it, the speech with one of two codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elocute.models.layout import Tokens

WRITES, SPEAKS = 0, 1


class Reply:
    """One answer as it grows, as models/layout.py has it. stage: WRITES, then SPEAKS.

    written: the text's ids with their terminator; text_ids: without it; units: the codes that are spoken; broken: why
    this is no proper answer, or None.
    """

    def __init__(self, layout: "Layout"):
        self._layout = layout
        self.written: list[int] = []
        self.codes: list[int] = []
        self.stage = WRITES
        self.broken: str | None = None
        self.done = False

    def forced(self) -> tuple[None]:
        return (None,)

    def push(self, cell: int) -> None:
        """Take the next cell."""
        if self.stage == SPEAKS:
            self.codes.append(int(cell))
            if cell in self._layout.code_ends:
                self.done = True
            elif cell >= self._layout.n_units:
                self._break(f"code {len(self.codes) - 1} is {int(cell)}, no code of speech")
            return
        self.written.append(int(cell))
        if cell in self._layout.text_ends:
            self.stage = SPEAKS
            if not self.text_ids:
                self._break("nothing was written that could be spoken")

    def close(self) -> None:
        """No more cells will come: an answer without an end is broken, and so is one without a sound."""
        if not self.done:
            self._break("no end: the answer was cut at the longest length allowed")
        elif not self.broken and not self.units:
            self.broken = "empty audio"

    def tokens(self) -> Tokens:
        ids = torch.tensor([*self.written, *self.codes], dtype=torch.int64)
        return Tokens(ids, torch.arange(len(ids)) < len(self.written), torch.ones(len(ids), dtype=torch.bool))

    @property
    def text_ids(self) -> list[int]:
        return self.written[: -1 if self.stage == SPEAKS else None]

    @property
    def units(self) -> list[int]:
        return [code for code in self.codes if code < self._layout.n_units]

    def _break(self, reason: str) -> None:
        self.broken, self.done = reason, True


@dataclass(frozen=True)
class Layout:
    """What an answer's cells are. text_ends, code_ends: ids that end each; codes of speech are 0 … n_units − 1."""

    text_ends: tuple[int, ...]
    code_ends: tuple[int, ...]
    n_units: int
    writes = True

    @property
    def text_end(self) -> int:
        return self.text_ends[0]

    def cursor(self) -> Reply:
        """An answer that has not begun."""
        return Reply(self)

    def read(self, ids: Sequence[int]) -> Reply:
        """Replay an answer's cells."""
        reply = self.cursor()
        for cell in ids:
            if reply.done:
                break
            reply.push(int(cell))
        return reply
