"""Reading aloud: texts and their labels in, speech out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elocute.data.types import Utterance
from elocute.errors import InputError
from elocute.models import SpeechLM
from elocute.rollout.sampler import Sampling, sample_groups
from elocute.rollout.seeds import seed_of

LONGEST = 1024
"""Tokens at most, where nobody says how many."""


@dataclass(frozen=True)
class Spoken:
    """A text as it was spoken; utterance.broken says why it was not spoken properly, if so."""

    text: str
    labels: Mapping[str, str]
    utterance: Utterance
    units: list[int]


def speak(
    lm: SpeechLM,
    asked: Sequence[tuple[str, Mapping[str, str]]],
    *,
    seed: int,
    temperature: float | Sequence[float] | None = 1.0,
    max_new_tokens: int | None = None,
    batch: int = 16,
    names: Sequence[str] = (),
) -> list[Spoken]:
    """Speak each (text, labels) once, in order; how depends on it and the seed, not on the others. lm: one that reads
    aloud; temperature: as Sampling has it.

    max_new_tokens: default LONGEST, or what the model's context leaves. names: one each, on which it depends too, so
    that the same text and labels are not spoken alike. InputError for what cannot be spoken.
    """
    spoken = []
    for start in range(0, len(asked), batch):
        piece = asked[start : start + batch]
        prompts = [_prompt(lm, text, labels) for text, labels in piece]
        seeds = [[seed_of(seed, "speak", text, *sorted(f"{k}={v}" for k, v in of.items()))] for text, of in piece]
        if names:
            seeds = [[seed_of(own, name)] for [own], name in zip(seeds, names[start : start + batch], strict=True)]
        sampling = Sampling(max_new_tokens or room(lm, max(map(len, prompts))), temperature)
        for (text, labels), [rollout] in zip(piece, sample_groups(lm, prompts, seeds, sampling), strict=True):
            ids = rollout.tokens.ids
            spoken.append(Spoken(text, dict(labels), lm.decode(ids), lm.layout.read(ids).units))
    return spoken


def _prompt(lm: SpeechLM, text: str, labels: Mapping[str, str]):
    prompt = lm.template.encode(text, labels)
    if lm.context is not None and len(prompt) >= lm.context:
        raise InputError(
            f"text: too long: its prompt has {len(prompt)} tokens, the model's context holds {lm.context}: "
            f"{text[:40]!r} …"
        )
    return prompt


def room(lm: SpeechLM, longest_prompt: int) -> int:
    """How many tokens an answer to a prompt of so many may have, where nobody says: LONGEST, if they fit."""
    most = min(LONGEST, lm.longest_answer or LONGEST)
    return most if lm.context is None else max(1, min(most, lm.context - longest_prompt))
