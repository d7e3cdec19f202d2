"""Tiled log-probs and exact KL against a float64 twin that builds the whole rows × vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.objectives import logprobs
from elocute.objectives.logprobs import exact_kl, selected_logprobs

N, V, D = 13, 37, 6


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of a few columns, so that every test crosses tiles (the last one ragged)."""
    monkeypatch.setattr(logprobs, "_TILE_ELEMENTS", 40)


def problem(seed=0, n=N, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(n, D, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (n,), generator=generator)
    upstream = torch.randn(n, generator=generator)
    return hidden, weight, bias, targets, upstream


def twin(hidden, weight, targets, bias=None, temperature=1.0):
    hidden, weight, bias = (None if t is None else t.detach().double().requires_grad_() for t in (hidden, weight, bias))
    table = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) / temperature, -1)
    entropy = -(table.exp() * table).sum(-1)
    return table.gather(1, targets[:, None])[:, 0], entropy, (hidden, weight, bias)


@pytest.mark.parametrize("n", [1, 4, D, N])  # up to D rows the logits wait in the weight gradient, beyond they cannot
@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 100])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_entropy_and_gradients_equal_the_twin(n, chunk_rows, with_bias, temperature):
    hidden, weight, bias, targets, upstream = problem(n=n)
    bias = bias if with_bias else None
    logp, entropy = selected_logprobs(
        hidden, weight, targets, bias=bias, temperature=temperature, chunk_rows=chunk_rows, with_entropy=True
    )
    expected, expected_entropy, leaves = twin(hidden, weight, targets, bias, temperature)
    assert logp.dtype == torch.float32 and not entropy.requires_grad
    torch.testing.assert_close(logp.double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=5e-6, rtol=1e-5)
    (logp * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for ours, theirs in zip((hidden, weight, bias), leaves, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("n", [4, N])
def test_gradcheck_in_float64(n):
    hidden, weight, bias, targets, _ = problem(n=n, dtype=torch.float64)

    def logp(hidden, weight, bias):
        return selected_logprobs(hidden, weight, targets, bias=bias, temperature=0.8)

    assert torch.autograd.gradcheck(logp, (hidden, weight, bias))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both but bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    hidden, weight, bias, targets, upstream = problem()
    whole = torch.autograd.grad(
        (selected_logprobs(hidden, weight, targets, bias=bias) * upstream).sum(), (hidden, weight, bias)
    )
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    (selected_logprobs(hidden, weight, targets, bias=bias) * upstream).sum().backward()
    for tensor, expected in zip((hidden, weight, bias), whole, strict=True):
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, expected)
        else:
            assert tensor.grad is None


def test_a_frozen_head_never_gets_a_buffer_of_its_size(monkeypatch):
    hidden, weight, _, targets, _ = problem()
    weight.requires_grad_(False)
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: pytest.fail("a weight gradient was allocated"))
    selected_logprobs(hidden, weight, targets).sum().backward()


def test_bf16_statistics_are_float32():
    hidden, weight, _, targets, upstream = problem(dtype=torch.bfloat16, scale=4.0)
    logp, entropy = selected_logprobs(hidden, weight, targets, with_entropy=True)
    expected, expected_entropy, leaves = twin(hidden, weight, targets)
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-5)  # bf16 logits would be off by 0.1
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=2e-5, rtol=1e-5)
    (logp * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for ours, theirs in zip((hidden, weight), leaves, strict=False):
        assert ours.grad.dtype == torch.bfloat16
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=2e-2, rtol=1e-2)


def test_autocast_does_not_round_the_logits():
    hidden, weight, _, targets, _ = problem(scale=4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp = selected_logprobs(hidden, weight, targets)
    torch.testing.assert_close(logp, selected_logprobs(hidden, weight, targets), atol=0, rtol=0)


def test_large_logits_stay_finite():
    hidden, weight, _, targets, upstream = problem(scale=1e4)
    logp = selected_logprobs(hidden, weight, targets)
    expected, _, _ = twin(hidden, weight, targets)
    torch.testing.assert_close(logp.double(), expected, atol=0.1, rtol=1e-5)
    (logp * upstream).sum().backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_no_rows_give_zero_gradients_not_none():
    hidden, weight, bias, _, _ = problem(n=0)
    empty = torch.zeros(0, dtype=torch.long)
    logp, entropy = selected_logprobs(hidden, weight, empty, bias=bias, with_entropy=True)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + exact_kl(hidden, weight, hidden, weight).sum()).backward()
    assert hidden.grad.shape == (0, D)
    assert not weight.grad.any() and not bias.grad.any()


