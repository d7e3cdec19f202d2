"""KL(policy ‖ reference) estimated on the sampled tokens; the exact one over the vocabulary is in logprobs.py."""

import torch
from torch import Tensor

from elocute.objectives.precision import wide


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """exp(d) − d − 1 with d = ref_logp − logp, per token, in float32; gradient to logp only (Schulman's k3).

    Never negative, and unbiased for samples of the policy. But its tail is heavy: where the reference finds a token
    far likelier than the policy, exp(d) grows without bound (d = 10 gives 22,015), and a single such token can rule a
    batch; in bf16 d itself would be rounded by more than the KL's size. Hence float32, and no clamp: a clamp would
    remove the gradient exactly where the policy has left the reference. Its gradient, 1 − exp(d), is not that of the
    exact KL: where that matters, use exact_kl.
    """
    difference = wide(ref_logp).detach() - wide(logp)
    return torch.expm1(difference) - difference  # expm1: exp(d) − 1 would lose all digits of a small d
