"""The layout of an answer: which token stands where, text or speech, sampled (an action) or forced.

One vocabulary holds text and speech. An answer interleaves them by a ratio list as VITA-Audio does:
`[[1, 10], [4, 10]]` is one text token, ten speech units, four text tokens, ten units, and the last pair repeats. Once
the text has ended, speech flows until the answer's end:

    t t [B] s s s s [E] t t_end [B] s s s … s end

`[B]`, `[E]` are optional boundary markers. They follow from what came before, so they are *forced*: inputs, never
actions, and they carry no loss. Everything else is sampled over the whole vocabulary, as it was in the published
models; an answer that puts a token of the wrong kind somewhere is broken, and says where.

Text class: text tokens, the end of the text and the end of the answer. Speech class: units and boundary markers
(WavAlign's definition). A textless answer (`speech-only`, no `text_end`) is of speech class throughout, its end too; it
need not have an end: an open-ended one may be cut anywhere and is whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from elocute.errors import InputError

Ratio = list[tuple[int, int]] | Literal["text-first", "speech-only"]


@dataclass(frozen=True)
class Tokens:
    """A run of tokens. ids int64 [T]; text bool [T] (else speech); action bool [T] (sampled, else forced)."""

    ids: torch.Tensor
    text: torch.Tensor
    action: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """Where text and speech stand in an answer, and the ids that mark it. Units are first_unit + 0 … n_units−1.

    text_end None: textless. answer_end None: nothing ends an answer but the longest length allowed; open_ended: that
    length may also end an answer which has no end yet.
    """

    ratio: Ratio
    first_unit: int
    n_units: int
    text_end: int | None
    answer_end: int | None
    speech_begin: int | None = None
    speech_end: int | None = None
    open_ended: bool = False

    def __post_init__(self):
        if self.text_end is None and self.ratio != "speech-only":
            raise ValueError(f"ratio {self.ratio} needs text_end: only speech-only answers are textless")
        if self.answer_end is None and not self.open_ended:
            raise ValueError("an answer without answer_end is open-ended")

    @property
    def writes(self) -> bool:
        """Do its answers hold text?"""
        return self.ratio != "speech-only"

    @property
    def marks(self) -> list[int]:
        """The tokens behind which something else may stand than before them, or nothing at all."""
        found = (self.text_end, self.answer_end, self.speech_begin, self.speech_end)
        return [token for token in found if token is not None]

    def is_unit(self, token: int) -> bool:
        return self.first_unit <= token < self.first_unit + self.n_units

    def chunk(self, index: int) -> tuple[float, float]:
        """(text tokens, speech units) of chunk `index`."""
        if self.ratio == "text-first":
            return math.inf, math.inf
        if self.ratio == "speech-only":
            return 0, math.inf
        return self.ratio[min(index, len(self.ratio) - 1)]

    def cursor(self) -> "Cursor":
        """An answer that has not begun."""
        return Cursor(self)

    def assemble(self, text_ids: Sequence[int], units: Sequence[int], *, cut: bool = False) -> Tokens:
        """Lay out a known answer. text_ids without its end marker; units counted from 0; cut: it did not end there.

        InputError: the speech is too short to reach the end of the text; or it was cut, and the layout asks for an end.
        """
        if cut and not self.open_ended:
            raise InputError("the answer was cut before its end; this model's answers must end")
        text = iter([*text_ids, self.text_end])
        end = [] if cut or self.answer_end is None else [self.answer_end]
        speech = iter([*(self.first_unit + int(unit) for unit in units), *end])
        cursor = self.cursor()
        while not cursor.done:
            [forced] = cursor.forced()
            token = forced if forced is not None else next(text if cursor.in_text else speech, None)
            if token is None:  # all has been said and nothing marks the end
                break
            cursor.push(token)
        if cursor.broken:
            raise InputError(
                f"the answer's speech ({len(units)} units) ends before its text ({len(text_ids)} tokens) "
                f"at ratio {self.ratio}"
            )
        return cursor.tokens()

    def read(self, ids: Sequence[int]) -> "Cursor":
        """Replay an answer's tokens; the cursor says what they are and whether they are a proper answer."""
        cursor = self.cursor()
        for token in ids:
            if cursor.done:
                break
            cursor.push(int(token))
        return cursor


class Cursor:
    """One answer as it grows: what may come next, and what has come so far."""

    stage = 0

    def __init__(self, layout: Layout):
        self.layout = layout
        self.ids: list[int] = []
        self.text: list[bool] = []
        self.action: list[bool] = []
        self.text_ids: list[int] = []
        self.units: list[int] = []
        self.broken: str | None = None
        self.done = False
        self._chunk = 0
        self._left: float = layout.chunk(0)[0]
        self._text_ended = layout.ratio == "speech-only"
        self.in_text = not self._text_ended
        self._marker = layout.speech_begin if self._text_ended else None

    def forced(self) -> tuple[int | None]:
        """The cells of the next step, a stream each: the token that must stand there, or None where it is sampled."""
        return (self._marker,)

    def sampled(self) -> float:
        """How many tokens are sampled before the next that is forced, unless one of the layout's marks comes first."""
        marked = (self.layout.speech_begin, self.layout.speech_end) != (None, None)
        return self._left if marked else math.inf

    def push(self, token: int) -> None:
        """Take the next token, forced or sampled."""
        if self._marker is not None:
            self._append(token, text=False, action=False)
            if token != self._marker:
                self._break(f"token {len(self.ids) - 1} is not the boundary marker that must stand there")
            self._marker = None
        elif self.in_text:
            self._push_text(token)
        else:
            self._push_speech(token)

    def close(self) -> None:
        """No more tokens will come: an answer without an end is broken, unless it is open-ended."""
        if not (self.done or self.layout.open_ended):
            self._break("no end: the answer was cut at the longest length allowed")

    def tokens(self) -> Tokens:
        return Tokens(torch.tensor(self.ids), torch.tensor(self.text), torch.tensor(self.action))

    def _append(self, token: int, *, text: bool, action: bool) -> None:
        self.ids.append(token)
        self.text.append(text)
        self.action.append(action)

    def _break(self, reason: str) -> None:
        self.broken, self.done = reason, True

    def _push_text(self, token: int) -> None:
        layout = self.layout
        if layout.is_unit(token):
            self._append(token, text=False, action=True)
            return self._break(f"token {len(self.ids) - 1} is a speech unit where text must stand")
        self._append(token, text=True, action=True)
        if token == layout.answer_end:
            return self._break("the answer ends before its text does")
        if token == layout.text_end:
            self._text_ended = True
        else:
            self.text_ids.append(token)
            self._left -= 1
        if self._text_ended or self._left == 0:
            self.in_text, self._marker = False, layout.speech_begin
            self._left = math.inf if self._text_ended else layout.chunk(self._chunk)[1]

    def _push_speech(self, token: int) -> None:
        layout = self.layout
        if token == layout.answer_end:
            self._append(token, text=layout.text_end is not None, action=True)
            self.done = True
            if not self._text_ended:
                self._break("the speech ends before the text does")
            return
        if not layout.is_unit(token):
            self._append(token, text=layout.text_end is not None, action=True)
            return self._break(f"token {len(self.ids) - 1} is no speech unit where one must stand")
        self._append(token, text=False, action=True)
        self.units.append(token - layout.first_unit)
        self._left -= 1
        if self._left == 0:
            self._chunk += 1
            self.in_text, self._marker = True, layout.speech_end
            self._left = layout.chunk(self._chunk)[0]
