"""How likely a text LM finds the continuation: the perplexity feedback of Align-SLM (arXiv 2411.01834)."""

import math
from pathlib import Path

import numpy as np

from elocute.rewards.continuation import ContinuationJudge
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.text_likelihood import TextLM


class PerplexityReward(ContinuationJudge):
    """1 / perplexity = exp(mean log p a token) of the continuation given the prompt's words, in [0, 1].

    path: a local causal LM folder, or None: the packaged SmolLM2-135M-Instruct. `detail` holds the mean in nats and the
    number of tokens. Repetition raises it (docs/continuation-judges.md): pairs need a gate against it.
    """

    low, high = 0.0, 1.0

    def __init__(self, name: str, path: str | Path | None = None, batch_size: int = 16, device: str | None = None):
        self.name = name
        self.lm = TextLM(path, batch_size, device)

    def _judge(self, prompts: list[str], texts: list[str]) -> list[Outcome]:
        return [_outcome(row) for row in self.lm.log_probs(prompts, texts)]


def _outcome(log_probs: np.ndarray) -> Outcome:
    if not np.isfinite(log_probs).all():
        return Unavailable("the model's likelihood is not finite")
    mean = float(log_probs.mean())
    return Scored(min(math.exp(mean), 1.0), {"nats_a_token": -mean, "tokens": len(log_probs)})
