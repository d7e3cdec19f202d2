"""`elocute encode`: the audio of rows into the cache, before a first step of training waits for it.

Rows are encoded by the recipe's model, as `train` does it: the prompt, and the answers that are recorded. A file that
is in the cache already is left as it is: work that was stopped goes on by the same command.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.rows import check_rows, each_row
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models import check_model, load_model
from elocute.pipelines.hire import hired
from elocute.progress import Progress
from elocute.recipe import Recipe

PORTION = 16
"""Rows together: some seconds of work."""


class AudioEncoder:
    """Encodes the audio of the rows in the file `data` into the recipe's cache.

    workers: on Ray; 0: this process (hire.py).
    """

    def __init__(self, recipe: Recipe, data: Path, *, workers: int = 0):
        self.recipe, self.data, self.workers = recipe, data, workers

    def check(self) -> int:
        """The number of rows. InputError for bad ones and for a model folder that lacks something."""
        count = sum(1 for _ in self._rows())
        check_model(self.recipe.model)
        return count

    def run(self, *, progress: Progress = lambda *_: None) -> dict[str, Any]:
        """Do the whole work; returns the summary. InputError for what cannot be encoded, all of it, a line each."""
        count, done = self.check(), 0
        encoded = found = 0

        def each() -> Iterator[str | None]:
            nonlocal done, encoded, found
            for problems, new, known in crew("encode", self._portions()):
                yield from problems
                done, encoded, found = done + len(problems), encoded + new, found + known
                progress("rows", done, count, {})

        progress("rows", 0, count, {})
        with hired(Encoder, (self.recipe,), self.workers) as crew:
            check_rows(each(), _refuse)
        return {"rows": count, "encoded": encoded, "in_cache": found}

    def _rows(self) -> Iterator[Example]:
        return (example for _, example in each_row(self.data, self.recipe.data.prompt_seconds))

    def _portions(self) -> Iterator[list[Example]]:
        rows = self._rows()
        while some := list(itertools.islice(rows, PORTION)):
            yield some


class Encoder:
    """What encodes rows: the recipe's model."""

    def __init__(self, recipe: Recipe):
        self.lm = load_model(recipe.model, dtype=getattr(torch, recipe.dtype))
        self.audio = EncodedAudio(self.lm.codec, recipe.data.cache)

    def encode(self, examples: Sequence[Example]) -> tuple[list[str | None], int, int]:
        """What is wrong with each row, or None; how many files were encoded, and found in the cache."""
        before = self.audio.counts.encoded, self.audio.counts.hits
        problems = [self._problem(example) for example in examples]
        self.audio.forget()
        return problems, self.audio.counts.encoded - before[0], self.audio.counts.hits - before[1]

    def _problem(self, example: Example) -> str | None:
        try:
            self.lm.encode_prompt(example, self.audio)
            if example.target_audio:
                self.lm.encode_target(example, self.audio)
            if example.rejected_audio:
                self.lm.encode_rejected(example, self.audio)
        except InputError as error:
            return str(error)


def _refuse(problem: str | None) -> None:
    if problem:
        raise InputError(problem)
