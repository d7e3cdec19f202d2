"""What a recogniser hears in the answer, and whether it is what the model wrote.

A recogniser ("ear") turns waveforms into text. The one in the reward is never the one in the evaluation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jiwer
import numpy as np

from elocute.data.normalise import normalise
from elocute.data.rows import AUDIO_MARK, check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.recipe.rewards import Reference
from elocute.rewards.faster_whisper_ear import FasterWhisperEar
from elocute.rewards.outcome import Invalid, Outcome, Scored
from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.rewards.proper import score_proper
from elocute.rewards.transformers_ear import TransformersEar
from elocute.rewards.words import Word, mark_words

__all__ = [
    "AsrReward",
    "Ear",
    "FasterWhisperEar",
    "PocketSphinxEar",
    "TransformersEar",
    "asked",
    "hear",
    "word_error_rate",
]


class Ear(Protocol):
    """waveforms: float [samples] each, mono, in [-1, 1], all at `sample_rate` Hz.

    transcribe: one text each; "" for nothing. words: the words of that text, each with its time.
    """

    def transcribe(self, waveforms: list[np.ndarray], sample_rate: int) -> list[str]: ...

    def words(self, waveforms: list[np.ndarray], sample_rate: int) -> list[list[Word]]: ...

    def close(self) -> None: ...


FORMS: dict[str, Callable[[float], float]] = {
    "exp": lambda wer: math.exp(-2.5 * wer),
    "linear": lambda wer: 1 - min(wer, 1.0),
    "tanh": lambda wer: 1 - math.tanh(3 * wer),
}
"""Word error rate → reward, 1 at no error and never below 0."""


class AsrReward:
    """`form` of the WER, in [0, 1], between what should be said and what `ear` hears in the audio.

    reference: see `asked`. Both sides are normalised (data/normalise.py). `detail` holds what was heard and the word
    error rate; timed: also `words`, a mark for each word (words.py).
    """

    low, high = 0.0, 1.0
    measures = ("wer",)

    def __init__(
        self, name: str, ear: Ear, form: str = "exp", reference: Reference = "written", *, timed: bool = False
    ):
        self.name = name
        self.ear = ear
        self.form, self.reference = FORMS[form], reference
        self.timed = timed

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a word to say."""
        if self.reference == "prompt":
            check_rows(examples, check_words)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=self.reference == "written", needs_audio=True)

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        if not self.timed:
            return [self._faithfulness(a, h) for a, h in zip(answers, hear(self.ear, answers), strict=True)]
        heard = hear_words(self.ear, answers)
        texts = [" ".join(word.text for word in words) for words in heard]
        return [self._faithfulness(*of) for of in zip(answers, texts, heard, strict=True)]

    def _faithfulness(self, answer: Answer, heard: str, words: Sequence[Word] | None = None) -> Outcome:
        wanted = asked(answer, self.reference)
        if not normalise(wanted):
            return Invalid("no words in the text")
        wer = word_error_rate(wanted, heard)
        marks = {} if words is None else {"words": mark_words(wanted, words, answer.utterance.seconds)}
        return Scored(self.form(wer), {"heard": heard, "wer": wer} | marks)


def asked(answer: Answer, reference: Reference) -> str:
    """What should be said. "written": the text that the model wrote; "prompt": what the last user turn gives to say."""
    return answer.utterance.text if reference == "written" else spoken_prompt(answer.example)


def hear(ear: Ear, answers: Sequence[Answer]) -> list[str]:
    """What `ear` hears in each answer, whatever its sample rate, in the same order."""
    return by_rate(ear.transcribe, answers)


def hear_words(ear: Ear, answers: Sequence[Answer]) -> list[list[Word]]:
    """The words that `ear` hears in each answer, in the same order."""
    return by_rate(ear.words, answers)


def by_rate(listen: Callable, answers: Sequence[Answer]) -> list:
    """What an ear's `listen` makes of each answer, in the same order; it is called with one sample rate at a time."""
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


def spoken_prompt(example: Example) -> str:
    """The text of the last turn."""
    return example.messages[-1].content.replace(AUDIO_MARK, " ")


def check_words(example: Example) -> None:
    """InputError when the last turn gives nothing to say."""
    if not normalise(spoken_prompt(example)):
        raise InputError(
            f"{example.where}: messages: expected words to say in the last turn, found {spoken_prompt(example)!r}"
        )
