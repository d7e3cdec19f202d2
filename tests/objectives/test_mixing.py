import json
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.objectives.mixing import AdaptiveMixing, FixedMixing, raw_lambda

groups = st.integers(1, 6).flatmap(
    lambda g: st.lists(
        st.tuples(st.lists(st.floats(1, 5), min_size=g, max_size=g), st.lists(st.booleans(), min_size=g, max_size=g)),
        min_size=1,
        max_size=4,
    )
)


def tensors(groups):
    return torch.tensor([g[0] for g in groups], dtype=torch.float64), torch.tensor([g[1] for g in groups])


def twin(groups, k=5.0, lambda_max=0.8):
    """On the paper's 1–5 scale, plain Python."""
    raws = []
    for rewards, available in groups:
        seen = [r for r, there in zip(rewards, available, strict=True) if there]
        if seen:
            v = min(1.0, statistics.pvariance(seen) / 4)
            raws.append(lambda_max * v / (1 + math.exp(-k * (max(seen) - 3))))
    return statistics.fmean(raws) if raws else None


@given(groups)
def test_equals_the_twin(groups):
    raw = raw_lambda(*tensors(groups), low=1, high=5)
    expected = twin(groups)
    if expected is None:
        assert raw.value is None and not raw.counted.any()
    else:
        assert raw.value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_papers_example_gives_a_tenth():
    everyone = torch.ones(1, 4, dtype=torch.bool)
    raw = raw_lambda(torch.tensor([[5.0, 4.0, 4.0, 3.0]]), everyone, low=1, high=5)
    assert raw.value == pytest.approx(0.1, abs=1e-4)
    assert raw.information_gate.item() == pytest.approx(0.125)
    assert raw_lambda(torch.full((1, 4), 5.0), everyone, low=1, high=5).value == 0  # uniformly good
    assert raw_lambda(torch.tensor([[1.0, 1, 5, 5]]), everyone, low=1, high=5).value == pytest.approx(0.8, abs=1e-4)


@given(groups, st.floats(0.01, 100), st.floats(-100, 100))
def test_any_affine_scale_gives_the_same_lambda(groups, a, b):
    rewards, available = tensors(groups)
    here = raw_lambda(rewards, available, low=1, high=5)
    there = raw_lambda(a * rewards + b, available, low=a + b, high=5 * a + b)
    torch.testing.assert_close(there.per_prompt, here.per_prompt, atol=1e-6, rtol=1e-6)


@given(groups, st.randoms(use_true_random=False))
def test_order_and_unavailable_cells_change_nothing(groups, random):
    rewards, available = tensors(groups)
    value = raw_lambda(rewards, available, low=1, high=5).value
    dirty = torch.where(available, rewards, math.nan)
    assert raw_lambda(dirty, available, low=1, high=5).value == value
    order = list(range(len(groups)))
    random.shuffle(order)
    assert raw_lambda(rewards[order], available[order], low=1, high=5).value == pytest.approx(value)


def test_a_prompt_the_judge_never_answered_does_not_count():
    rewards = torch.tensor([[1.0, 5.0], [math.nan, math.nan]])
    available = torch.tensor([[True, True], [False, False]])
    raw = raw_lambda(rewards, available, low=1, high=5)
    assert raw.value == pytest.approx(0.8, abs=1e-4)
    assert raw.counted.tolist() == [True, False]
    assert raw.per_prompt.isfinite().all() and raw.reward_gate.isfinite().all()


def test_an_empty_range_is_an_error():
    with pytest.raises(ValueError, match="low < high"):
        raw_lambda(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), low=1, high=1)


def adaptive(ema=0.9):
    return AdaptiveMixing(lambda_max=0.8, ema=ema, sharpness=5.0, low=1.0, high=5.0)


def test_ema():
    mixing = adaptive()
    assert mixing.update(None) == 0.0  # nothing was judged yet
    assert mixing.update(0.4) == 0.4  # the first is raw
    assert mixing.update(0.0) == pytest.approx(0.36)
    assert mixing.update(None) == pytest.approx(0.36)
    assert mixing.update(0.1) == pytest.approx(0.1 * 0.1 + 0.9 * 0.36)
    plain = adaptive(ema=0.0)
    assert [plain.update(raw) for raw in (0.4, 0.0, 0.1)] == [0.4, 0.0, 0.1]


def test_raw_uses_the_mixings_own_scale():
    rewards, everyone = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    mixing = AdaptiveMixing(lambda_max=0.5, ema=0.9, sharpness=5.0, low=0.0, high=1.0)
    assert mixing.raw(rewards, everyone).value == pytest.approx(0.5, abs=1e-4)


def test_fixed():
    mixing = FixedMixing(0.3)
    assert [mixing.update(raw) for raw in (None, 0.9)] == [0.3, 0.3]
    FixedMixing(0.3).load_state_dict(json.loads(json.dumps(mixing.state_dict())))
    with pytest.raises(InputError, match="0.3"):
        FixedMixing(0.5).load_state_dict(mixing.state_dict())


@given(st.lists(st.floats(0, 0.8), min_size=1, max_size=20), st.integers(0, 20))
def test_defect_10_lambda_survives_a_checkpoint_to_the_last_bit(raws, cut):
    whole, before = adaptive(), adaptive()
    expected = [whole.update(raw) for raw in raws]
    first = [before.update(raw) for raw in raws[:cut]]
    after = adaptive()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert first + [after.update(raw) for raw in raws[cut:]] == expected


def test_defect_10_lambda_is_one_number_and_its_horizon_is_optimiser_steps():
    """However a step's prompts are cut into micro-batches or ranks, the step's raw λ and so λ_t are the same."""
    torch.manual_seed(0)
    steps = 1 + 4 * torch.rand(5, 6, 4, dtype=torch.float64)
    everyone = torch.ones(6, 4, dtype=torch.bool)
    one, cut = adaptive(), adaptive()
    for rewards in steps:
        lam = one.update(raw_lambda(rewards, everyone, low=1, high=5).value)
        pieces = [raw_lambda(rewards[i : i + 2], everyone[i : i + 2], low=1, high=5) for i in (0, 2, 4)]
        gathered = torch.cat([piece.per_prompt[piece.counted] for piece in pieces])
        assert cut.update(float(gathered.mean())) == pytest.approx(lam, rel=1e-12)
    decay = adaptive()
    decay.update(1.0)
    assert [decay.update(0.0) for _ in range(10)][-1] == pytest.approx(0.9**10)  # 10 updates are 10 steps
