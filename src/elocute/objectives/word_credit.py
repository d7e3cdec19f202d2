"""Word-level credit: the speech of a word has the word's own advantage, beside that of the whole answer.

For the answers i = 1 … G to one prompt, all of which speak the same words k,

    right[i, k] = 1 where the recogniser heard word k in answer i, else 0
    W[i, k]     = (right[i, k] − mean over i) / (std over i + 10⁻⁴)        the group's advantages, word by word
    A[i, t]     = A[i] + w · mean of W[i, k] over the words k that sound at t's time; A[i] where none does

A word that all answers get right, or none, says nothing. A word that was put in is one that should not be there: it is
right where nothing was put in at that place.
"""

from torch import Tensor

from elocute.objectives.advantages import group_advantages


def word_advantages(right: Tensor, available: Tensor, **how) -> Tensor:
    """W [G, K] of right [G, K] (1 or 0); available bool [G]: an answer without marks takes no part and gets 0.

    how: baseline and scale of `group_advantages`.
    """
    return group_advantages(right.T, available.expand(right.T.shape), **how).T


def at_times(values: Tensor, spans: Tensor, times: Tensor) -> Tensor:
    """Mean of the values [K] of the words whose span [K, 2], [start, end) in seconds, holds a time [T]; 0 where none.

    A time that is NaN is in no span. Returns [T] in the values' dtype.
    """
    inside = (spans[:, :1] <= times) & (times < spans[:, 1:])
    return (values[:, None] * inside).sum(0) / inside.sum(0).clamp(min=1)
