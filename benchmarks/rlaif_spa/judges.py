"""Judges that cannot help: whoever learns from them is rewarded for something else than the voice.

constant: the same for everyone. transcript_only: knows the words and the labels asked for, and does not listen.
permuted: measures as the prosody reward does, and gives each answer another one's score: that of the released code,
which trains one sample and listens to another.
"""

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from elocute.prosody.measure import measure
from elocute.prosody.schema import load_schema
from elocute.prosody.targets import NotMeasured, Target
from elocute.rewards.prosody import find_targets

EXPRESSIVE = Path("starter/expressive")
MEASURES = {"emotion": ["pitch_median", "pitch_range", "energy"]}


def constant(completions: list) -> list[float]:
    return [1.0] * len(completions)


def transcript_only(prompts: list, labels: list[Mapping[str, str]]) -> list[float]:
    """A number that words and labels decide, and nothing else."""
    return [
        random.Random(f"{prompt[-1]['content']} {sorted(asked.items())}").random()
        for prompt, asked in zip(prompts, labels, strict=True)
    ]


def permuted(
    prompts: list, labels: list[Mapping[str, str]], waveforms: list[np.ndarray], sample_rates: list[int]
) -> list[float]:
    """The prosody reward of the step's answers, shuffled among them; the same answers are shuffled alike."""
    scores = [
        _closeness(waveform, rate, prompt[-1]["content"], asked)
        for prompt, asked, waveform, rate in zip(prompts, labels, waveforms, sample_rates, strict=True)
    ]
    random.Random(repr([len(waveform) for waveform in waveforms])).shuffle(scores)
    return scores


def _closeness(waveform: np.ndarray, rate: int, text: str, asked: Mapping[str, str]) -> float:
    """Mean over the labels; what cannot be measured is as far from them as can be."""
    found = measure(waveform, rate, text)
    try:
        return float(np.mean([_targets()[name].closeness(label, found) for name, label in asked.items()]))
    except NotMeasured:
        return 0.0


@cache
def _targets() -> dict[str, Target]:
    return find_targets(load_schema(EXPRESSIVE / "schema.yaml"), MEASURES, EXPRESSIVE / "recordings.jsonl")
