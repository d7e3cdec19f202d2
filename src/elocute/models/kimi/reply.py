"""Kimi-Audio's answer: one text and one audio token at each step, each sampled (an action) or forced to the blank b.

With `delay` d (6), N the step of text_eos and M that of the audio's end (msg_end or media_end):

    step    0 … d−1              d …                  stop
    audio   b                    c1 … cm, end         text and speech: at M
    text    t1 … tn, text_eos, then b                 text alone: at N, and audio is b throughout

text is an action where i ≤ N, audio where d ≤ i ≤ M. Given what came before, the two of a step are independent: their
joint log-probability is the sum over the streams' actions. Forced blanks are inputs, never actions.

Everything is sampled over the whole vocabulary, as the published model does. What is no text or no code there is
dropped by the original; here it is dropped, too, and the answer says why it is broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elocute.errors import InputError
from elocute.models.kimi.prompt import Marks
from elocute.models.layout import Tokens


@dataclass(frozen=True)
class Cells:
    """An answer's cells: both streams int64 [T] and which are actions, bool [T]."""

    audio: torch.Tensor
    text: torch.Tensor
    audio_action: torch.Tensor
    text_action: torch.Tensor

    def __len__(self) -> int:
        return len(self.audio)

    def flat(self) -> Tokens:
        """Step by step, and within a step audio before text: [2·T]."""
        ids = torch.stack([self.audio, self.text], 1).flatten()
        action = torch.stack([self.audio_action, self.text_action], 1).flatten()
        return Tokens(ids, torch.tensor([False, True]).repeat(len(self)), action)


class Reply:
    """One answer as it grows: what must come next, and what has come so far.

    speaks: text and speech, else text alone. text_ids: what was written; codes: what was said, counted from 0;
    broken: why this is no proper answer, or None.
    """

    stage = 0

    def __init__(self, marks: Marks, *, speaks: bool):
        self.marks, self.speaks = marks, speaks
        self.audio: list[int] = []
        self.text: list[int] = []
        self.audio_action: list[bool] = []
        self.text_action: list[bool] = []
        self.text_ids: list[int] = []
        self.codes: list[int] = []
        self.text_ended = self.done = False
        self.broken: str | None = None

    def forced(self) -> tuple[int | None, int | None]:
        """The audio and the text token that must come next; None for what is sampled."""
        waits = not self.speaks or len(self.audio) < self.marks.delay
        return self.marks.blank if waits else None, self.marks.blank if self.text_ended else None

    def push(self, audio: int, text: int) -> None:
        """Take the next step's tokens, forced or sampled."""
        if self.done:
            raise ValueError("the answer has ended")
        step, forced = len(self.audio), self.forced()
        self.audio.append(int(audio))
        self.text.append(int(text))
        self.audio_action.append(forced[0] is None)
        self.text_action.append(forced[1] is None)
        for stream, token, must in (("audio", audio, forced[0]), ("text", text, forced[1])):
            if must is not None and token != must:
                self._break(f"step {step} of the {stream} stream is not the blank that must stand there")
        if forced[1] is None:
            self._write(step, int(text))
        if forced[0] is None:
            self._speak(step, int(audio))
        if not self.speaks:
            self.done = self.text_ended

    def close(self) -> None:
        """No more steps will come: an answer without an end is broken."""
        if not self.done:
            self._break("no end: the answer was cut at the longest length allowed")

    def cells(self) -> Cells:
        """What has come so far, and which of it were actions."""
        actions = torch.tensor([self.audio_action, self.text_action], dtype=torch.bool).reshape(2, -1)
        streams = torch.tensor([self.audio, self.text], dtype=torch.int64).reshape(2, -1)
        return Cells(*streams, *actions)

    def tokens(self) -> Tokens:
        """What has come so far, as training has it."""
        return self.cells().flat()

    @property
    def units(self) -> list[int]:
        """What was said, as the codec has it."""
        return self.codes

    def _break(self, reason: str) -> None:
        self.broken = self.broken or reason

    def _write(self, step: int, token: int) -> None:
        if token == self.marks.text_eos:
            self.text_ended = True
            return
        if token >= self.marks.first_code:
            return self._break(f"step {step} of the text stream is a code where text must stand")
        self.text_ids.append(token)
        if token >= self.marks.n_base:
            self._break(f"step {step} of the text stream is a special token where text must stand")

    def _speak(self, step: int, token: int) -> None:
        if self.marks.ends_audio(token):
            self.done = True
            if not self.text_ended:
                self._break("the speech ends before the text does")
            elif not self.codes:
                self._break("the answer has no speech")
        elif self.marks.is_code(token):
            self.codes.append(token - self.marks.first_code)
        else:
            self._break(f"step {step} of the audio stream is no code where one must stand")


def read_reply(audio: Sequence[int], text: Sequence[int], marks: Marks, *, speaks: bool) -> Reply:
    """Replay an answer's two streams up to its end; what stands behind that is not its own."""
    reply = Reply(marks, speaks=speaks)
    for pair in zip(audio, text, strict=True):
        if reply.done:
            break
        reply.push(*map(int, pair))
    reply.close()
    return reply


def lay_out_target(text_ids: Sequence[int], codes: Sequence[int] | None, marks: Marks) -> Cells:
    """A known answer for supervised training: loss where cells are actions, each stream over its own.

    text_ids without text_eos; codes None: an answer of text alone. The speech ends with msg_end. InputError when the
    text is longer than the speech, whose end would cut it.
    """
    first = marks.first_code
    text = iter([*text_ids, marks.text_eos])
    audio = iter([] if codes is None else [*(first + int(code) for code in codes), marks.msg_end])
    reply = Reply(marks, speaks=codes is not None)
    while not reply.done:
        forced_audio, forced_text = reply.forced()
        spoken = next(audio) if forced_audio is None else forced_audio
        reply.push(spoken, next(text) if forced_text is None else forced_text)
    if reply.broken:
        spoken = "" if codes is None else f" beside speech of {len(codes)} codes"
        raise InputError(f"text of {len(text_ids)} tokens{spoken}: {reply.broken}")
    return reply.cells()
