"""What a recogniser hears in the answer, and whether it is what the model wrote.

A recogniser ("ear") turns waveforms into text. The one in the reward is never the one in the evaluation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jiwer
import numpy as np

from elocute.data.normalise import normalise
from elocute.data.types import Answer, Utterance
from elocute.rewards.outcome import Invalid, Outcome, Scored
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.rewards.proper import score_proper
from elocute.rewards.transformers_ear import TransformersEar
from elocute.rewards.words import Word, mark_words

__all__ = ["AsrReward", "Ear", "PocketSphinxEar", "TransformersEar", "hear", "word_error_rate"]


class Ear(Protocol):
    """waveforms: float [samples] each, mono, in [-1, 1], all at `sample_rate` Hz.

    transcribe: one text each; "" for nothing. words: the words of that text, each with its time.
    """

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]: ...

    def words(self, waveforms: list[np.ndarray], sample_rate: int) -> list[list[Word]]: ...

    def close(self) -> None: ...


class AsrReward:
    """exp(−2.5·WER) in [0, 1] between the text the model wrote and what `ear` hears in its audio.

    Both sides are normalised (data/normalise.py). `detail` holds what was heard and the word error rate; timed: also
    `words`, a mark for each word (words.py).
    """

    low, high = 0.0, 1.0

    def __init__(self, name: str, ear: Ear, *, timed: bool = False):
        self.name = name
        self.ear = ear
        self.timed = timed

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=True, needs_audio=True)

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        if not self.timed:
            heard = hear(self.ear, answers)
            return [_faithfulness(a.utterance.text, h) for a, h in zip(answers, heard, strict=True)]
        return [_timed(a.utterance, words) for a, words in zip(answers, hear_words(self.ear, answers), strict=True)]


def hear(ear: Ear, answers: Sequence[Answer]) -> list[str]:
    """What `ear` hears in each answer, whatever its sample rate, in the same order."""
    return _by_rate(ear.transcribe, answers)


def hear_words(ear: Ear, answers: Sequence[Answer]) -> list[list[Word]]:
    """The words that `ear` hears in each answer, in the same order."""
    return _by_rate(ear.words, answers)


def _by_rate(listen: Callable, answers: Sequence[Answer]) -> list:
    heard: dict[int, Any] = {}
    for rate in sorted({a.utterance.sample_rate for a in answers}):
        at_rate = [i for i, a in enumerate(answers) if a.utterance.sample_rate == rate]
        heard |= zip(at_rate, listen([answers[i].utterance.waveform for i in at_rate], rate), strict=True)
    return [heard[i] for i in range(len(answers))]


def word_error_rate(written: str, heard: str) -> float:
    """(substitutions + deletions + insertions) / words written, both normalised; may exceed 1.

    Raises ValueError when nothing that can be said was written: the rate has no denominator.
    """
    reference = normalise(written)
    if not reference:
        raise ValueError("no words were written")
    return jiwer.wer(reference, normalise(heard))


def _faithfulness(written: str, heard: str) -> Outcome:
    if not normalise(written):
        return Invalid("no words in the text")
    wer = word_error_rate(written, heard)
    return Scored(math.exp(-2.5 * wer), {"heard": heard, "wer": wer})


def _timed(utterance: Utterance, words: list[Word]) -> Outcome:
    outcome = _faithfulness(utterance.text, " ".join(word.text for word in words))
    if isinstance(outcome, Scored):
        marks = mark_words(utterance.text, words, utterance.seconds)
        return Scored(outcome.value, {**outcome.detail, "words": marks})
    return outcome
