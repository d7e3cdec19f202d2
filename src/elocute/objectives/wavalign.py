"""WavAlign's whole loss (arXiv 2604.14932) on one screen.

    L = (1 − λ)·SFT + λ·PG + β_text·KL_text + β_speech·KL_speech

Each component is Σ coefficient · loss over its own tokens. A coefficient is token_coefficients(…)·modality_weights(…);
a cell whose coefficient is 0 takes no part, whatever stands in it (padding, NaN).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from elocute.objectives.kl import kl_k3
from elocute.objectives.policy_gradient import policy_gradient


@dataclass(frozen=True)
class Component:
    value: Tensor  # Σ coefficient · loss, a scalar with gradient; 0 with a gradient of 0 if there are no tokens
    tokens: int


@dataclass(frozen=True)
class WavAlignLoss:
    """Components stand before λ and β, as in the paper's L_SFT, L_GRPO, KL."""

    total: Tensor
    components: dict[str, Component]  # sft, policy_gradient, and kl_text, kl_speech if there is a reference


def wavalign_loss(
    *,
    lam: float,
    sft_logp: Tensor,
    sft_coefficient: Tensor,
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    coefficient: Tensor,
    clip: tuple[float, float] | None = None,
    importance: Tensor | None = None,
    ref_logp: Tensor | None = None,
    kl_text_coefficient: Tensor | None = None,
    kl_speech_coefficient: Tensor | None = None,
    beta_text: float = 0.0,
    beta_speech: float = 0.0,
) -> WavAlignLoss:
    """The loss of one micro-batch; those of all micro-batches and ranks add up to the step's.

    sft_* are [B', T'] for the supervised targets, the others [B, T] for the rollouts (advantage may be [B, 1]).
    Raises ValueError if a KL has a weight but no reference or coefficient.
    """
    sft = _component(sft_coefficient, lambda logp: -logp, sft_logp)
    inputs = [logp, old_logp, advantage.expand_as(logp)] + ([] if importance is None else [importance])
    gradient = _component(coefficient, lambda p, old, a, w=None: policy_gradient(p, old, a, clip=clip, importance=w)[0],
                          *inputs)
    components = {"sft": sft, "policy_gradient": gradient}
    total = (1 - lam) * sft.value + lam * gradient.value
    for name, beta, kl_coefficient in (
        ("kl_text", beta_text, kl_text_coefficient),
        ("kl_speech", beta_speech, kl_speech_coefficient),
    ):
        if ref_logp is not None and kl_coefficient is not None:
            components[name] = _component(kl_coefficient, kl_k3, logp, ref_logp)
            total = total + beta * components[name].value
        elif beta:
            raise ValueError(f"{name} has weight {beta}, but no reference log-probs or no coefficients")
    return WavAlignLoss(total, components)


def _component(coefficient: Tensor, loss: Callable[..., Tensor], *per_token: Tensor) -> Component:
    takes_part = coefficient != 0  # selected before the loss, for 0 · NaN is NaN, in the gradient too
    losses = loss(*(values[takes_part] for values in per_token))
    return Component((coefficient[takes_part] * losses).sum(), int(takes_part.sum()))
