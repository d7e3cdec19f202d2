import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.kl import kl_k3


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_equals_the_twin_and_is_never_negative(logp, ref):
    ours = kl_k3(torch.tensor(logp, dtype=torch.float64), torch.tensor(ref, dtype=torch.float64)).item()
    assert ours == pytest.approx(math.expm1(ref - logp) - (ref - logp), rel=1e-9, abs=1e-15)
    assert ours >= 0
    narrow = kl_k3(torch.tensor(logp, dtype=torch.float32), torch.tensor(ref, dtype=torch.float32))
    assert narrow >= 0 and narrow.dtype == torch.float32


def test_gradient_goes_to_the_policy_only():
    logp = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
    kl_k3(logp, ref).sum().backward()
    torch.testing.assert_close(logp.grad, 1 - torch.exp(ref.detach() - logp.detach()))
    assert ref.grad is None
    assert torch.autograd.gradcheck(lambda p: kl_k3(p, ref.detach()), logp)


def test_its_mean_over_the_policys_samples_is_the_kl():
    torch.manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(20, dtype=torch.float64), 0) for _ in range(2))
    mean = (p.exp() * kl_k3(p, q)).sum()  # the expectation, in full
    torch.testing.assert_close(mean, (p.exp() * (p - q)).sum())


def test_bf16_inputs_are_widened_before_the_difference():
    logp, ref = torch.tensor([-0.0078125], dtype=torch.bfloat16), torch.tensor([-5.03125], dtype=torch.bfloat16)
    difference = -5.03125 + 0.0078125  # needs more digits than bf16 has
    torch.testing.assert_close(kl_k3(logp, ref), torch.tensor([math.expm1(difference) - difference]), atol=0, rtol=1e-6)
