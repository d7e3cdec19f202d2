"""What all codecs ask of what they are given: a mono waveform in, units that they know out."""

import numpy as np


class BrokenUnits(ValueError):
    """Units that are no speech: an id of the wrong kind at its place. The message says where; `unit`, from 0, too."""

    def __init__(self, message: str, unit: int | None = None):
        super().__init__(message)
        self.unit = unit


def as_mono(waveform: np.ndarray) -> np.ndarray:
    """float32 [samples]. ValueError for any other shape."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise ValueError(f"expected a mono waveform of shape [samples], got {waveform.shape}")
    return waveform


def as_units(units, n_units: int, codebooks: int | None = None) -> np.ndarray:
    """int64 [U], or frames [T, codebooks]; there may be none. BrokenUnits unless all are 0 … n_units − 1."""
    units = np.asarray(units, dtype=np.int64).reshape((-1,) if codebooks is None else (-1, codebooks))
    if not ((units >= 0) & (units < n_units)).all():
        what = "units" if codebooks is None else "codes"
        raise BrokenUnits(f"{what}: expected 0 … {n_units - 1}, got {units.min()} … {units.max()}")
    return units
