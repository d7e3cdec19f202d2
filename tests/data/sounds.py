"""A tone, and a codec that counts."""

import numpy as np

from elocute.data.audio import resample


def tone(seconds=0.5, rate=16000, hertz=220.0, peak=0.5, channels=1):
    """float32 [samples] or [samples, channels]."""
    wave = peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return (wave if channels == 1 else np.stack([wave] * channels, axis=1)).astype(np.float32)


class CountingCodec:
    """A real, if crude, codec: mean loudness of 20 ms frames in 256 steps. Counts what it encodes."""

    sample_rate = 16000
    n_units = 256

    def __init__(self, digest="d1"):
        self.digest = digest
        self.calls = 0

    def encode(self, waveform, rate):
        self.calls += 1
        waveform = resample(waveform, rate, self.sample_rate)
        frames = waveform[: len(waveform) // 320 * 320].reshape(-1, 320)
        return np.minimum(np.abs(frames).mean(axis=1) * 256, 255).astype(np.int64)
