"""Several rewards become one number an answer.

- raw: Σ w·r. Bounded by [Σ w·low, Σ w·high], which adaptive mixing needs.
- group: Σ w·(r − mean)/(std + 1e-4) with mean and population std of the prompt's group, over its scored answers: every
  reward speaks equally loud whatever its scale. There is no declared range then.
- A gate lets reward A count only where reward B reaches a threshold; elsewhere A contributes its lowest value.
- One Invalid judgement makes the answer invalid: it gets the declared penalty. Otherwise one Unavailable judgement
  makes it unavailable: it has no value. Rewards of weight 0 without gate or credit are only measured.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from elocute.data.types import Answer, Example
from elocute.errors import InputError, RunError
from elocute.recipe.ears import EarSpec
from elocute.recipe.rewards import RewardSpec
from elocute.rewards.build import build_ear, build_reward
from elocute.rewards.outcome import Invalid, Outcome, Reward, Scored, Unavailable
from elocute.rewards.transcript import Transcriber

_EPS = 1e-4


@dataclass(frozen=True)
class Gate:
    """`reward` must be at least `at_least`."""

    reward: str
    at_least: float


@dataclass(frozen=True)
class Weighted:
    """A reward, what it counts and where. credited: it also counts by itself, for some tokens (training/credit.py)."""

    reward: Reward
    weight: float = 1.0
    gate: Gate | None = None
    credited: bool = False


@dataclass(frozen=True)
class Judged:
    """A batch of N answers, judged.

    values: [N], the combined reward; the penalty for an invalid answer, None for an unavailable one.
    combined: [N], the same as outcomes. outcomes: each reward's own [N]; counted: the deciding rewards',
    behind their gates. counts: of `combined`, by kind.
    sums: each reward's (sum, number) of scored values. measures: the same of what a reward measured beside its value,
    by "reward/measure". spread: each deciding reward's (sum of the standard deviations within groups, number of groups
    with two scored answers or more), guards aside: 0 everywhere is a judge that cannot tell answers apart.
    silent: each deciding reward's (unavailable, asked) answers. labels: of those that hear labels, by
    "reward/dimension", the number of answers by (label asked for, label heard).
    """

    values: list[float | None]
    combined: list[Outcome]
    outcomes: dict[str, list[Outcome]]
    counted: dict[str, list[Outcome]]
    counts: dict[str, int]
    sums: dict[str, tuple[float, int]]
    measures: dict[str, tuple[float, int]]
    spread: dict[str, tuple[float, int]]
    silent: dict[str, tuple[int, int]]
    labels: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)


class Mix(Protocol):
    """The options of combining, as the recipe's `reward_mix` has them."""

    scale: Literal["raw", "group"]
    invalid_penalty: float | None
    max_unavailable: float


def build_mixer(specs: Sequence[RewardSpec], mix: Mix, listen: EarSpec | None = None) -> "RewardMixer":
    """The rewards a recipe lists, combined as it says; `listen`: the ear that writes down what a textless model said.

    Raises InputError before anything is judged.
    """
    parts = [
        Weighted(build_reward(s), s.weight, s.gate and Gate(s.gate.reward, s.gate.at_least), s.credited) for s in specs
    ]
    return RewardMixer(
        parts,
        scale=mix.scale,
        invalid_penalty=mix.invalid_penalty,
        max_unavailable=mix.max_unavailable,
        transcriber=listen and Transcriber(build_ear(listen)),
    )


