"""Preference losses against a twin in plain Python floats, and against TRL's formulas written out."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.dpo import answer_logprobs, modality_sums, preference_losses
from elocute.objectives.tokens import scope_mask

LOSSES = [("sigmoid", 0.0), ("sigmoid", 0.1), ("sigmoid", 0.4), ("ipo", 0.0), ("hinge", 0.0)]
logprob = st.floats(-300, 0)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def twin(chosen, rejected, ref_chosen, ref_rejected, beta, loss, smoothing) -> float:
    difference = (chosen - ref_chosen) - (rejected - ref_rejected)
    if loss == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return max(0.0, 1 - beta * difference)
    return (1 - smoothing) * softplus(-beta * difference) + smoothing * softplus(beta * difference)


def doubles(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize(("loss", "smoothing"), LOSSES)
@given(st.lists(st.tuples(logprob, logprob, logprob, logprob, st.floats(0, 5)), max_size=4), st.floats(0.01, 2))
def test_losses_and_rewards_are_the_twins(loss, smoothing, pairs, beta):
    columns = [[pair[i] for pair in pairs] for i in range(5)]
    *logps, weights = doubles(*columns)
    found = preference_losses(*logps, beta=beta, loss=loss, label_smoothing=smoothing, weights=weights)
    expected = [pair[4] * twin(*pair[:4], beta, loss, smoothing) for pair in pairs]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    rewards = [(beta * (c - rc), beta * (r - rr)) for c, r, rc, rr, _ in pairs]
    assert found.chosen_reward.tolist() == pytest.approx([c for c, _ in rewards], rel=1e-9, abs=1e-9)
    assert found.rejected_reward.tolist() == pytest.approx([r for _, r in rewards], rel=1e-9, abs=1e-9)
    assert found.margin.tolist() == pytest.approx([c - r for c, r in rewards], rel=1e-9, abs=1e-9)


def trl_loss(chosen, rejected, ref_chosen, ref_rejected, mask, beta, loss, smoothing):
    """TRL's DPOTrainer (1.16) on per-token log-probs [N, T] and their masks, and conservative DPO, which it dropped."""
    scores = [
        ((ours - theirs) * here).sum(1)
        for ours, theirs, here in zip((chosen, rejected), (ref_chosen, ref_rejected), mask, strict=True)
    ]
    delta = scores[0] - scores[1]
    if loss == "hinge":
        return torch.relu(1 - beta * delta)
    if loss == "ipo":
        averages = [score / here.sum(1).clamp(min=1.0) for score, here in zip(scores, mask, strict=True)]
        return (averages[0] - averages[1] - 1 / (2 * beta)) ** 2
    positive = torch.nn.functional.logsigmoid(beta * delta)
    negative = torch.nn.functional.logsigmoid(-beta * delta)
    return -positive * (1 - smoothing) - negative * smoothing


