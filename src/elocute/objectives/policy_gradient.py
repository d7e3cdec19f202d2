"""The policy gradient per token: plain importance ratio, or PPO's clipped surrogate."""

import torch
from torch import Tensor

from elocute.objectives.precision import wide


def policy_gradient(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    *,
    clip: tuple[float, float] | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss per token (to be minimised) and where the clip cut its gradient off; all tensors of one shape.

    With r = exp(logp − old_logp): −r·A, or with clip = (low, high) PPO's −min(r·A, clamp(r, 1 − low, 1 + high)·A)
    (Schulman et al. 2017, eq. 7). old_logp is the policy's own before this rollout's first update; on the first
    update r is 1 and the gradient is −A·∇logp. importance: see truncated_importance. Only logp carries gradient.
    """
    advantage = wide(advantage).detach()
    ratio = torch.exp(wide(logp) - wide(old_logp).detach())
    gain = ratio * advantage
    if clip is None:
        clipped = torch.zeros_like(gain, dtype=torch.bool)
    else:
        low, high = clip
        clipped = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))
        gain = torch.minimum(gain, ratio.clamp(1 - low, 1 + high) * advantage)
    if importance is not None:
        gain = gain * importance.detach()
    return -gain, clipped


def truncated_importance(logp_old: Tensor, sampler_logp: Tensor, cap: float = 2.0) -> Tensor:
    """min(π_old / π_sampler, cap) per token, without gradient.

    The sampler's distribution is not quite the policy's (temperature, top-k, top-p, penalties, another dtype or
    kernel); this weight corrects for it, truncated so that a rare token cannot carry the whole step.
    """
    return torch.exp(wide(logp_old).detach() - wide(sampler_logp).detach()).clamp(max=cap)
