"""Units as textless models have them: none twice in a row."""

import numpy as np


def without_repeats(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units [T] → (units with no two neighbours equal [U], int64: how often each stood there [U])."""
    starts = np.flatnonzero(np.concatenate([[True], units[1:] != units[:-1]])) if len(units) else np.zeros(0, int)
    return units[starts], np.diff(np.concatenate([starts, [len(units)]])).astype(np.int64)


def merge_repeats(units: np.ndarray) -> np.ndarray:
    """Units [T] → units with no two neighbours equal [U]."""
    return without_repeats(units)[0]
