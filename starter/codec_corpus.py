"""What the starter codec is trained and measured on: template sentences by every voice, at several rates and pitch."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soxr

from starter.sentences import sentences
from starter.voices import VOICES, Voice, speak, voice_named

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Line:
    """One sentence as spoken: what, by whom, how; and the float32 waveform at 16 kHz."""

    text: str
    voice: str
    pitch: float
    waveform: np.ndarray


def spoken(text: str, voice: Voice, rate: float, pitch: float) -> Line:
    waveform, sample_rate = speak(text, voice, rate, pitch)
    return Line(text, voice.name, pitch, soxr.resample(waveform, sample_rate, SAMPLE_RATE))


def training_lines(seed: int, joe: int = 240, others: int = 50) -> Iterator[Line]:
    """`joe` sentences by joe (half with another pitch), `others` by each further voice; some louder or quieter."""
    draw = random.Random(seed)
    texts = iter(sentences(joe + others * (len(VOICES) - 1), seed))
    for voice in VOICES:
        for _ in range(joe if voice.name == "joe" else others):
            pitch = draw.choice([1.0, 1.0, 1.0, 0.85, 1.25, 1.4]) if voice.name == "joe" else 1.0
            line = spoken(next(texts), voice, draw.uniform(0.8, 1.3), pitch)
            gain = np.float32(10 ** (draw.choice([0, 0, 0, 3, -6, -12]) / 20))
            yield Line(line.text, line.voice, pitch, line.waveform * gain)


def held_out_lines(seed: int, count: int = 60) -> list[Line]:
    """`count` sentences that training_lines(seed) does not say, by joe at normal rate."""
    said = set(sentences(1000, seed))
    fresh = [text for text in sentences(4 * count, seed + 1) if text not in said][:count]
    return [spoken(text, voice_named("joe"), 1.0, 1.0) for text in fresh]
