"""Answers are spoken one word or two at a time, and a synthesiser slurs some words when they stand alone.

So each answer is spoken until the recogniser hears it right, plain and through the codec, close-cut and with silence.
"""

from collections.abc import Iterator

import numpy as np

from elocute.data.audio import resample
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.speech.codec import StarterCodec
from starter.questions import ANSWER_VOICE
from starter.voices import speak, voice_named

SAMPLE_RATE = 16_000
MARGIN_SECONDS = 0.04
# How to say it, in the order tried: the punctuation decides the melody.
TAKES = ((".", 1.0), (".", 0.9), ("", 1.0), (".", 0.8), (",", 0.9), ("?", 1.0), ("", 1.2))
_SILENCE = np.zeros(SAMPLE_RATE // 5, dtype=np.float32)


def best_take(text: str, ear: PocketSphinxEar, codec: StarterCodec) -> tuple[np.ndarray, bool]:
    """The first take heard right in all four ways, else the one most often right: (waveform at 16 kHz, all right?)."""
    best, most = None, -1
    for waveform in takes(text):
        right = ear.transcribe(list(_ways_to_listen(waveform, codec)), SAMPLE_RATE).count(text)
        if right > most:
            best, most = waveform, right
        if most == 4:
            break
    return best, most == 4


def takes(text: str) -> Iterator[np.ndarray]:
    for mark, rate in TAKES:
        yield close_cut(*speak(text + mark, voice_named(ANSWER_VOICE), rate=rate))


def _ways_to_listen(waveform: np.ndarray, codec: StarterCodec) -> Iterator[np.ndarray]:
    for version in (waveform, codec.decode(codec.encode(waveform, SAMPLE_RATE))):
        yield version
        yield np.concatenate([_SILENCE, version, _SILENCE])


def close_cut(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """At 16 kHz, without the silence around it: 10 ms frames below 2 % of the loudest, MARGIN_SECONDS left."""
    frame = sample_rate // 100
    frames = waveform[: len(waveform) // frame * frame].reshape(-1, frame)
    loudness = np.sqrt((frames**2).mean(axis=1))
    heard = np.flatnonzero(loudness > 0.02 * loudness.max())
    margin = round(MARGIN_SECONDS * sample_rate)
    cut = waveform[max(0, heard[0] * frame - margin) : (heard[-1] + 1) * frame + margin]
    return resample(cut, sample_rate, SAMPLE_RATE)