@pytest.mark.parametrize("n", [4, N])
def test_a_second_backward_over_the_same_graph_is_the_same(n):
    hidden, weight, _, targets, upstream = problem(n=n)
    loss = (selected_logprobs(hidden, weight, targets) * upstream).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(first, again)


def test_non_contiguous_head():
    hidden, weight, _, targets, _ = problem(n=4)
    turned = weight.detach().t().contiguous().t().requires_grad_()
    selected_logprobs(hidden, weight, targets).sum().backward()
    selected_logprobs(hidden, turned, targets).sum().backward()
    torch.testing.assert_close(turned.grad, weight.grad)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), cut=st.integers(0, N), order=st.permutations(range(N)))
def test_splitting_and_order_of_rows_change_nothing(seed, cut, order):
    hidden, weight, _, targets, upstream = problem(seed)
    whole = selected_logprobs(hidden, weight, targets)
    gradient = torch.autograd.grad((whole * upstream).sum(), weight)[0]
    parts = [torch.tensor(order[:cut], dtype=torch.long), torch.tensor(order[cut:], dtype=torch.long)]
    total = torch.zeros_like(weight)
    for part in parts:
        logp = selected_logprobs(hidden[part], weight, targets[part])
        torch.testing.assert_close(logp, whole[part], atol=1e-6, rtol=1e-6)
        total += torch.autograd.grad((logp * upstream[part]).sum(), weight)[0]
    torch.testing.assert_close(total, gradient, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("bad", [-1, -100, V])
def test_a_target_outside_the_vocabulary_is_an_error(bad):
    hidden, weight, _, targets, _ = problem()
    targets[3] = bad
    with pytest.raises(ValueError, match="targets"):
        selected_logprobs(hidden, weight, targets)


def test_shapes_that_do_not_fit_are_errors():
    hidden, weight, _, targets, _ = problem()
    with pytest.raises(ValueError, match="one per row"):
        selected_logprobs(hidden, weight, targets[1:])
    with pytest.raises(ValueError, match="hidden"):
        selected_logprobs(hidden[:, 1:], weight, targets)
    with pytest.raises(ValueError, match="temperature"):
        selected_logprobs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match="reference"):
        exact_kl(hidden, weight, hidden[1:], weight)


def test_defect_02_rows_times_vocabulary_is_never_built(monkeypatch):
    """No tensor made on the way, forward or backward, is as large as rows × vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows, vocabulary, width = 64, 512, 64  # the weight gradient itself is as large: V × D
    monkeypatch.setattr(logprobs, "_TILE_ELEMENTS", 2048)
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape != (vocabulary, width):
                    largest.append(tensor.numel())
            return out

    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with Watch():
        selected_logprobs(hidden, weight, targets, with_entropy=True)[0].sum().backward()
        exact_kl(hidden, weight, hidden.detach(), weight.detach() + 1).sum().backward()
    assert largest and max(largest) < rows * vocabulary / 4


def kl_twin(hidden, weight, ref_hidden, ref_weight, temperature):
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    p = torch.log_softmax(hidden @ weight.t() / temperature, -1)
    q = torch.log_softmax(ref_hidden.double() @ ref_weight.double().t() / temperature, -1)
    return (p.exp() * (p - q)).sum(-1), (hidden, weight)


@pytest.mark.parametrize("chunk_rows", [None, 1, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_kl_equals_the_twin(chunk_rows, temperature, dtype):
    hidden, weight, _, _, upstream = problem(dtype=dtype)
    generator = torch.Generator().manual_seed(9)
    ref_hidden = torch.randn(N, D + 2, generator=generator).to(dtype).requires_grad_()
    ref_weight = torch.randn(V, D + 2, generator=generator).to(dtype).requires_grad_()
    kl = exact_kl(hidden, weight, ref_hidden, ref_weight, temperature=temperature, chunk_rows=chunk_rows)
    expected, leaves = kl_twin(hidden, weight, ref_hidden.detach(), ref_weight.detach(), temperature)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), expected, atol=5e-6, rtol=1e-5)
    (kl * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert ref_hidden.grad is None and ref_weight.grad is None
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 1e-2}
    for ours, theirs in zip((hidden, weight), leaves, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **tolerance)


def test_exact_kl_gradcheck_and_zero_against_itself():
    hidden, weight, _, _, _ = problem(n=5, dtype=torch.float64)
    ref_hidden, ref_weight, _, _, _ = problem(seed=1, n=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: exact_kl(h, w, ref_hidden, ref_weight), (hidden, weight))
    itself = exact_kl(hidden, weight, hidden, weight)
    torch.testing.assert_close(itself, torch.zeros_like(itself), atol=1e-12, rtol=0)
    gradient = torch.autograd.grad(itself.sum(), (hidden, weight))
    assert all(g.abs().max() < 1e-12 for g in gradient)
