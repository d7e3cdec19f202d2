"""Voice-like sounds for tests of rewards that measure and listen."""

import numpy as np

RATE = 16_000


def voice(f0: float = 120.0, seconds: float = 1.0, level: float = 0.1, octaves: float = 0.3) -> np.ndarray:
    """Ten harmonics that glide over `octaves` around `f0` Hz: float32 [samples] at RATE."""
    track = f0 * 2 ** np.linspace(-octaves / 2, octaves / 2, int(seconds * RATE))
    phase = 2 * np.pi * np.cumsum(track / RATE)
    return (level * sum(np.sin(k * phase) / k for k in range(1, 11))).astype(np.float32)