class RewardMixer:
    """low, high: the range of the combined reward on the raw scale; None on the group scale.

    invalid_penalty: the value of an invalid answer, on the combined scale; default `low`, so the group scale must
    declare one. max_unavailable: RunError when a larger share of the answers that a reward could judge (the invalid
    ones aside) comes back Unavailable.
    """

    def __init__(
        self,
        parts: Sequence[Weighted],
        *,
        scale: Literal["raw", "group"] = "raw",
        invalid_penalty: float | None = None,
        max_unavailable: float = 0.5,
        transcriber: Transcriber | None = None,
    ):
        self.transcriber = transcriber
        self.parts = {part.reward.name: part for part in parts}
        self.scale, self.max_unavailable = scale, max_unavailable
        self.low = self.high = None
        if scale == "raw":
            self.low = _total(p.weight * p.reward.low for p in parts)
            self.high = _total(p.weight * p.reward.high for p in parts)
        self.invalid_penalty = self.low if invalid_penalty is None else invalid_penalty
        self._check(parts)
        gating = {p.gate.reward for p in parts if p.gate}
        self._deciding = [name for name, p in self.parts.items() if p.weight > 0 or p.credited or name in gating]

    def read(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers as the rewards read them: a textless model's with the words that were heard."""
        return self.transcriber(answers) if self.transcriber else list(answers)

    def __call__(self, answers: Sequence[Answer], groups: Sequence[Hashable]) -> Judged:
        """answers [N] and the group each belongs to [N]. Raises RunError for a reward that breaks its promise."""
        if len(answers) != len(groups):
            raise ValueError(f"{len(answers)} answers but {len(groups)} group ids")
        judged = self.combine({name: self.judge(name, answers) for name in self.parts}, groups)
        return replace(judged, labels=self._labels(answers, judged.outcomes))

    def combine(self, outcomes: dict[str, list[Outcome]], groups: Sequence[Hashable]) -> Judged:
        """Each reward's outcomes [N] into one a answer, without judging anything again."""
        count = len(groups)
        counting = {name: [self._counted(name, outcomes, i) for i in range(count)] for name in self._deciding}
        faults = [_worst([counting[name][i] for name in self._deciding]) for i in range(count)]
        totals = np.zeros(count)
        proper = [i for i, fault in enumerate(faults) if fault is None]
        for name in self._deciding:
            values = np.array([counting[name][i].value for i in proper], dtype=np.float64)
            if self.scale == "group":
                values = _standardised(values, [groups[i] for i in proper])
            totals[proper] += self.parts[name].weight * values
        return self._judged(totals, faults, outcomes, counting, groups)

    def check(self, examples: Sequence[Example]) -> None:
        """InputError for rows that a reward could not judge, before anything is sampled."""
        if self.transcriber:
            examples = [self.transcriber.assumed(example) for example in examples]
        for part in self.parts.values():
            if hasattr(part.reward, "check"):
                part.reward.check(examples)

    def close(self) -> None:
        """Ends what the rewards hold open (recogniser processes)."""
        if self.transcriber:
            self.transcriber.close()
        for part in self.parts.values():
            if hasattr(part.reward, "close"):
                part.reward.close()

    def _judged(
        self,
        totals: np.ndarray,
        faults: list[Outcome | None],
        outcomes: dict[str, list[Outcome]],
        counting: dict[str, list[Outcome]],
        groups: Sequence[Hashable],
    ) -> Judged:
        combined = [Scored(float(t)) if f is None else f for t, f in zip(totals, faults, strict=True)]
        kinds = Counter(type(outcome) for outcome in combined)
        return Judged(
            values=[self._value(outcome) for outcome in combined],
            combined=combined,
            outcomes=outcomes,
            counted=counting,
            counts={"scored": kinds[Scored], "invalid": kinds[Invalid], "unavailable": kinds[Unavailable]},
            sums={name: _sum(own) for name, own in outcomes.items()},
            measures={
                f"{name}/{measure}": _sum_of(measure, own)
                for name, own in outcomes.items()
                for measure in getattr(self.parts[name].reward, "measures", ())
            },
            spread={name: _spread(outcomes[name], groups) for name in self._deciding if self._is_graded(name)},
            silent={name: _silence(outcomes[name]) for name in self._deciding},
        )

    def _labels(
        self, answers: Sequence[Answer], outcomes: dict[str, list[Outcome]]
    ) -> dict[str, Counter[tuple[str, str]]]:
        examples = [answer.example for answer in answers]
        return {
            f"{name}/{dimension}": _heard(dimension, examples, outcomes[name])
            for name in self._deciding
            for dimension in getattr(self.parts[name].reward, "dimensions", ())
        }

    def _is_graded(self, name: str) -> bool:
        """Whether its answers should differ: a guard is content with all of them, as long as nothing is wrong."""
        return not getattr(self.parts[name].reward, "guards", False)

    def _value(self, outcome: Outcome) -> float | None:
        if isinstance(outcome, Scored):
            return outcome.value
        return self.invalid_penalty if isinstance(outcome, Invalid) else None

    def _counted(self, name: str, outcomes: dict[str, list[Outcome]], i: int) -> Outcome:
        """What reward `name` brings to answer i: its own outcome, or its lowest value behind a closed gate."""
        part = self.parts[name]
        if part.gate:
            key = outcomes[part.gate.reward][i]
            if not isinstance(key, Scored):
                return key
            if key.value < part.gate.at_least:
                return Scored(part.reward.low)
        return outcomes[name][i]

    def judge(self, name: str, answers: Sequence[Answer]) -> list[Outcome]:
        """One reward's outcomes. Raises RunError for a reward that breaks its promise."""
        reward = self.parts[name].reward
        outcomes = list(reward(answers))
        if len(outcomes) != len(answers):
            raise RunError(f"reward {reward.name}: {len(outcomes)} outcomes for {len(answers)} answers")
        for outcome in outcomes:
            if isinstance(outcome, Scored) and not reward.low <= outcome.value <= reward.high:
                raise RunError(
                    f"reward {reward.name}: {outcome.value} is outside its range [{reward.low:g}, {reward.high:g}]"
                )
        return outcomes

    def check_alive(self, judged: Judged, silent: Mapping[str, tuple[int, int]]) -> None:
        """RunError for a dead judge. silent: as judged.silent, but of all processes: they stop together."""
        for name, (unavailable, asked) in silent.items():
            if asked and unavailable / asked > self.max_unavailable:
                reasons = Counter(o.reason for o in judged.outcomes[name] if isinstance(o, Unavailable))
                often = reasons.most_common(1)[0][0] if reasons else "see the other processes"
                raise RunError(
                    f"reward {name}: {unavailable:.0f} of {asked:.0f} judgements are unavailable (more than "
                    f"{self.max_unavailable:.0%}), most often: {often}"
                )

    def _check(self, parts: Sequence[Weighted]) -> None:
        twice = [name for name, n in Counter(p.reward.name for p in parts).items() if n > 1]
        if twice:
            raise InputError(f"rewards: two are called {twice[0]!r}; give each its own `name`")
        if any(p.weight < 0 for p in parts):
            raise InputError("rewards: weights must be at least 0")
        if not any(p.weight > 0 or (p.credited and self.scale == "group") for p in parts):
            raise InputError("rewards: expected a weight above 0, or a credit with reward_mix.scale=group")
        for part in parts:
            if part.gate and (part.gate.reward not in self.parts or part.gate.reward == part.reward.name):
                raise InputError(
                    f"rewards: {part.reward.name}: gate: {part.gate.reward!r} is not the name of another reward"
                )
        if self.invalid_penalty is None:
            raise InputError("reward_mix: invalid_penalty: the group scale has no lowest value; declare a penalty")
        if self.scale == "raw" and not self.low <= self.invalid_penalty <= self.high:
            raise InputError(
                f"reward_mix: invalid_penalty: expected a value in [{self.low:g}, {self.high:g}], the range of the "
                f"combined reward, found {self.invalid_penalty:g}"
            )


def _worst(outcomes: list[Outcome]) -> Outcome | None:
    """The first Invalid, else the first Unavailable, else None: a bad sample is bad whoever else fell silent."""
    for kind in (Invalid, Unavailable):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return None


def _standardised(values: np.ndarray, groups: list[Hashable]) -> np.ndarray:
    """z-scores within each group: population std + eps, so that a group of equal values gives zeros."""
    result = np.empty_like(values)
    for where in _members(groups):
        own = values[where]
        result[where] = (own - own.mean()) / (own.std() + _EPS)
    return result


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    """The places of each group's answers."""
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    return list(members.values())


def _total(terms: Iterable[float]) -> float:
    """Added one by one, as the combined values are: rounding then never carries a value out of its range."""
    total = 0.0
    for term in terms:
        total += term
    return total


def _silence(outcomes: list[Outcome]) -> tuple[int, int]:
    return sum(isinstance(o, Unavailable) for o in outcomes), sum(not isinstance(o, Invalid) for o in outcomes)


def _heard(dimension: str, examples: Sequence[Example], outcomes: list[Outcome]) -> Counter[tuple[str, str]]:
    """In how many answers which label was heard where which was asked for."""
    return Counter(
        (example.columns["labels"][dimension], outcome.detail["heard"][dimension])
        for example, outcome in zip(examples, outcomes, strict=True)
        if isinstance(outcome, Scored) and dimension in outcome.detail["heard"]
    )


def _sum(outcomes: list[Outcome]) -> tuple[float, int]:
    values = [o.value for o in outcomes if isinstance(o, Scored)]
    return math.fsum(values), len(values)


def _sum_of(measure: str, outcomes: list[Outcome]) -> tuple[float, int]:
    values = [o.detail[measure] for o in outcomes if isinstance(o, Scored) and o.detail.get(measure) is not None]
    return math.fsum(values), len(values)


def _spread(outcomes: list[Outcome], groups: Sequence[Hashable]) -> tuple[float, int]:
    rows = [[outcomes[i].value for i in own if isinstance(outcomes[i], Scored)] for own in _members(groups)]
    spreads = [float(np.ptp(row) and np.std(row)) for row in rows if len(row) > 1]  # equal values: no rounding noise
    return math.fsum(spreads), len(spreads)
