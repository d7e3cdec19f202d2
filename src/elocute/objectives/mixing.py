"""λ, the share of the policy gradient in (1 − λ)·SFT + λ·RL: adaptive (WavAlign, arXiv 2604.14932) or fixed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elocute.errors import InputError
from elocute.objectives.advantages import group_variance


@dataclass(frozen=True)
class RawLambda:
    """λ before smoothing. A prompt none of whose samples has a reward is not counted; its gates and λ are 0."""

    value: float | None  # mean of per_prompt over counted prompts; None if there is none
    information_gate: Tensor  # v [P], 0..1: do the samples differ, so that there is something to prefer?
    reward_gate: Tensor  # g [P], 0..1: is the best sample any good?
    per_prompt: Tensor  # λ_max·g·v [P]
    counted: Tensor  # bool [P]


def raw_lambda(
    rewards: Tensor,
    available: Tensor,
    *,
    low: float,
    high: float,
    lambda_max: float = 0.8,
    sharpness: float = 5.0,
) -> RawLambda:
    """λ_max·g·v for each prompt and its mean; rewards and available are [P, G], rewards lie in [low, high].

    v = clip(Var(R) / ((high − low)/2)², 0, 1), population variance; g = σ(k'·(R_max − (low + high)/2)). `sharpness` is
    the paper's code's k = 5 on its 1–5 scale; k' = k·4/(high − low) makes λ the same on every scale. All prompts of
    an optimiser step, over all ranks, belong into one call, so that λ is one number.
    """
    if not low < high:
        raise ValueError(f"expected low < high, got {low} and {high}")
    counted = available.any(-1)
    information = (group_variance(rewards, available) / ((high - low) / 2) ** 2).clamp(0, 1)
    best = torch.where(available, rewards.double(), -torch.inf).amax(-1)
    reward = torch.sigmoid(sharpness * 4 / (high - low) * (best - (low + high) / 2))
    per_prompt = lambda_max * reward * information
    value = float(per_prompt[counted].mean()) if counted.any() else None
    return RawLambda(value, information, reward, per_prompt, counted)


@dataclass
class AdaptiveMixing:
    """λ_t = (1 − ema)·raw + ema·λ_{t−1}, the first λ being its raw value; ema = 0 smooths nothing.

    `update` is called once per optimiser step, never per micro-batch or rank: the horizon 1/(1 − ema) is in steps.
    """

    lambda_max: float
    ema: float
    sharpness: float
    low: float
    high: float
    value: float | None = field(default=None, init=False)

    def raw(self, rewards: Tensor, available: Tensor) -> RawLambda:
        scale = {"low": self.low, "high": self.high, "lambda_max": self.lambda_max, "sharpness": self.sharpness}
        return raw_lambda(rewards, available, **scale)

    def update(self, raw: float | None) -> float:
        """This step's λ. Without any reward (None) λ stays; before the first one it is 0, supervised only."""
        if raw is not None:
            self.value = raw if self.value is None else (1 - self.ema) * raw + self.ema * self.value
        return self.value if self.value is not None else 0.0

    def state_dict(self) -> dict[str, float | None]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.value = state["value"]


@dataclass
class FixedMixing:
    """λ is the recipe's, whatever the rewards."""

    value: float

    def update(self, raw: float | None) -> float:
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if state["value"] != self.value:
            raise InputError(f"mixing: the checkpoint has λ = {state['value']}, the recipe {self.value}")
