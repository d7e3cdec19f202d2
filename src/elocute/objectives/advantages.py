"""Advantages within a group of samples of the same prompt (GRPO, RLOO)."""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor,
    available: Tensor,
    *,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-4,
) -> Tensor:
    """(R − baseline) / (population std + eps) for every sample of every group: [P, G], in the rewards' dtype.

    rewards [P, G] for P prompts and G samples; available [P, G], False where the judge gave no score: such a sample
    leaves the group's statistics, whatever stands in its cell, and gets 0. A group with fewer than two available
    samples, or with equal ones, gets zeros. The leave-one-out baseline is the mean of the *other* samples.
    """
    if baseline not in ("mean", "leave_one_out") or scale not in ("std", "none"):
        raise ValueError(f"unknown baseline {baseline!r} or scale {scale!r}")
    centred, count = _centred(rewards, available)
    advantages = centred * count / (count - 1).clamp(min=1) if baseline == "leave_one_out" else centred
    if scale == "std":
        std = (centred.square().sum(-1, keepdim=True) / count.clamp(min=1)).sqrt()
        advantages = advantages / (std + eps)
    return torch.where(count >= 2, advantages, 0.0).to(rewards.dtype)


def group_variance(rewards: Tensor, available: Tensor) -> Tensor:
    """Population variance of the available rewards of each group, [P] in float64; 0 where none is available."""
    centred, count = _centred(rewards, available)
    return (centred.square().sum(-1, keepdim=True) / count.clamp(min=1)).squeeze(-1)


def _centred(rewards: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean in float64, 0 where unavailable: [P, G]; and the available count: [P, 1]."""
    count = available.sum(-1, keepdim=True)
    values = rewards.double()
    # Measured from the group's lowest reward, equal rewards are exactly 0, not rounding noise divided by eps.
    lowest = torch.where(available, values, torch.inf).amin(-1, keepdim=True)
    above = torch.where(available, values - lowest, 0.0)
    mean = above.sum(-1, keepdim=True) / count.clamp(min=1)
    return torch.where(available, above - mean, 0.0), count
