import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.policy_gradient import policy_gradient, truncated_importance

logps = st.floats(-8, 0)
advantages = st.floats(-3, 3, allow_subnormal=False)  # so small that products round to equal, they tell no side


def twin(logp, old, advantage, clip, importance):
    """One token, plain Python."""
    ratio = math.exp(logp - old)
    gain = ratio * advantage
    if clip is not None:
        gain = min(gain, min(max(ratio, 1 - clip[0]), 1 + clip[1]) * advantage)
    return -gain * importance


@given(logps, logps, advantages, st.sampled_from([None, (0.2, 0.2), (0.2, 0.28)]), st.floats(0, 2))
def test_equals_the_twin(logp, old, advantage, clip, importance):
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (logp, old, advantage)]
    weight = torch.tensor([importance], dtype=torch.float64)
    tensors[0].requires_grad_()
    loss, clipped = policy_gradient(*tensors, clip=clip, importance=weight)
    assert loss.item() == pytest.approx(twin(logp, old, advantage, clip, importance), rel=1e-9, abs=1e-12)
    loss.sum().backward()
    if clipped.item():
        assert tensors[0].grad.item() == 0
    else:  # d/dlogp of ratio·A is itself
        assert tensors[0].grad.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)


def test_on_policy_the_gradient_is_the_advantage():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, clipped = policy_gradient(logp, logp.detach(), torch.tensor([2.0, -0.5]), clip=(0.2, 0.2))
    loss.sum().backward()
    assert loss.tolist() == [-2.0, 0.5] and logp.grad.tolist() == [-2.0, 0.5] and not clipped.any()


def test_clipped_only_where_the_advantage_pushes_further_out():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, clipped = policy_gradient(ratio.log(), torch.zeros(4), advantage, clip=(0.2, 0.2))
    assert clipped.tolist() == [True, False, False, True]


def test_only_logp_carries_gradient():
    logp, old, advantage, importance = (torch.full((3,), -0.5, requires_grad=True) for _ in range(4))
    policy_gradient(logp, old, advantage, importance=importance)[0].sum().backward()
    assert logp.grad is not None and old.grad is None and advantage.grad is None and importance.grad is None
    assert not truncated_importance(logp, old).requires_grad


def test_gradcheck():
    logp = torch.tensor([-0.3, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.tensor([-0.35, -2.0, -0.5]).double(), torch.tensor([1.0, 1.0, -1.0]).double()
    assert torch.autograd.gradcheck(lambda p: policy_gradient(p, old, advantage, clip=(0.2, 0.2))[0], logp)


def test_bf16_is_computed_in_float32():
    logp, old = torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.5], dtype=torch.bfloat16)
    loss, _ = policy_gradient(logp, old, torch.tensor([1.0], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([-math.exp(0.5)]))


def test_importance_is_truncated():
    weights = truncated_importance(torch.tensor([0.0, -1.0, -3.0]), torch.tensor([-3.0, -1.0, -1.0]), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, math.exp(-2)]))


@pytest.mark.parametrize("cap", [math.inf, 1.2])
def test_answers_of_an_older_policy_are_weighed_to_the_gradient_of_the_new_one(cap):
    """Over all tokens, each as often as the older policy says it: uncapped it is ∇E_π[A], capped min(π, cap·π_old)."""
    draw = torch.Generator().manual_seed(0)
    logits, older, advantage = (torch.randn(9, generator=draw, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    logp, sampler = torch.log_softmax(logits, -1), torch.log_softmax(older, -1)
    loss, _ = policy_gradient(logp, logp, advantage, importance=truncated_importance(logp, sampler, cap))
    (ours,) = torch.autograd.grad((sampler.exp() * loss).sum(), logits, retain_graph=True)
    seen = torch.minimum(logp.exp(), cap * sampler.exp()).detach()
    (theirs,) = torch.autograd.grad(-(seen * logp * advantage).sum(), logits, retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    (true,) = torch.autograd.grad(-(logp.exp() * advantage).sum(), logits)
    assert torch.allclose(ours, true) == math.isinf(cap)
