"""Prompts shared by a group are run once: same states, same gradients as every answer behind its own prompt."""

import pytest
import torch

from elocute.models.batch import make_batch, pad_tokens
from elocute.models.layout import Tokens
from elocute.objectives.tokens import scope_mask, token_coefficients


def answer(ids: torch.Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("lengths", [[[1, 1], [1]], [[5, 3, 9], [7]], [[4], [2], [8]]])
def test_shared_prompts_give_the_states_and_gradients_of_joined_rows(tiny_lm, lengths):
    torch.manual_seed(3)
    prompts, answers = [], []
    for index, group in enumerate(lengths):
        prompt = torch.randint(0, 900, (6 + 5 * index,))
        for length in group:
            prompts.append(prompt)
            answers.append(answer(torch.randint(0, 900, (length,))))
    selected = torch.rand(len(answers), 9) < 0.7
    selected[:, 0] = True
    batch = make_batch(prompts, answers, selected, "cpu")
    assert len(batch.prompts) == len(lengths)
    results = []
    for share_prompts in (True, False):
        [found] = tiny_lm.states(batch, share_prompts=share_prompts)
        states = found.hidden
        tiny_lm.model.zero_grad()
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        results.append((states.detach(), [p.grad.clone() for p in tiny_lm.model.parameters() if p.grad is not None]))
    tiny_lm.model.zero_grad()
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    assert len(results[0][1]) == len(results[1][1]) > 10
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_targets_are_the_selected_tokens_in_order(tiny_lm):
    prompts = [torch.tensor([1, 2]), torch.tensor([3])]
    answers = [answer(torch.tensor([10, 11, 12])), answer(torch.tensor([20]))]
    selected = torch.tensor([[True, False, True, True], [True, True, True, True]])
    batch = make_batch(prompts, answers, selected, "cpu")
    assert batch.targets.tolist() == [10, 12, 20]
    assert batch.rows.tolist() == [0, 0, 1] and batch.columns.tolist() == [0, 2, 0]


def test_defect_rlaif_2_token_0_is_trained_as_any_other(tiny_lm):
    """Nor does a mask take it for padding, where rows are of unlike length."""
    answers = [answer(torch.tensor([0, 0, 7])), answer(torch.tensor([0]))]
    padded = pad_tokens(answers)
    scope = scope_mask(padded.text, padded.action, "all")
    assert scope.tolist() == [[True, True, True], [True, False, False]]
    coefficients = token_coefficients(scope, normaliser="token", rows_total=2, tokens_total=int(scope.sum()))
    assert coefficients[scope].tolist() == [0.25] * 4
    batch = make_batch([torch.tensor([3, 2]), torch.tensor([5])], answers, scope, "cpu")
    assert batch.targets.tolist() == [0, 0, 7, 0]
    [found] = tiny_lm.states(batch, share_prompts=True)
    logp = torch.log_softmax(tiny_lm.head()(found.hidden), -1).gather(1, batch.targets[:, None])
    assert all(torch.autograd.grad(p, tiny_lm.head().weight, retain_graph=True)[0].any() for p in logp[:, 0])
