"""The front end of FunASR's encoders (SenseVoice): Kaldi's log-mel frames, stacked to a low rate and normalised.

x        = 32768 · waveform in frames of 25 ms every 10 ms, only whole ones; minus the frame's mean;
           x[t] − 0.97 x[t−1] (the first sample stands before itself); a symmetric Hamming window; 512-point FFT
fbank    = ln max(ε, Σ power · triangle) in 80 triangles, equally wide in mel = 1127 ln(1 + Hz / 700), 20–8000 Hz
stacked  = 7 frames side by side, every 6 frames; three copies of the first frame stand before it, the last repeats
features = (stacked + shift) · rescale,  both read from am.mvn
"""

from dataclasses import dataclass
from math import ceil, gcd, log
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elocute.errors import InputError
from elocute.speech.units import as_mono

SAMPLE_RATE = 16000
N_MELS = 80
STACK, STRIDE = 7, 6
WIDTH = N_MELS * STACK  # of a stacked frame
_FRAME, _HOP, _FFT = 400, 160, 512
_LOW_HZ = 20.0


@dataclass(frozen=True)
class FrontEnd:
    """Waveform → features. shift, rescale: float32 [560].

    dither: the standard deviation of the noise added to every sample of a frame, in steps of 16 bits. FunASR's default
    is 1.0, which makes features random; 0 gives the same features every time.
    """

    shift: Tensor
    rescale: Tensor
    dither: float = 0.0

    @classmethod
    def load(cls, file: Path, dither: float = 0.0) -> "FrontEnd":
        """With the statistics of an am.mvn. InputError when it is none, or one for other features."""
        return cls(*read_statistics(file), dither)

    def __call__(self, waveform: np.ndarray, sample_rate: int, generator: torch.Generator | None = None) -> Tensor:
        """Mono float [samples] in [−1, 1] at any rate → float32 [n_features(samples at 16 kHz), 560].

        generator: of the dither. InputError for audio that is shorter than a frame.
        """
        waveform = resample(torch.from_numpy(as_mono(waveform)), sample_rate, SAMPLE_RATE)
        if n_features(len(waveform)) == 0:
            raise InputError(f"audio is too short to hear: {len(waveform) / SAMPLE_RATE * 1000:.1f} ms, at least 25 ms")
        stacked = stack_frames(fbank(waveform, self.dither, generator))
        return (stacked + self.shift) * self.rescale


def n_features(samples: int) -> int:
    """Features of so many samples at 16 kHz: 16.7 a second."""
    return ceil(_n_frames(samples) / STRIDE)


def fbank(
    waveform: Tensor, dither: float = 0.0, generator: torch.Generator | None = None, window: Tensor | None = None
) -> Tensor:
    """float32 [samples] at 16 kHz → log-mel float32 [1 + (samples − 400) // 160, 80].

    window: float32 [400], Hamming's if None.
    """
    frames = (waveform * 32768).unfold(0, _FRAME, _HOP)
    if dither:
        frames = frames + dither * torch.randn(frames.shape, generator=generator)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = frames * (torch.hamming_window(_FRAME, periodic=False) if window is None else window)
    power = torch.fft.rfft(frames, _FFT).abs().pow(2)[:, :-1]
    return (power @ mel_triangles().T).clamp(min=torch.finfo(torch.float32).eps).log()


def povey_window() -> Tensor:
    """float32 [400]: Kaldi's own, Hann's to the power of 0.85."""
    return torch.hann_window(_FRAME, periodic=False).pow(0.85)


def mel_triangles() -> Tensor:
    """float32 [80, 256]: the weight of every FFT bin below the highest in every mel band.

    In float32 and with log(1 + x), as torchaudio computes them: the rounding of narrow bands is heard.
    """
    hz = torch.arange(_FFT // 2) * (SAMPLE_RATE / _FFT)
    place = 1127 * torch.log(1 + hz / 700)
    low, high = (1127 * log(1 + edge / 700) for edge in (_LOW_HZ, SAMPLE_RATE / 2))
    step, band = (high - low) / (N_MELS + 1), torch.arange(N_MELS)[:, None]
    left, centre, right = (low + (band + edge) * step for edge in (0.0, 1.0, 2.0))
    return torch.minimum((place - left) / (centre - left), (right - place) / (right - centre)).clamp(min=0)


def stack_frames(frames: Tensor) -> Tensor:
    """[T, 80] → [ceil(T / 6), 560]."""
    count = ceil(len(frames) / STRIDE)
    before = frames[:1].expand(STACK // 2, -1)
    missing = max(0, (count - 1) * STRIDE + STACK - len(frames) - len(before))
    padded = torch.cat([before, frames, frames[-1:].expand(missing, -1)])
    return padded.unfold(0, STACK, STRIDE)[:count].transpose(1, 2).flatten(1)


def read_statistics(file: Path) -> tuple[Tensor, Tensor]:
    """(shift, rescale), float32 [560] each, of a Kaldi network file with `<AddShift>` and `<Rescale>`."""
    try:
        words = file.read_text().split()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not the statistics of audio features: {error}") from error
    return _vector(file, words, "<AddShift>"), _vector(file, words, "<Rescale>")


def _vector(file: Path, words: list[str], name: str) -> Tensor:
    try:
        start = words.index("[", words.index(name))
        values = np.array(words[start + 1 : words.index("]", start)], dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{file}: {name}: expected it and [ numbers ] behind it") from error
    if len(values) != WIDTH or not np.isfinite(values).all():
        raise InputError(f"{file}: {name}: expected {WIDTH} finite numbers, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[samples] at `from_rate` Hz → [ceil(samples · to_rate / from_rate)], by a windowed sinc as torchaudio's default.

    Six zero crossings on either side under a Hann window, cut-off at 0.99 of the lower rate's half.
    """
    if from_rate == to_rate:
        return waveform
    common = gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common
    cut_off, crossings = min(old, new) * 0.99, 6
    width = ceil(crossings * old / cut_off)
    taps = torch.arange(-width, width + old, dtype=torch.float64) / old
    time = ((taps - torch.arange(new, dtype=torch.float64)[:, None] / new) * cut_off).clamp(-crossings, crossings)
    kernel = torch.sinc(time) * torch.cos(time * torch.pi / crossings / 2) ** 2 * cut_off / old
    padded = F.pad(waveform, (width, width + old))
    phases = F.conv1d(padded[None, None], kernel.to(waveform.dtype)[:, None], stride=old)[0]  # [new, periods]
    return phases.T.flatten()[: -(-len(waveform) * new // old)]


def _n_frames(samples: int) -> int:
    return max(0, 1 + (samples - _FRAME) // _HOP)
