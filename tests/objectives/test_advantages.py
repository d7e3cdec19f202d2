import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.advantages import group_advantages, group_variance

rewards_and_mask = st.integers(1, 6).flatmap(
    lambda g: st.lists(
        st.tuples(
            st.lists(st.floats(-10, 10, width=32), min_size=g, max_size=g),
            st.lists(st.booleans(), min_size=g, max_size=g),
        ),
        min_size=1,
        max_size=4,
    )
)


def twin(rewards, available, baseline, scale, eps=1e-4):
    """One group, plain Python."""
    seen = [r for r, there in zip(rewards, available, strict=True) if there]
    out = []
    for index, (reward, there) in enumerate(zip(rewards, available, strict=True)):
        if not there or len(seen) < 2:
            out.append(0.0)
            continue
        others = [r for j, r in enumerate(rewards) if available[j] and j != index]
        base = statistics.fmean(others if baseline == "leave_one_out" else seen)
        out.append((reward - base) / (statistics.pstdev(seen) + eps if scale == "std" else 1.0))
    return out


@given(rewards_and_mask, st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(["std", "none"]))
def test_equals_the_twin_whatever_stands_in_unavailable_cells(groups, baseline, scale):
    rewards = torch.tensor([g[0] for g in groups], dtype=torch.float64)
    available = torch.tensor([g[1] for g in groups])
    expected = torch.tensor([twin(*g, baseline, scale) for g in groups], dtype=torch.float64)
    for junk in (math.nan, math.inf, -1e30):
        dirty = torch.where(available, rewards, junk)
        ours = group_advantages(dirty, available, baseline=baseline, scale=scale)
        torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-9)
        assert (ours[~available] == 0).all()


@given(rewards_and_mask)
def test_groups_do_not_see_each_other_and_variance_is_the_population_one(groups):
    rewards = torch.tensor([g[0] for g in groups], dtype=torch.float32)
    available = torch.tensor([g[1] for g in groups])
    together = group_advantages(rewards, available)
    alone = torch.cat([group_advantages(rewards[i : i + 1], available[i : i + 1]) for i in range(len(groups))])
    assert torch.equal(together, alone)
    for variance, row, mask in zip(group_variance(rewards, available), rewards, available, strict=True):
        seen = row[mask].tolist()
        assert variance.item() == pytest.approx(statistics.pvariance(seen) if seen else 0.0, abs=1e-9)


def test_the_known_case():
    advantages = group_advantages(torch.tensor([[5.0, 4.0, 4.0, 3.0]]), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(advantages, torch.tensor([[1.0, 0, 0, -1.0]]) / (math.sqrt(0.5) + 1e-4))


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((1, 7), 0.1)  # the mean of seven 0.1 is not 0.1 in floating point
    assert not group_advantages(rewards, torch.ones(1, 7, dtype=torch.bool)).any()


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="median"):
        group_advantages(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), baseline="median")
