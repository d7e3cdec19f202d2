"""What every reward does first: an answer that is no proper answer is the sample's fault, and is not judged."""

from collections.abc import Callable, Sequence

import numpy as np

from elocute.data.types import Answer, Utterance
from elocute.rewards.outcome import Invalid, Outcome


def score_proper(
    answers: Sequence[Answer],
    score: Callable[[list[Answer]], Sequence[Outcome]],
    *,
    needs_text: bool = False,
    needs_audio: bool = False,
) -> list[Outcome]:
    """`score` sees only the proper answers; the others become Invalid. One outcome an answer, in the same order."""
    faults = [_fault(a.utterance, needs_text, needs_audio) for a in answers]
    proper = [a for a, fault in zip(answers, faults, strict=True) if fault is None]
    outcomes = iter(score(proper) if proper else [])
    return [next(outcomes) if fault is None else Invalid(fault) for fault in faults]


def _fault(utterance: Utterance, needs_text: bool, needs_audio: bool) -> str | None:
    if utterance.broken:
        return utterance.broken
    if needs_text and not utterance.text.strip():
        return "empty text"
    if needs_audio and len(utterance.waveform) == 0:
        return "empty audio"
    if needs_audio and not np.isfinite(utterance.waveform).all():
        return "the audio has values that are not finite"
    return None
