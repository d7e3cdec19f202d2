"""What single tokens have beside their answer's advantage: from the words that a reward heard wrong (`word_credit`),
from a reward that only some of the codec's units can answer for (`unit_credit`), and from being what broke the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from elocute.errors import InputError
from elocute.models import SpeechLM, TtsLM
from elocute.models.layout import Layout
from elocute.objectives.advantages import group_advantages
from elocute.objectives.word_credit import at_times, word_advantages
from elocute.recipe.reward_base import UnitCredit
from elocute.recipe.schema import Hybrid, PolicyGradient, Recipe
from elocute.rewards.outcome import Outcome, Scored
from elocute.training.experience import Experience

Marks = Sequence[Mapping[str, Any]]


def credit_weights(recipe: Recipe) -> dict[str, float]:
    """The rewards whose words have their own advantage, and its weight."""
    return {spec.name: spec.word_credit for spec in recipe.rewards if getattr(spec, "word_credit", 0)}


def unit_credits(recipe: Recipe) -> dict[str, UnitCredit]:
    """The rewards that have units of their own, and which."""
    return {spec.name: spec.unit_credit for spec in recipe.rewards if spec.unit_credit}


def check_credit(recipe: Recipe, lm: SpeechLM) -> None:
    """InputError when a reward asks for word or unit credit and the model's tokens cannot be given any."""
    if isinstance(recipe.objective, Hybrid) and recipe.objective.policy_gradient.blame is not None:
        why = "the scope is text" if recipe.objective.policy_gradient.scope == "text" else None
        if not getattr(lm.codec, "parts", {}):
            why = "the codec's units have no parts, so none is of the wrong kind"
        if why:
            raise InputError(f"objective.policy_gradient: blame: expected none, {why}")
    for name, credit in unit_credits(recipe).items():
        parts = getattr(lm.codec, "parts", {})
        if credit.units not in parts:
            expected = " or ".join(parts) or "no unit_credit, the codec's units have no parts"
            raise InputError(f"rewards: {name}: unit_credit: units: expected {expected}, got {credit.units!r}")
    for name in credit_weights(recipe):
        if not isinstance(lm, TtsLM):
            raise InputError(f"rewards: {name}: word_credit: only for TTS models, whose answers all say the same words")
        if not hasattr(lm.codec, "units_per_second"):
            raise InputError(f"rewards: {name}: word_credit: the codec's units have no constant rate")


def word_credit(experience: Experience, weights: Mapping[str, float], lm: TtsLM, spec: PolicyGradient) -> torch.Tensor:
    """What is added to the advantages of this rank's answers, float32 [B, T]: Σ over rewards of w·W at each token."""
    group = experience.rewards.shape[1]
    rollouts, answers = experience.rollouts, experience.answers
    times = [
        unit_times(lm.layout, rollout.tokens.ids, lm.codec.units_per_second, answer.utterance.seconds)
        for rollout, answer in zip(rollouts, answers, strict=True)
    ]
    rows = [torch.zeros(len(of)) for of in times]
    for name, weight in weights.items():
        marks = [marks_of(outcome) for outcome in experience.judged.outcomes[name]]
        for start in range(0, len(rows), group):
            piece = slice(start, start + group)
            there = experience.available[experience.mine].reshape(-1)[piece]
            own = [found if judged else None for found, judged in zip(marks[piece], there.tolist(), strict=True)]
            for row, extra in zip(rows[piece], group_credit(own, times[piece], spec), strict=True):
                row += weight * extra
    return pad_sequence(rows, batch_first=True)


