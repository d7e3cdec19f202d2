"""Is the continuation about what the prompt is about? A judge of 1 to 5 by sentence embeddings (SBERT, 1908.10084)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elocute.data.normalise import normalise
from elocute.rewards.continuation import HIGH, LOW, ContinuationJudge, five_points
from elocute.rewards.embedding import SentenceEncoder
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.packaged import minilm


@dataclass(frozen=True)
class Weights:
    """logit = bias + nearness·(cosine between prompt and continuation)."""

    bias: float
    nearness: float


WEIGHTS = Weights(bias=-1.77, nearness=5.71)
"""For the packaged MiniLM, found by `python -m benchmarks.judge_audit --fit` on half of the audit's topics."""


class RelatednessReward(ContinuationJudge):
    """1 + 4·σ(logit)·(how new)·(how much is said), in [1, 5]; see Weights and continuation.py.

    It reads the topic and hardly the order of words: a second opinion from a model that is not the other judge's.
    path: a local encoder folder, or None: the packaged all-MiniLM-L6-v2, for which the weights were found.
    """

    low, high = LOW, HIGH

    def __init__(self, name: str, path: str | Path | None = None, batch_size: int = 32, device: str | None = None):
        self.name = name
        self.encoder = SentenceEncoder(minilm() if path is None else path, batch_size, device)

    def _judge(self, prompts: list[str], texts: list[str]) -> list[Outcome]:
        signals = self.signals(prompts, texts)
        return [_outcome(*row) for row in zip(signals[:, 0], logits(signals), prompts, texts, strict=True)]

    def signals(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float64 [N, 1]: the cosine between each prompt and its continuation, both in one spelling."""
        vectors = self.encoder.embed([normalise(text) for text in (*prompts, *texts)])
        return (vectors[: len(prompts)] * vectors[len(prompts) :]).sum(1, keepdims=True)


def logits(signals: np.ndarray) -> np.ndarray:
    """float64 [N]."""
    return WEIGHTS.bias + WEIGHTS.nearness * signals[:, 0]


def _outcome(nearness: float, logit: float, prompt: str, text: str) -> Outcome:
    if not np.isfinite(nearness):
        return Unavailable("the model's embedding is not finite")
    score, detail = five_points(float(logit), prompt, text)
    return Scored(score, {"nearness": float(nearness), **detail})
