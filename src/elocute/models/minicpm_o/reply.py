"""MiniCPM-o 2.6's answers: what the LLM writes, a cell a step, then the frames that speak it, a cell each codebook."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elocute.models.layout import Tokens
from elocute.models.minicpm_o.prompt import ControlTokens
from elocute.models.minicpm_o.spoken import spoken_ids

WRITES, SPEAKS = 0, 1


class Answer:
    """One answer as it grows, as models/layout.py has it. stage: WRITES, then SPEAKS.

    given: what it has to write, its end included, where that is forced. text_ids: what is to be spoken; units: the
    frames' codes [T][4]; broken: why this is no proper answer, or None.
    """

    def __init__(self, tokens: ControlTokens, codebooks: int, end: int, given: Sequence[int] | None = None):
        self._tokens, self._codebooks, self._end, self._given = tokens, codebooks, end, given
        self.written: list[int] = []
        self.frames: list[tuple[int, ...]] = []
        self.stage = WRITES
        self.broken: str | None = None
        self.done = False

    def forced(self) -> tuple[int | None, ...]:
        if self.stage == SPEAKS:
            return (None,) * self._codebooks
        return (None if self._given is None else self._given[len(self.written)],)

    def push(self, *cells: int) -> None:
        """Take the next step's cells."""
        if self.stage == SPEAKS:
            self.frames.append(tuple(map(int, cells)))
            self.done = self._end in cells
            return
        [token] = cells
        self.written.append(int(token))
        if token in self._tokens.terminators:
            self.stage = SPEAKS
            if not self.text_ids:
                self.broken, self.done = "nothing was written that could be spoken", True

    def close(self) -> None:
        """No more cells will come: an answer without an end is broken, and so is one without a sound."""
        if not self.done:
            self.broken, self.done = "no end: the answer was cut at the longest length allowed", True
        elif not self.broken and not self.units:
            self.broken = "empty audio"

    def tokens(self) -> Tokens:
        ids = torch.tensor([*self.written, *(code for frame in self.frames for code in frame)], dtype=torch.int64)
        text = torch.arange(len(ids)) < len(self.written)
        return Tokens(ids, text, torch.ones_like(text) if self._given is None else ~text)

    @property
    def text_ids(self) -> list[int]:
        return spoken_ids(torch.tensor(self.written, dtype=torch.int64), self._tokens).tolist()

    @property
    def units(self) -> list[tuple[int, ...]]:
        return [frame for frame in self.frames if self._end not in frame]


@dataclass(frozen=True)
class Layout:
    """What an answer's cells are, as models/layout.py has it. end: the code that ends the speech."""

    control: ControlTokens
    codebooks: int
    end: int
    writes = True

    @property
    def text_end(self) -> int:
        return self.control.tts_eos

    def cursor(self, given: torch.Tensor | None = None) -> Answer:
        """An answer that has not begun; given int64 [N]: what it has to write."""
        return Answer(self.control, self.codebooks, self.end, None if given is None else given.tolist())

    def read(self, ids: Sequence[int], given: torch.Tensor | None = None) -> Answer:
        """Replay an answer's cells."""
        answer, cells, end = self.cursor(given), list(map(int, ids)), 0
        while end < len(cells) and not answer.done:
            count = len(answer.forced())
            step, end = cells[end : end + count], end + count
            if len(step) == count:
                answer.push(*step)
        return answer