def unit_credit(
    experience: Experience, credits: Mapping[str, UnitCredit], lm: SpeechLM, spec: PolicyGradient
) -> torch.Tensor:
    """What is added to the advantages of this rank's answers, float32 [B, T]: Σ over rewards of w·A on their units.

    A: the group's advantages by this reward alone, behind its gate, of the answers that it scored; 0 for the others.
    """
    shape = experience.available[experience.mine].shape
    ids = pad_sequence([rollout.tokens.ids for rollout in experience.rollouts], batch_first=True, padding_value=-1)
    units, total = ids - lm.layout.first_unit, torch.zeros(ids.shape)
    for name, credit in credits.items():
        outcomes = experience.judged.counted[name]
        scored = torch.tensor([isinstance(outcome, Scored) for outcome in outcomes]).view(shape)
        values = [outcome.value if isinstance(outcome, Scored) else 0.0 for outcome in outcomes]
        own = torch.tensor(values, dtype=torch.float64).view(shape)
        there = scored & experience.available[experience.mine]
        advantages = group_advantages(own, there, baseline=spec.baseline, scale=spec.scale).float().reshape(-1, 1)
        part = lm.codec.parts[credit.units]
        mine = (units >= part.start) & (units < part.stop)
        if credit.first is not None:
            mine &= mine.cumsum(1) <= credit.first
        total += credit.weight * advantages * mine
    return total


def blame(experience: Experience, advantages: torch.Tensor, times: float, lm: SpeechLM) -> torch.Tensor:
    """What is added to advantages [B] so that a broken answer's falls, `times` over, on the unit that broke it alone:
    float32 [B, T], 0 for every other answer.
    """
    ids = pad_sequence([rollout.tokens.ids for rollout in experience.rollouts], batch_first=True, padding_value=-1)
    total = torch.zeros(ids.shape)
    for row, units, answer, advantage in zip(
        total, ids - lm.layout.first_unit, experience.answers, advantages.tolist(), strict=True
    ):
        if answer.utterance.broken_unit is not None:
            places = ((units >= 0) & (units < lm.layout.n_units)).nonzero().flatten()
            row -= advantage
            row[places[answer.utterance.broken_unit]] += times * advantage
    return total


def marks_of(outcome: Outcome) -> Marks | None:
    """The marks of an answer's words (rewards/words.py); None where it was not judged."""
    return outcome.detail["words"] if isinstance(outcome, Scored) else None


def group_credit(
    group: Sequence[Marks | None], times: Sequence[torch.Tensor], spec: PolicyGradient
) -> list[torch.Tensor]:
    """W at each token of each of a group's answers, [T] each. times [T]: the tokens', in seconds, NaN for none."""
    available = torch.tensor([marks is not None for marks in group])
    columns = {key: n for n, key in enumerate(dict.fromkeys(_key(m) for marks in group for m in marks or ()))}
    right = torch.ones(len(group), len(columns), dtype=torch.float64)
    for row, marks in zip(right, group, strict=True):
        for mark in marks or ():
            row[columns[_key(mark)]] = float(mark["expected"] == mark["heard"])
    advantages = word_advantages(right, available, baseline=spec.baseline, scale=spec.scale)
    found = []
    for row, marks, own in zip(advantages, group, times, strict=True):
        values = torch.tensor([row[columns[_key(mark)]] for mark in marks or ()], dtype=torch.float64)
        spans = torch.tensor([[mark["start"], mark["end"]] for mark in marks or ()], dtype=torch.float64).view(-1, 2)
        found.append(at_times(values, spans, own).float())
    return found


def unit_times(layout: Layout, ids: torch.Tensor, rate: float, seconds: float) -> torch.Tensor:
    """When each token of a textless answer sounds, float64 [T]: the middle of its unit, at `rate` units a second.

    The end of the answer has the last unit's time: to end there was that moment's choice. What is no sound: NaN.
    seconds: of the audio, which may lack the last units (of an incomplete block); they have its last moment.
    """
    units = (ids >= layout.first_unit) & (ids < layout.first_unit + layout.n_units)
    times = (units.cumsum(0).double() - 0.5) / rate
    times = times.clamp(max=torch.nextafter(torch.tensor(seconds, dtype=torch.float64), torch.tensor(0.0).double()))
    return torch.where(units | ((ids == layout.answer_end) & units.any()), times, torch.nan)


def _key(mark: Mapping[str, Any]) -> tuple[int, bool]:
    return mark["place"], mark["expected"] is None
