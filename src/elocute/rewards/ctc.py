"""How likely a CTC model finds it that a given text was spoken, and each of its words: log-probs of frames → numbers.

Graves et al. 2006 (CTC); as goodness of pronunciation: Cao et al., Interspeech 2024.
A recogniser only says which words it heard; this says how sure one is of those that were to be heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CLEAR = 0.5
"""A word is there when its letters are at least this probable, in the geometric mean."""


@dataclass(frozen=True)
class Spoken:
    """A word of the text: `probability`, the geometric mean of its letters', each at its clearest frame, and its frames
    [first, end).
    """

    probability: float
    first: int
    end: int


def joined(words: Sequence[Sequence[int]], space: int) -> list[int]:
    """The letters of words, a space between each two."""
    return [letter for word in words for letter in (space, *word)][1:]


def log_likelihood(log_probs: np.ndarray, letters: Sequence[int], blank: int) -> float:
    """log p(letters | audio), summed over all alignments, by the frames' log-probs [F, V]; -inf: too few frames."""
    if not len(log_probs):
        return -np.inf
    states = _states(letters, blank)
    at = np.full(len(states), -np.inf)
    at[:2] = log_probs[0, states[:2]]
    for frame in log_probs[1:]:
        at = np.logaddexp.reduce(_before(at, states, blank)) + frame[states]
    return float(np.logaddexp.reduce(at[-2:]))


def find_words(log_probs: np.ndarray, words: Sequence[Sequence[int]], space: int, blank: int) -> list[Spoken]:
    """Where each word's letters are on the likeliest alignment to the frames [F, V], and how probable.

    Frames too few for the text: each word has probability 0 and its share of the frames.
    """
    path = _best_path(log_probs, states := _states(joined(words, space), blank), blank)
    if path is None:
        edges = np.linspace(0, len(log_probs), len(words) + 1).astype(int)
        return [Spoken(0.0, first, end) for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    found, place = [], 0
    for word in words:
        frames = [np.flatnonzero(path == 2 * (place + n) + 1) for n in range(len(word))]
        clearest = [log_probs[at, states[2 * (place + n) + 1]].max() for n, at in enumerate(frames)]
        found.append(Spoken(float(np.exp(np.mean(clearest))), int(frames[0][0]), int(frames[-1][-1]) + 1))
        place += len(word) + 1
    return found


def _states(letters: Sequence[int], blank: int) -> np.ndarray:
    """Blank, letter, blank, letter, … blank."""
    states = np.full(2 * len(letters) + 1, blank)
    states[1::2] = letters
    return states


def _before(at: np.ndarray, states: np.ndarray, blank: int) -> np.ndarray:
    """What a state may be reached from [3, S]: itself, the one before, and two before unless that is a blank or the
    same letter.
    """
    stay, step, skip = at, np.full_like(at, -np.inf), np.full_like(at, -np.inf)
    step[1:] = at[:-1]
    skip[2:] = np.where((states[2:] != blank) & (states[2:] != states[:-2]), at[:-2], -np.inf)
    return np.stack([stay, step, skip])


def _best_path(log_probs: np.ndarray, states: np.ndarray, blank: int) -> np.ndarray | None:
    """The state of each frame [F] on the likeliest path; None when the frames are too few for one."""
    if not len(log_probs):
        return None
    at = np.full(len(states), -np.inf)
    at[:2] = log_probs[0, states[:2]]
    back = np.zeros((len(log_probs), len(states)), dtype=int)
    for t, frame in enumerate(log_probs[1:], start=1):
        ways = _before(at, states, blank)
        back[t] = ways.argmax(0)
        at = ways.max(0) + frame[states]
    if not np.isfinite(at[-2:]).any():
        return None
    path = np.empty(len(log_probs), dtype=int)
    path[-1] = len(states) - 2 + int(at[-2:].argmax())
    for t in range(len(log_probs) - 1, 0, -1):
        path[t - 1] = path[t] - back[t, path[t]]
    return path
