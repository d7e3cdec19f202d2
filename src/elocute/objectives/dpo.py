"""Preference losses on pairs of answers, from the answers' log-probs under the policy and its reference.

With Δ = [log π(chosen) − log π_ref(chosen)] − [log π(rejected) − log π_ref(rejected)]:

    sigmoid   −(1 − ε)·log σ(β·Δ) − ε·log σ(−β·Δ)    DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7);
                                                     ε > 0: conservative DPO (Mitchell 2023)
    ipo       (Δ − 1/(2β))²                          IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17)
    hinge     max(0, 1 − β·Δ)                        SLiC's loss (Zhao et al. 2023, arXiv 2305.10425) on these rewards

An answer's log-prob is Σ weight·log π over its tokens in scope, or that sum divided by their number. IPO is meant for
the latter, as its authors computed it (TRL does so too): its target 1/(2β) knows nothing of lengths.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from elocute.objectives.precision import wide


@dataclass(frozen=True)
class PairLosses:
    """Of N pairs, all [N]. loss: weight · loss, to be minimised; rewards β·(log π − log π_ref), without gradient."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor

    @property
    def margin(self) -> Tensor:
        """The chosen answer's reward over the rejected one's, β·Δ."""
        return self.chosen_reward - self.rejected_reward


def preference_losses(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> PairLosses:
    """chosen, rejected, ref_chosen, ref_rejected: the answers' log-probs [N]; weights [N]: the pairs', default 1.

    Computed in float32 (float64 for float64 input); gradient to chosen and rejected only. label_smoothing in [0, 0.5):
    the share of preferences taken to be wrong, for `sigmoid` only. Raises ValueError for options that do not fit.
    """
    if loss not in ("sigmoid", "ipo", "hinge"):
        raise ValueError(f"unknown loss {loss!r}, expected sigmoid, ipo or hinge")
    if not beta > 0:
        raise ValueError(f"expected beta > 0, got {beta}")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss != "sigmoid"):
        raise ValueError(f"expected label_smoothing 0, or in [0, 0.5) for sigmoid; got {label_smoothing}")
    chosen_ratio = wide(chosen) - wide(ref_chosen).detach()
    rejected_ratio = wide(rejected) - wide(ref_rejected).detach()
    difference = chosen_ratio - rejected_ratio
    margin = beta * difference
    if loss == "sigmoid":
        losses = -(1 - label_smoothing) * logsigmoid(margin)
        if label_smoothing:
            losses = losses - label_smoothing * logsigmoid(-margin)
    elif loss == "ipo":
        losses = (difference - 1 / (2 * beta)).square()
    else:
        losses = torch.relu(1 - margin)
    if weights is not None:
        losses = losses * wide(weights).detach()
    return PairLosses(losses, beta * chosen_ratio.detach(), beta * rejected_ratio.detach())


def modality_sums(logp: Tensor, text: Tensor) -> Tensor:
    """Log-probs [B, T], 0 where nothing counts, summed over the text and over the speech tokens: float64 [B, 2].

    In float64 whatever comes in: a loss sees the small difference of such sums over hundreds of tokens.
    """
    logp = logp.double()
    return torch.stack([torch.where(text, logp, 0.0).sum(-1), torch.where(text, 0.0, logp).sum(-1)], -1)


def answer_logprobs(sums: Tensor, tokens: Tensor, weights: tuple[float, float], *, length_normalised: bool) -> Tensor:
    """The answers' log-probs [...] from their sums by modality [..., 2] and the modalities' weights (text, speech).

    length_normalised divides by `tokens` [...], the number of tokens in scope: a number of tokens, not of weights, so
    that weights never cancel. An answer without any has the log-prob 0.
    """
    total = weights[0] * sums[..., 0] + weights[1] * sums[..., 1]
    return total / tokens.clamp(min=1) if length_normalised else total
