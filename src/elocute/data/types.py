"""What travels through the house: a row's Example on the way in, an Utterance on the way out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class AudioRef:
    """Where a piece of audio lies: a sound file, or one entry of a store of encoded units (`units.safetensors#key`).

    seconds: only the first n seconds of the sound file; what is after them is cut off before anything is encoded.
    units: the very units, or frames of several codebooks, made by the codec whose digest is `codec`; `path` is then
    only their sound, for people. tokens: of an answer: all that was sampled, text and speech, in the model's own ids.
    cut: of an answer: it was stopped at the longest length allowed and goes on, so that no end stands behind it.
    """

    path: Path
    key: str | None = None
    seconds: float | None = None
    units: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    tokens: tuple[int, ...] | None = None
    codec: str | None = None
    cut: bool = False

    def __str__(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}#{self.key}"


@dataclass(frozen=True)
class Message:
    """One turn. `content` marks each place for audio with `<|audio|>`."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One checked row. `columns` holds every field of the row that the schema does not name (rewards may read them)."""

    id: str
    messages: tuple[Message, ...]
    audios: tuple[AudioRef, ...] = ()
    target_text: str | None = None
    target_audio: AudioRef | None = None
    rejected_text: str | None = None
    rejected_audio: AudioRef | None = None
    question_text: str | None = None
    task_type: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """file:line, for messages."""
        return f"{self.file or 'row'}:{self.line}"


@dataclass(frozen=True)
class Utterance:
    """One answer, decoded once and shared by all rewards.

    waveform: float32 [samples], mono, in [-1, 1], at `sample_rate` Hz; empty when nothing was spoken.
    broken: why the answer is no proper answer (no end, empty audio, malformed units …), or None. broken_unit: where one
    of its units is to blame for that, which, from 0.
    """

    text: str
    waveform: np.ndarray
    sample_rate: int
    broken: str | None = None
    broken_unit: int | None = None

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sample_rate


@dataclass(frozen=True)
class Answer:
    """What a reward judges: the row that asked and the utterance that answered."""

    example: Example
    utterance: Utterance
