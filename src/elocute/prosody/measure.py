"""What of a voice can be measured in its waveform: speed, pitch, energy, silence, clipping. No model, no label."""

import hashlib
from dataclasses import dataclass

import numpy as np

from elocute.data.audio import resample
from elocute.prosody.pitch import f0_track
from elocute.prosody.pronunciation import count_phones, count_syllables

RATE = 16_000  # Hz at which pitch and levels are measured, so that one recording measures alike at any rate
_HOP, _WINDOW = 160, 400  # frames of 25 ms every 10 ms
HOP_SECONDS = _HOP / RATE
_SILENT_DB = -60.0  # a frame below this level, dB of full scale, is silent …
_BELOW_SPEECH_DB = 30.0  # … as is one this far below the 95th percentile of the frames above it
_FULL_SCALE = 0.999  # samples from here on are clipped


@dataclass(frozen=True)
class Prosody:
    """One recording, measured. None: there is nothing to measure it on (no words, no voice, no sound).

    phones_per_second, syllables_per_second: of the text, over the time from the first sound to the last; pauses within
    count, silence before and after does not. pitch_median: Hz, over voiced frames. pitch_range: semitones from the 5th
    to the 95th percentile of F0. energy: mean power of the frames that are not silent, dB (a full-scale sine: −3).
    voiced_share, silence_share: of all frames. clipping_share: of all samples. seconds: of the whole recording.
    """

    phones_per_second: float | None
    syllables_per_second: float | None
    pitch_median: float | None
    pitch_range: float | None
    energy: float | None
    voiced_share: float
    silence_share: float
    clipping_share: float
    seconds: float


@dataclass(frozen=True)
class Contours:
    """Pitch and energy over time, a value every HOP_SECONDS.

    f0: Hz [T], 0 where unvoiced. level: dB of full scale [T]. sounding: bool [T], the frames that are not silent.
    """

    f0: np.ndarray
    level: np.ndarray
    sounding: np.ndarray


def contours(waveform: np.ndarray, sample_rate: int) -> Contours:
    """waveform: float [samples], mono, in [−1, 1], at `sample_rate` Hz."""
    at_rate = resample(np.asarray(waveform, dtype=np.float64), sample_rate, RATE).astype(np.float64)
    levels = _levels(at_rate)
    return Contours(f0_track(at_rate, RATE, _HOP), levels, levels > _silence(levels))


def measure(waveform: np.ndarray, sample_rate: int, text: str) -> Prosody:
    """waveform: float [samples], mono, in [−1, 1], at `sample_rate` Hz; text: what is said in it, in US English.

    The text is taken at its word: one that was not spoken in full gives a speed that is too high. Several rewards
    measure the same answers: the latest _REMEMBERED are not measured again.
    """
    waveform = np.asarray(waveform, dtype=np.float64)
    key = (hashlib.blake2b(waveform.tobytes()).digest(), sample_rate, text)
    if key not in _measured:
        _measured[key] = _measure(waveform, sample_rate, text)
        if len(_measured) > _REMEMBERED:
            del _measured[next(iter(_measured))]
    return _measured[key]


_REMEMBERED = 4096
_measured: dict[tuple[bytes, int, str], Prosody] = {}


def _measure(waveform: np.ndarray, sample_rate: int, text: str) -> Prosody:
    found = contours(waveform, sample_rate)
    f0, levels, sounding = found.f0, found.level, np.flatnonzero(found.sounding)
    voiced = f0[f0 > 0]
    seconds = float(sounding[-1] - sounding[0] + 1) * _HOP / RATE if len(sounding) else None
    low, median, high = np.percentile(voiced, (5, 50, 95)) if len(voiced) else (None, None, None)
    return Prosody(
        phones_per_second=_rate(count_phones(text), seconds),
        syllables_per_second=_rate(count_syllables(text), seconds),
        pitch_median=None if median is None else float(median),
        pitch_range=None if median is None else float(12 * np.log2(high / low)),
        energy=float(10 * np.log10((10 ** (levels[sounding] / 10)).mean())) if len(sounding) else None,
        voiced_share=len(voiced) / len(f0) if len(f0) else 0.0,
        silence_share=1 - len(sounding) / len(levels) if len(levels) else 1.0,
        clipping_share=float((np.abs(waveform) >= _FULL_SCALE).mean()) if len(waveform) else 0.0,
        seconds=len(waveform) / sample_rate,
    )


def _levels(waveform: np.ndarray) -> np.ndarray:
    """Power in dB of full scale, a frame for each whole 10 ms, centred on it: [samples] → [frames]."""
    frames = len(waveform) // _HOP
    padded = np.pad(waveform, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[np.arange(frames) * _HOP + _HOP // 2]
    return 10 * np.log10((windows**2).mean(axis=1) + 1e-12)


def _silence(levels: np.ndarray) -> float:
    """The level up to which a frame is silent."""
    above = levels[levels > _SILENT_DB]
    return max(_SILENT_DB, float(np.percentile(above, 95)) - _BELOW_SPEECH_DB) if len(above) else _SILENT_DB


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if count and seconds else None
