"""F0 by autocorrelation and a best path: Boersma 1993, "Accurate short-term analysis of the fundamental frequency"."""

import numpy as np

FLOOR_HZ, CEILING_HZ = 65.0, 500.0
_WINDOW_SECONDS = 0.04
_CANDIDATES = 5
# Boersma's costs, with his names; the path's costs are for frames 10 ms apart.
_SILENCE_THRESHOLD, _VOICING_THRESHOLD = 0.03, 0.5
_OCTAVE_COST, _OCTAVE_JUMP_COST, _VOICED_UNVOICED_COST = 0.02, 0.5, 0.16


def f0_track(waveform: np.ndarray, sample_rate: int, hop: int) -> np.ndarray:
    """F0 in Hz (0: unvoiced), one value for each whole `hop` samples, centred on it: [samples] → float64 [frames]."""
    frames = len(waveform) // hop
    if frames == 0:
        return np.zeros(0)
    lag, strength, loudness = _candidates(np.asarray(waveform, dtype=np.float64), sample_rate, hop, frames)
    f0 = sample_rate / lag
    voiced = strength + _OCTAVE_COST * np.log2(f0 / FLOOR_HZ)  # of two equal peaks the higher pitch is the true one
    voiced[strength <= 0] = -np.inf
    silence = 2.0 - loudness / (_SILENCE_THRESHOLD / (1.0 + _VOICING_THRESHOLD))
    unvoiced = _VOICING_THRESHOLD + np.maximum(0.0, silence)
    return _best_path(np.concatenate([np.zeros((frames, 1)), f0], axis=1),
                      np.concatenate([unvoiced[:, None], voiced], axis=1))  # fmt: skip


def _candidates(signal: np.ndarray, sample_rate: int, hop: int, frames: int):
    """The autocorrelation's strongest peaks: lags [T, C] in samples, strengths [T, C]; and peak levels [T]."""
    width = int(_WINDOW_SECONDS * sample_rate)
    first, last = int(sample_rate / CEILING_HZ), int(np.ceil(sample_rate / FLOOR_HZ))
    padded = np.pad(signal, width // 2)
    starts = np.arange(frames) * hop + hop // 2
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[starts]
    windows = windows - windows.mean(axis=1, keepdims=True)
    loudness = np.abs(windows).max(axis=1) / max(np.abs(signal).max(), 1e-9)
    hann = np.hanning(width + 2)[1:-1]
    correlation = _autocorrelation(windows * hann, last + 2) / _autocorrelation(hann[None], last + 2)
    here = correlation[:, first : last + 1]
    left, right = correlation[:, first - 1 : last], correlation[:, first + 1 : last + 2]
    peak = (here > left) & (here >= right) & (here > 0)
    # A parabola through the three samples around a peak finds its true place and height.
    bend = np.where(peak, left - 2 * here + right, -1.0)
    shift = np.where(peak, 0.5 * (left - right) / bend, 0.0)
    height = np.where(peak, np.minimum(here - 0.25 * (left - right) * shift, 1.0), 0.0)
    lags = np.arange(first, last + 1) + shift
    ranking = height - _OCTAVE_COST * np.log2(lags)
    best = np.argsort(-ranking, axis=1, kind="stable")[:, :_CANDIDATES]
    return np.take_along_axis(lags, best, 1), np.take_along_axis(height, best, 1), loudness


def _autocorrelation(windows: np.ndarray, lags: int) -> np.ndarray:
    """[T, width] → [T, lags], 1 at lag 0 (0 everywhere for a silent window)."""
    size = 1 << (windows.shape[1] + lags - 1).bit_length()
    power = np.abs(np.fft.rfft(windows, size)) ** 2
    correlation = np.fft.irfft(power, size)[:, :lags]
    return correlation / np.maximum(correlation[:, :1], 1e-12)


def _best_path(f0: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Viterbi: f0 and score [T, 1 + C] (candidate 0 is unvoiced, f0 0) → the f0 [T] along the best path."""
    frames, states = f0.shape
    octave = np.log2(np.where(f0 > 0, f0, 1.0))
    is_voiced = f0 > 0
    total, came_from = score[0], np.zeros((frames, states), dtype=np.int64)
    for t in range(1, frames):
        both = is_voiced[t - 1][:, None] & is_voiced[t][None, :]
        differ = is_voiced[t - 1][:, None] != is_voiced[t][None, :]
        cost = _OCTAVE_JUMP_COST * np.abs(octave[t - 1][:, None] - octave[t][None, :]) * both
        arriving = total[:, None] - cost - _VOICED_UNVOICED_COST * differ
        came_from[t] = arriving.argmax(axis=0)
        total = arriving.max(axis=0) + score[t]
    path = np.empty(frames, dtype=np.int64)
    path[-1] = total.argmax()
    for t in range(frames - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return f0[np.arange(frames), path]
