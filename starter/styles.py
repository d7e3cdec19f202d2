"""What the starter's TTS model learns from: neutral sentences, and what a label does to joe's voice.

An emotion is prosody alone: pitch level, width of the melody, loudness. No sentence suits one label more than
another.
"""

import random
from dataclasses import dataclass
from itertools import product

import numpy as np

from starter.takes import SAMPLE_RATE, close_cut
from starter.voices import change_pitch, speak, voice_named

SPEAKER = "joe"


@dataclass(frozen=True)
class Emotion:
    """pitch: factor of F0's median. melody: factor of F0's distance from it, in semitones. gain: dB."""

    pitch: float
    melody: float
    gain: float


EMOTIONS = {
    "Neutral": Emotion(pitch=1.15, melody=1.0, gain=-4),
    "Happy": Emotion(pitch=1.5, melody=1.5, gain=-2),
    "Sad": Emotion(pitch=1.0, melody=0.3, gain=-12),
    "Angry": Emotion(pitch=1.3, melody=1.6, gain=3),
}
RATES = {"Slow": 0.72, "Medium": 0.93, "Fast": 1.2}
STYLES = [{"emotion": emotion, "speed": speed} for emotion, speed in product(EMOTIONS, RATES)]
JITTER = 0.04
"""Standard deviation of ln(rate) and ln(pitch): no two recordings are made alike."""


def spoken(text: str, emotion: str, speed: str, seed: int = 0) -> np.ndarray:
    """float32 [samples] at 16 kHz, cut close; the same for the same arguments."""
    how, draw = EMOTIONS[emotion], random.Random(f"{seed} {emotion} {speed} {text}")
    rate, pitch = (wanted * float(np.exp(draw.gauss(0, JITTER))) for wanted in (RATES[speed], how.pitch))
    waveform = close_cut(*speak(text, voice_named(SPEAKER), rate=rate))
    changed = change_pitch(waveform, SAMPLE_RATE, pitch, how.melody) * np.float32(10 ** (how.gain / 20))
    return np.clip(changed, -1, 1).astype(np.float32)


# ---- sentences -------------------------------------------------------------------------------------------------------

_WORDS = {  # such as Whisper tiny.en hears well when joe says them
    "person": "teacher driver painter student brother mother father neighbor woman boy children".split(),
    "act": "needed painted bought wanted ordered sold".split(),
    "thing": """door window table box picture bicycle basket camera machine newspaper umbrella guitar apple orange
        candle computer telephone""".split(),
    "quality": """old new simple large red green white black yellow expensive beautiful second famous modern
        heavy""".split(),
    "where": ["in", "near", "behind"],
    "place": """kitchen school office station market library village museum hospital hotel restaurant church bank bridge
        river factory""".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday".split(),
    "number": "two three six seven eight nine ten".split(),
}
_TEMPLATES = {  # and how often each is used
    "The {person} {act} the {thing}.": 6,
    "The {person} {act} the {quality} {thing}.": 6,
    "The {thing} is {where} the {place}.": 2,
    "The {quality} {thing} is {where} the {place}.": 6,
    "There are {number} people {where} the {place}.": 1,
    "The {person} went to the {place}.": 1,
    "The {person} came on {day}.": 1,
}


def sentences(count: int, seed: int) -> list[str]:
    """`count` different ones; the first ones are the same for any count."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        [template] = draw.choices(list(_TEMPLATES), list(_TEMPLATES.values()))
        found[template.format(**{kind: draw.choice(words) for kind, words in _WORDS.items()})] = None
    return list(found)
