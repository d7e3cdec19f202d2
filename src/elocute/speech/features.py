"""What the codec measures in speech: blocks of 80 ms, each with a pitch, an energy and four 20 ms spectral patches."""

from dataclasses import dataclass

import numpy as np

from elocute.prosody.pitch import f0_track

SAMPLE_RATE = 16000
HOP = 160  # 10 ms: a spectral frame
PATCH_FRAMES = 2  # frames of one spectral unit
BLOCK_PATCHES = 4  # spectral units of one block
BLOCK_FRAMES = PATCH_FRAMES * BLOCK_PATCHES
BLOCK = BLOCK_FRAMES * HOP  # 1280 samples
N_MELS = 40
CEPSTRA = 20  # cosine terms kept of the 40 mel bands: the envelope without the harmonics of the voice
PATCH_DIM = PATCH_FRAMES * CEPSTRA + PATCH_FRAMES
LOWEST_DB, HIGHEST_DB = -56.0, -8.0  # the range of block energies, dB below full scale
_WINDOW, _FFT = 400, 512
_FLOOR_DB = -45.0  # a band this far below its block's energy is as good as silent
VOICING_WEIGHT = 10.0  # dB that voiced and unvoiced frames are apart in a patch


@dataclass(frozen=True)
class Measured:
    """A waveform of B blocks, measured."""

    patches: np.ndarray  # float32 [4B, PATCH_DIM], see patches()
    energy: np.ndarray  # float64 [B], dB below full scale
    f0: np.ndarray  # float64 [8B], Hz, 0 where unvoiced, every 10 ms


def measure(waveform: np.ndarray) -> Measured:
    """float [samples] at 16 kHz, a whole number of blocks → Measured."""
    blocks = waveform.reshape(-1, BLOCK)
    energy = 10 * np.log10((blocks.astype(np.float64) ** 2).mean(axis=1) + 1e-10)
    f0 = f0_track(waveform, SAMPLE_RATE, HOP)
    # Quieter than the range is treated as silence: its patches sink to the floor instead of being amplified.
    level = np.repeat(np.maximum(energy, LOWEST_DB), BLOCK_FRAMES)
    envelope = np.maximum(log_mel(waveform) - level[:, None], _FLOOR_DB)
    cepstra = envelope @ cosines()
    voicing = np.where(f0 > 0, VOICING_WEIGHT, 0.0)
    patches = np.concatenate([cepstra.reshape(-1, PATCH_FRAMES * CEPSTRA), voicing.reshape(-1, PATCH_FRAMES)], axis=1)
    return Measured(patches.astype(np.float32), energy, f0)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Power in 40 mel bands in dB, a frame for each whole 10 ms, centred on it: [samples] → float64 [frames, 40]."""
    frames = len(waveform) // HOP
    padded = np.pad(waveform.astype(np.float64), _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[np.arange(frames) * HOP + HOP // 2]
    window = np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(windows * window, _FFT)) ** 2 / (window**2).sum()
    return 10 * np.log10(power @ mel_filters(_FFT).T + 1e-10)


def mel_points(count: int) -> np.ndarray:
    """`count` frequencies in Hz, equally spaced in mel from 40 Hz to 8 kHz."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (40.0, SAMPLE_RATE / 2))
    return 700 * (10 ** (np.linspace(low, high, count) / 2595) - 1)


def mel_filters(fft: int) -> np.ndarray:
    """Triangles of unit area in mel steps: float64 [40, fft // 2 + 1]."""
    points = mel_points(N_MELS + 2)
    hz = np.arange(fft // 2 + 1) * SAMPLE_RATE / fft
    rising = (hz - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - hz) / (points[2:] - points[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles / triangles.sum(axis=1, keepdims=True)


def cosines() -> np.ndarray:
    """The first CEPSTRA orthonormal cosine (DCT-II) vectors over the mel bands: float64 [40, CEPSTRA]."""
    band = (np.arange(N_MELS) + 0.5) / N_MELS
    basis = np.cos(np.pi * band[:, None] * np.arange(CEPSTRA)) * np.sqrt(2 / N_MELS)
    basis[:, 0] /= np.sqrt(2)
    return basis


def whole_blocks(waveform: np.ndarray) -> np.ndarray:
    """Pads the end with silence to a whole number of blocks."""
    return np.pad(waveform, (0, -len(waveform) % BLOCK))
