"""How likely a recogniser finds the words that should be said: finer than counting those that it misheard."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from elocute.data.normalise import normalise
from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.recipe.rewards import Reference
from elocute.rewards import ctc
from elocute.rewards.asr import asked, by_rate, check_words, spoken_prompt, word_error_rate
from elocute.rewards.outcome import Invalid, Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper
from elocute.rewards.transformers_ear import TransformersEar


class LikelihoodReward:
    """p(text | audio)^(1 / letters) by a CTC ear, in [0, 1]: how probable it finds a letter of what should be said.

    reference: see `asked`. `detail` holds what the ear hears when it does not know the text, and its word error rate;
    timed: also `words`, marks as of `words.mark_words`, from the likeliest alignment: a word is heard if its own
    letters are `ctc.CLEAR` probable. Raises InputError for an ear that is no CTC model of letters.
    """

    low, high = 0.0, 1.0
    measures = ("wer",)

    def __init__(self, name: str, ear: TransformersEar, reference: Reference = "written", *, timed: bool = False):
        ear.check_letters()
        self.name, self.ear, self.reference, self.timed = name, ear, reference, timed

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a word to say, or with a letter that the ear does not have."""
        if self.reference == "prompt":
            check_rows(examples, check_words)
            check_rows(examples, self._can_be_heard)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_text=self.reference == "written", needs_audio=True)

    def close(self) -> None:
        """Ends what the ear holds open."""
        self.ear.close()

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        return [self._outcome(*of) for of in zip(answers, by_rate(self.ear.log_probs, answers), strict=True)]

    def _outcome(self, answer: Answer, log_probs: np.ndarray) -> Outcome:
        wanted = asked(answer, self.reference)
        words = normalise(wanted).split()
        if not words:
            return Invalid("no words in the text")
        try:
            spelt = [self.ear.spell(word) for word in words]
        except ValueError as error:
            return Unavailable(str(error))
        letters = ctc.joined(spelt, self.ear.space)
        value = math.exp(ctc.log_likelihood(log_probs, letters, self.ear.blank) / len(letters))
        heard = self.ear.read(log_probs)
        marks = {"words": self._marks(words, spelt, log_probs)} if self.timed else {}
        return Scored(value, {"heard": heard, "wer": word_error_rate(wanted, heard)} | marks)

    def _marks(self, words: list[str], spelt: list[list[int]], log_probs: np.ndarray) -> list[dict[str, Any]]:
        frame = self.ear.seconds_a_frame
        return [
            {
                "place": place,
                "expected": word,
                "heard": word if said.probability >= ctc.CLEAR else None,
                "start": said.first * frame,
                "end": said.end * frame,
            }
            for place, (word, said) in enumerate(
                zip(words, ctc.find_words(log_probs, spelt, self.ear.space, self.ear.blank), strict=True)
            )
        ]

    def _can_be_heard(self, example: Example) -> None:
        for word in normalise(spoken_prompt(example)).split():
            try:
                self.ear.spell(word)
            except ValueError as error:
                raise InputError(f"{example.where}: messages: {word!r}: {error}") from None
