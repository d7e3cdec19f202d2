"""Which answer is preferred to which: by the rows, to a fresh sample, or by the rewards of fresh samples."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models import SpeechLM
from elocute.models.layout import Tokens
from elocute.objectives.tokens import scope_mask
from elocute.recipe.schema import Dpo
from elocute.rewards.combine import Judged
from elocute.rewards.outcome import Scored
from elocute.training.experience import Experience

DROPPED = ("equal", "small_gap", "unjudged", "no_tokens")
"""Why a prompt gave no pair: both answers are the same; their rewards are nearer than min_gap, or equal; fewer than two
answers were judged, or no proper one; neither answer has a token in scope."""


class Pair(NamedTuple):
    """Two answers to one prompt (ids int64 [P]). reference: float64 [2, 2], see Answers.sums; None while not known."""

    prompt: torch.Tensor
    chosen: Tokens
    rejected: Tokens
    weight: float = 1.0
    reference: torch.Tensor | None = None


class PairMaker:
    """Makes pairs as the objective's mode says. What rows lack comes out before the first step, in `encode`."""

    def __init__(self, spec: Dpo, lm: SpeechLM, audio: EncodedAudio):
        self.spec, self.lm, self.audio = spec, lm, audio
        self.chosen: dict[str, Tokens] = {}
        self.rejected: dict[str, Tokens] = {}
        self.lengths: dict[str, int] = {}  # of prompts that are sampled from, by the row's place
        self.reference: dict[str, torch.Tensor] = {}  # of rows whose log-probs are known beforehand

    def encode(self, example: Example) -> None:
        """What the row brings to its pair. InputError when it lacks what the mode needs."""
        prompt = self.lm.encode_prompt(example, self.audio)
        if self.spec.mode != "best_worst":
            self.chosen[example.id] = self.lm.encode_target(example, self.audio)
            self.lm.check_fits(f"{example.where}: sft_target", prompt, self.chosen[example.id])
        if self.spec.mode == "offline" or (self.spec.mode == "auto" and not _lacks_rejected(example)):
            self.rejected[example.id] = self._rejected(example, self.chosen[example.id])
            self.lm.check_fits(f"{example.where}: rejected", prompt, self.rejected[example.id])
        if self.samples(example):
            self.lengths[example.where] = len(prompt)
        self._weight(example)

    def of_row(self, example: Example) -> Pair:
        """The row's own two answers. InputError when it has no two, or twice the same."""
        chosen = self.chosen.get(example.id) or self.lm.encode_target(example, self.audio)
        rejected = self.rejected.get(example.id) or self._rejected(example, chosen)
        prompt = self.lm.encode_prompt(example, self.audio)
        self.lm.check_fits(f"{example.where}: sft_target", prompt, chosen)
        self.lm.check_fits(f"{example.where}: rejected", prompt, rejected)
        return Pair(prompt, chosen, rejected, self._weight(example), self.reference.get(example.id))

    def samples(self, example: Example) -> bool:
        """Whether the row's pair needs fresh samples."""
        return self.spec.mode != "offline" and example.id not in self.rejected

    def of_step(self, examples: Sequence[Example], experience: Experience | None) -> tuple[list[Pair], Counter[str]]:
        """This rank's pairs of a step, and how many of its prompts were kept or dropped, by reason.

        experience: the fresh samples for those of the examples that need some, in their order.
        """
        pairs, counts = [], Counter({"kept": 0} | dict.fromkeys(DROPPED, 0))
        for candidate in self._candidates(examples, experience):
            fault = candidate if isinstance(candidate, str) else self._fault(candidate)
            counts[fault or "kept"] += 1
            if fault is None:
                pairs.append(candidate)
        return pairs, counts

    def _candidates(self, examples: Sequence[Example], experience: Experience | None) -> Iterator[Pair | str]:
        rollouts = iter(experience.rollouts) if experience else iter(())
        for index, example in enumerate(examples):
            if self.spec.mode == "best_worst":
                yield self._best_worst(index, experience)
            elif self.samples(example):
                sampled = next(rollouts)
                yield Pair(sampled.prompt, self.chosen[example.id], sampled.tokens)
            else:
                yield self.of_row(example)

    def _best_worst(self, index: int, experience: Experience) -> Pair | str:
        group = experience.rewards.shape[1]
        places = slice(index * group, (index + 1) * group)
        found = best_and_worst(experience.judged, places, self.spec.min_gap)
        if isinstance(found, str):
            return found
        best, worst = (experience.rollouts[place] for place in found)
        return Pair(best.prompt, best.tokens, worst.tokens)

    def _fault(self, pair: Pair) -> str | None:
        if torch.equal(pair.chosen.ids, pair.rejected.ids):
            return "equal"
        counted = sum(int(scope_mask(a.text, a.action, self.spec.scope).sum()) for a in (pair.chosen, pair.rejected))
        return None if counted else "no_tokens"

    def _rejected(self, example: Example, chosen: Tokens) -> Tokens:
        rejected = self.lm.encode_rejected(example, self.audio)
        if torch.equal(chosen.ids, rejected.ids):
            raise InputError(
                f"{example.where}: rejected_audio: expected another answer than sft_target's, it is the same"
            )
        return rejected

    def _weight(self, example: Example) -> float:
        column = self.spec.pair_weight
        value = 1.0 if column is None else example.columns.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"{example.where}: {column}: expected the pair's weight, 0 or more, found {value!r}")
        return float(value)


def check_answers(example: Example, mode: str) -> None:
    """InputError when the row lacks an answer that the mode needs, whatever the model makes of it."""
    if mode != "best_worst" and example.target_text is None and example.target_audio is None:
        raise InputError(f"{example.where}: sft_target_text, sft_target_audio: expected the answer to learn, got none")
    if mode == "offline" and _lacks_rejected(example):
        raise InputError(f"{example.where}: rejected_text, rejected_audio: expected the answer to unlearn, got none")


def best_and_worst(judged: Judged, places: slice, min_gap: float) -> tuple[int, int] | str:
    """Places of the best and the worst answer of a group, or the reason why there is no such pair.

    Answers that no judge judged take no part. An invalid one has the declared penalty and may be the worst, never the
    best. Among equals the first counts.
    """
    there = [place for place in range(places.start, places.stop) if judged.values[place] is not None]
    proper = [place for place in there if isinstance(judged.combined[place], Scored)]
    if len(there) < 2 or not proper:
        return "unjudged"
    best, worst = max(proper, key=judged.values.__getitem__), min(there, key=judged.values.__getitem__)
    gap = judged.values[best] - judged.values[worst]
    return (best, worst) if gap > 0 and gap >= min_gap else "small_gap"


def _lacks_rejected(example: Example) -> bool:
    return example.rejected_text is None and example.rejected_audio is None
