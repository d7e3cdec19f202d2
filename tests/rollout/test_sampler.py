"""Sampling: what scored is what sampled, whatever else is in the batch."""

import pytest
import torch

from elocute.errors import InputError
from elocute.models import lean, one_stream
from elocute.models.batch import make_batch
from elocute.rollout import Sampling, sample_groups
from elocute.rollout.sampler import draw
from elocute.training.policy import Policy

PROMPTS = [torch.tensor([301, 302, 303]), torch.tensor([301, 400, 401, 402, 403, 404, 405])]
SEEDS = [[1, 2, 3], [4, 5, 6]]


def flat(groups):
    return [rollout for group in groups for rollout in group]


def test_score_equals_sample(tiny_lm):
    sampling = Sampling(24, temperature=0.8)
    rollouts = flat(sample_groups(tiny_lm, PROMPTS, SEEDS, sampling))
    longest = max(len(rollout.tokens) for rollout in rollouts)
    selected = torch.zeros(len(rollouts), longest, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        selected[row, : len(rollout.tokens)] = rollout.tokens.action
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], selected, "cpu")
    logp, _ = Policy(tiny_lm)(batch, 0.8)
    sampled = torch.cat([r.logprob[r.tokens.action] for r in rollouts])
    assert torch.allclose(logp, sampled, atol=1e-5)


def test_defect_09_an_answer_does_not_depend_on_its_batch(tiny_lm):
    sampling = Sampling(16)
    together = flat(sample_groups(tiny_lm, PROMPTS, SEEDS, sampling))
    alone = [
        sample_groups(tiny_lm, [prompt], [[seed]], sampling)[0][0]
        for prompt, seeds in zip(PROMPTS, SEEDS, strict=True)
        for seed in seeds
    ]
    for a, b in zip(together, alone, strict=True):
        assert a.tokens.ids.equal(b.tokens.ids)
        assert torch.allclose(a.logprob, b.logprob, atol=1e-5)


@pytest.mark.parametrize("decoder", [one_stream, lean], ids=["modules", "lean"])
def test_defect_01_a_prompt_is_run_once_for_its_group_and_every_token_once(speaking_lm, monkeypatch, decoder):
    fed = []
    monkeypatch.setattr(lean, "fits", lambda trunk: decoder is lean)
    states = lean.Decoder._states
    monkeypatch.setattr(lean.Decoder, "_states", lambda self, ids: fed.append((len(ids), 1)) or states(self, ids))
    hook = speaking_lm.trunk().register_forward_pre_hook(
        lambda _module, _args, given: fed.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    rollouts = flat(sample_groups(speaking_lm, PROMPTS, SEEDS, Sampling(30)))
    hook.remove()
    lengths = [len(rollout.tokens) for rollout in rollouts]
    assert len(set(lengths)) > 2
    assert fed[0] == (len(PROMPTS), max(map(len, PROMPTS)))  # not one row an answer
    assert all(width == 1 for _rows, width in fed[1:])  # not the answer so far
    assert [rows for rows, _width in fed[1:]] == [sum(n > t + 1 for n in lengths) for t in range(max(lengths) - 1)]


def test_defect_12_truncation_is_flagged(speaking_lm):
    """Cut at any token, an answer that was going well has no end; one whose end is the last token allowed has one."""

    def sample(limit):
        return sample_groups(speaking_lm, PROMPTS[:1], [[7]], Sampling(limit))[0][0]

    whole = sample(60)
    assert whole.broken is None and not whole.truncated and 6 < len(whole.tokens) < 60
    for limit in range(1, len(whole.tokens)):
        rollout = sample(limit)
        assert rollout.truncated and rollout.broken.startswith("no end"), limit
        assert rollout.tokens.ids.equal(whole.tokens.ids[:limit])
    exact = sample(len(whole.tokens))
    assert not exact.truncated and exact.broken is None and exact.tokens.ids.equal(whole.tokens.ids)


def test_an_answer_broken_before_the_limit_is_not_truncated(tiny_lm):
    rollouts = sample_groups(tiny_lm, PROMPTS[:1], [list(range(20))], Sampling(40))[0]
    broken = [rollout for rollout in rollouts if len(rollout.tokens) < 40]
    assert len(broken) > 5
    assert all(rollout.broken and not rollout.truncated for rollout in broken)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (4, 0.7)])
def test_defect_08_log_probs_are_those_of_the_truncated_distribution(top_k, top_p):
    torch.manual_seed(0)
    logits = torch.randn(1, 9).repeat(4000, 1)
    uniform = torch.rand(4000, dtype=torch.float64)
    tokens, logp, _ = draw(logits, uniform, Sampling(1, 1.0, top_k, top_p))
    shares = torch.bincount(tokens, minlength=9) / 4000
    for token in range(9):
        if shares[token] > 0:
            expected = logp[tokens == token][0].exp()
            assert abs(float(shares[token] - expected)) < 0.03
    assert abs(float(sum(logp[tokens == t][0].exp() for t in tokens.unique())) - 1) < 0.02


def test_what_cannot_fit_the_context_is_refused(tiny_lm):
    prompts = [torch.tensor([1, 2, 3]), torch.tensor([1, 2])]
    with pytest.raises(InputError, match=f"expected at most {tiny_lm.context - 3}, got {tiny_lm.context - 2}"):
        sample_groups(tiny_lm, prompts, [[0], [1]], Sampling(tiny_lm.context - 2))
    sample_groups(tiny_lm, prompts, [[0], [1]], Sampling(tiny_lm.context - 3))
