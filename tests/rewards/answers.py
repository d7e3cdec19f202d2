"""Answers for tests of rewards."""

import numpy as np

from elocute.data.types import Answer, Example, Message, Utterance


def tone(seconds: float = 0.1, rate: int = 22_050, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def answer(
    text: str, *, waveform=None, rate: int = 22_050, broken: str | None = None, question="what is it?", **columns
) -> Answer:
    messages = (Message("user", question),)
    example = Example(
        id="q1", messages=messages, question_text=question, columns=columns, file="rows.jsonl", line=7
    )  # fmt: skip
    return Answer(example, Utterance(text, tone(rate=rate) if waveform is None else waveform, rate, broken))
