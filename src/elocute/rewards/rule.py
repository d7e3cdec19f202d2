"""Rewards by rule: the answer's text against a column of the row. 1 when it agrees, 0 when it does not."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from elocute.data.normalise import normalise, numbers_in
from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.rewards.outcome import Outcome, Scored
from elocute.rewards.proper import score_proper

Match = Literal["exact", "regex", "number"]


class RuleReward:
    """1 if the text agrees with `column` (one accepted answer or a list of them), else 0.

    exact: the normalised text equals a normalised accepted answer.
    regex: one of the column's patterns is found in the normalised text (lower case, no punctuation, numbers spelt).
    number: the last number said in the text is one of the accepted numbers, so "seven plus four is eleven" says 11.
    Raises InputError when a row lacks the column or it cannot be read; `check` says so before anything is sampled.
    """

    low, high = 0.0, 1.0

    def __init__(self, name: str, column: str, match: Match = "exact"):
        self.name = name
        self.column = column
        self._agrees: Callable[[str, Example], bool] = {
            "exact": self._exact, "regex": self._regex, "number": self._number,
        }[match]  # fmt: skip

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row whose column cannot be used."""
        check_rows(examples, lambda example: self._agrees("", example))

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(
            answers, lambda proper: [Scored(float(self._agrees(a.utterance.text, a.example))) for a in proper]
        )

    def _exact(self, text: str, example: Example) -> bool:
        return normalise(text) in right_answers(example, self.column)

    def _regex(self, text: str, example: Example) -> bool:
        said = normalise(text)
        try:
            return any(re.search(str(pattern), said) for pattern in accepted_answers(example, self.column))
        except re.error as error:
            raise InputError(f"{example.where}: {self.column}: not a regular expression: {error}") from None

    def _number(self, text: str, example: Example) -> bool:
        said = numbers_in(text)
        wanted = []
        for accepted in accepted_answers(example, self.column):
            numbers = numbers_in(str(accepted))
            if len(numbers) != 1:
                raise InputError(f"{example.where}: {self.column}: expected one number, found {accepted!r}")
            wanted += numbers
        return bool(said) and said[-1] in wanted


def right_answers(example: Example, column: str) -> set[str]:
    """The accepted answers, normalised. InputError when one has nothing that can be said: silence would be right."""
    answers = {normalise(str(accepted)): accepted for accepted in accepted_answers(example, column)}
    if "" in answers:
        raise InputError(f"{example.where}: {column}: expected words, found {answers['']!r}")
    return set(answers)


def accepted_answers(example: Example, column: str) -> list[Any]:
    """The row's accepted answers: `column` holds a string, a number, or a non-empty list of them."""
    value = example.columns.get(column)
    accepted = list(value) if isinstance(value, list | tuple) else [value]
    if not accepted or not all(isinstance(a, str | int | float) and str(a).strip() for a in accepted):
        raise InputError(f"{example.where}: {column}: expected an accepted answer or a list of them, found {value!r}")
    return accepted