@pytest.mark.parametrize(("loss", "smoothing"), LOSSES)
def test_equals_trl_on_the_same_log_probs(loss, smoothing):
    torch.manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = -4 * torch.rand(4, 5, 9, dtype=torch.float64)
    lengths = torch.tensor([[9, 4, 1, 7, 2], [3, 9, 8, 0, 2]])
    masks = torch.arange(9) < lengths[..., None]
    text = torch.rand(5, 9) < 0.5  # all weights are 1: the modality makes no difference
    scored = [
        answer_logprobs(
            modality_sums(logp * mask, text), mask.sum(-1), (1.0, 1.0), length_normalised=loss == "ipo"
        )
        for logp, mask in zip((chosen, rejected, ref_chosen, ref_rejected), [*masks, *masks], strict=True)
    ]  # fmt: skip
    ours = preference_losses(*scored, beta=0.3, loss=loss, label_smoothing=smoothing)
    theirs = trl_loss(chosen, rejected, ref_chosen, ref_rejected, masks, 0.3, loss, smoothing)
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_equals_trl_itself(loss):
    """Where it is installed: its trainer's own loss, on log-probs that stand for a model's."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    torch.manual_seed(0)
    policy, reference = -4 * torch.rand(2, 10, 9, dtype=torch.float64)  # five chosen answers, then the rejected ones
    mask = torch.arange(9) < torch.randint(1, 10, (10, 1))
    answers = [
        answer_logprobs(
            modality_sums(logp * mask, mask), mask.sum(1), (1.0, 1.0), length_normalised=loss == "ipo"
        ).view(2, 5)
        for logp in (policy, reference)
    ]  # fmt: skip
    ours = preference_losses(*answers[0], *answers[1], beta=0.3, loss=loss).loss.mean()
    options = {"loss_types": [loss], "loss_weights": [1.0], "beta": 0.3, "label_smoothing": 0.0, "ld_alpha": None}
    options |= {"f_divergence_type": "reverse_kl", "use_weighting": False, "precompute_ref_logps": True}
    stands_for = MagicMock(**options, aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1)
    stands_for.accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    scored = {"log_probs": policy * mask, "entropies": torch.zeros(10, 9), "mean_logits": torch.zeros(10, 9)}
    scored |= {"entropy": torch.zeros(10, 9), "is_top1": mask, "logits": None, "loss": None}
    sums = (reference * mask).sum(1)
    inputs = {"input_ids": torch.zeros(10, 10, dtype=torch.long), "attention_mask": torch.ones(10, 10)}
    inputs |= {"completion_mask": torch.cat([torch.zeros(10, 1, dtype=torch.long), mask.long()], 1)}
    inputs |= {"ref_chosen_logps": sums[:5], "ref_rejected_logps": sums[5:]}
    model = MagicMock(return_value=SimpleNamespace(**scored, num_correct_tokens=torch.tensor(1)))
    theirs = trainer._compute_loss(stands_for, model, inputs, False)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize(("loss", "smoothing"), LOSSES)
def test_gradient_goes_to_the_policy_only(loss, smoothing):
    torch.manual_seed(1)
    chosen, rejected, ref_chosen, ref_rejected = (-9 * torch.rand(4, 6, dtype=torch.float64)).unbind(0)
    for tensor in (chosen, rejected, ref_chosen, ref_rejected):
        tensor.requires_grad_(True)
    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)

    def loss_of(c, r):
        options = {"beta": 0.2, "loss": loss, "label_smoothing": smoothing, "weights": weights}
        return preference_losses(c, r, ref_chosen, ref_rejected, **options).loss

    assert torch.autograd.gradcheck(loss_of, (chosen, rejected))
    loss_of(chosen, rejected).sum().backward()
    assert chosen.grad.abs().sum() > 0
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    assert ref_chosen.grad is ref_rejected.grad is weights.grad is None


def test_far_from_the_reference_nothing_overflows():
    chosen = torch.tensor([0.0, -1e6, 1e6], requires_grad=True)
    found = preference_losses(chosen, torch.zeros(3), torch.zeros(3), torch.zeros(3), beta=1.0)
    found.loss.sum().backward()
    assert found.loss.tolist() == pytest.approx([math.log(2), 1e6, 0.0])
    assert chosen.grad.tolist() == pytest.approx([-0.5, -1.0, 0.0])


def test_narrow_log_probs_are_widened_before_the_difference():
    narrow = [torch.tensor([value], dtype=torch.bfloat16) for value in (-100.5, -101.0, -100.0, -102.0)]
    found = preference_losses(*narrow, beta=1.0)
    assert found.loss.dtype == torch.float32
    assert found.margin.item() == (-100.5 + 100.0) - (-101.0 + 102.0)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 0.1, "loss": "robust"},
        {"beta": 0.1, "label_smoothing": 0.5},
        {"beta": 0.1, "label_smoothing": 0.1, "loss": "ipo"},
        {"beta": 0.1, "label_smoothing": 0.1, "loss": "hinge"},
    ],
)
def test_options_that_do_not_fit_are_refused(options):
    one = torch.zeros(1)
    with pytest.raises(ValueError):
        preference_losses(one, one, one, one, **options)


# answers' log-probs

tokens = st.lists(st.tuples(st.floats(-20, 0), st.booleans(), st.booleans()), max_size=8)


def score(rows, scope, weights, *, length_normalised, width=8):
    """rows: each answer's (log-prob, text, action) by token; scored as training does it."""
    logp = torch.zeros(len(rows), width, dtype=torch.float64)
    text, action = torch.zeros(2, len(rows), width, dtype=torch.bool).unbind(0)
    for i, row in enumerate(rows):
        for t, (value, is_text, is_action) in enumerate(row):
            logp[i, t], text[i, t], action[i, t] = value, is_text, is_action
    selected = scope_mask(text, action, scope)
    sums = modality_sums(torch.where(selected, logp, 0.0), text)
    weights = (weights[0] * (scope != "speech"), weights[1] * (scope != "text"))
    return answer_logprobs(sums, selected.sum(-1), weights, length_normalised=length_normalised)


@pytest.mark.parametrize("scope", ["all", "text", "speech"])
@pytest.mark.parametrize("length_normalised", [False, True])
@given(st.lists(tokens, min_size=1, max_size=4), st.tuples(st.floats(0, 3), st.floats(0, 3)))
def test_an_answers_log_prob_is_the_twins(scope, length_normalised, rows, weights):
    found = score(rows, scope, weights, length_normalised=length_normalised).tolist()
    for value, row in zip(found, rows, strict=True):
        counted = [(v, t) for v, t, action in row if action and (scope == "all" or t == (scope == "text"))]
        total = math.fsum(v * weights[0 if t else 1] for v, t in counted)
        assert value == pytest.approx(total / max(1, len(counted)) if length_normalised else total, rel=1e-9, abs=1e-9)


@given(st.lists(tokens, min_size=2, max_size=4), st.data())
def test_padding_and_order_are_invisible(rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    plain = score(rows, "all", (1.0, 0.5), length_normalised=True)
    moved = score([rows[i] for i in order], "all", (1.0, 0.5), length_normalised=True, width=13)
    torch.testing.assert_close(moved, plain[order], rtol=1e-12, atol=1e-12)


@given(tokens, st.floats(0.1, 5))
def test_weights_do_not_cancel_in_the_length(row, factor):
    one = score([row], "all", (1.0, 0.5), length_normalised=True)
    more = score([row], "all", (factor, 0.5 * factor), length_normalised=True)
    torch.testing.assert_close(more, factor * one)


@pytest.mark.parametrize("length_normalised", [False, True])
def test_an_empty_scope_gives_zero_and_a_gradient_of_zero(length_normalised):
    logp = torch.full((2, 3), -2.0, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    sums = modality_sums(torch.where(nothing, logp, 0.0), nothing)
    scored = answer_logprobs(sums, nothing.sum(-1), (1.0, 1.0), length_normalised=length_normalised)
    assert scored.tolist() == [0.0, 0.0]
    preference_losses(scored[:1], scored[1:], *doubles([0.0], [0.0]), beta=0.1).loss.sum().backward()
    assert logp.grad.tolist() == [[0.0] * 3] * 2


def test_hundreds_of_tokens_are_summed_without_losing_digits():
    torch.manual_seed(2)
    logp = -7 * torch.rand(1, 4000)
    found = modality_sums(logp, torch.ones(1, 4000, dtype=torch.bool))
    assert found.tolist()[0] == pytest.approx([math.fsum(logp[0].double().tolist()), 0.0], rel=1e-14)
