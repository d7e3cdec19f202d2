"""Does the continuation follow from the prompt? A judge of 1 to 5 from a text LM's likelihoods, with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elocute.data.normalise import normalise
from elocute.rewards.continuation import HIGH, LOW, ContinuationJudge, five_points
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.text_likelihood import TextLM

FLUENT = -4.5
"""Nats a token: about the mean of a simple story without punctuation. What is likelier is no better, or else what fits
every story would win, which is the likeliest of all. Chosen among −3.5 … −5 where the weights were found."""


@dataclass(frozen=True)
class Weights:
    """logit = bias + fluency·min(mean log p of a token given the prompt, FLUENT) + relevance·(its mean gain from the
    prompt)."""

    bias: float
    fluency: float
    relevance: float


WEIGHTS = Weights(bias=6.62, fluency=1.46, relevance=0.47)
"""For the packaged SmolLM2, found by `python -m benchmarks.judge_audit --fit` on half of the audit's topics."""


class CoherenceReward(ContinuationJudge):
    """1 + 4·σ(logit)·(how new)·(how much is said), in [1, 5]; see Weights and continuation.py.

    relevance is pointwise mutual information a token: log p(text | prompt) − log p(text). Both texts are read in lower
    case without punctuation, so that the ear's spelling does not count. `detail` holds every signal, in nats a token.
    path: a local causal LM folder, or None: the packaged SmolLM2-135M-Instruct, for which the weights were found.
    """

    low, high = LOW, HIGH

    def __init__(self, name: str, path: str | Path | None = None, batch_size: int = 16, device: str | None = None):
        self.name = name
        self.lm = TextLM(path, batch_size, device)

    def _judge(self, prompts: list[str], texts: list[str]) -> list[Outcome]:
        signals = self.signals(prompts, texts)
        return [_outcome(*row) for row in zip(signals, logits(signals), prompts, texts, strict=True)]

    def signals(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float64 [N, 2]: fluency and relevance, in nats a token."""
        prompts, texts = list(map(normalise, prompts)), list(map(normalise, texts))
        given = self.lm.log_probs(prompts, texts)
        alone = self.lm.log_probs([""] * len(texts), texts)
        rows = [(g.mean(), g.mean() - a.mean()) for g, a in zip(given, alone, strict=True)]
        return np.array(rows).reshape(-1, 2)


def features(signals: np.ndarray) -> np.ndarray:
    """float64 [N, 2]: what the weights multiply."""
    return np.minimum(signals, [FLUENT, np.inf])


def logits(signals: np.ndarray) -> np.ndarray:
    """float64 [N]."""
    return WEIGHTS.bias + features(signals) @ [WEIGHTS.fluency, WEIGHTS.relevance]


def _outcome(signals: np.ndarray, logit: float, prompt: str, text: str) -> Outcome:
    if not np.isfinite(signals).all():
        return Unavailable("the model's likelihood is not finite")
    score, detail = five_points(float(logit), prompt, text)
    return Scored(score, {"fluency": float(signals[0]), "relevance": float(signals[1]), **detail})
