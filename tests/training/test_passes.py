"""A cut into passes holds every row once, none too large, and no more padding than any cut of the rows as they come."""

import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from elocute.recipe import load_recipe
from elocute.training import preference_update
from elocute.training.pairs import Pair
from elocute.training.passes import Limits, cut
from elocute.training.policy import Policy
from elocute.training.update import Rows, Update
from tests.training.update_twin import make_answers

PROMPTS = [torch.zeros(n) for n in (3, 40, 200)]


def cells(piece, prompts, lengths, share: bool, answers: int) -> int:
    """Of one pass, padding included."""
    asked = [prompts[row] for row in piece] * answers
    count = len({id(prompt) for prompt in asked}) if share else len(asked)
    return len(asked) * max(lengths[row] for row in piece) + count * max(map(len, asked))


def cost(pieces, prompts, lengths, limits, share, answers) -> float:
    """Of a whole cut; infinite where a pass of several rows is too large."""
    total = 0.0
    for piece in pieces:
        one = cells(piece, prompts, lengths, share, answers)
        large = answers * len(piece) > limits.rows or one > limits.cells
        total += math.inf if large and len(piece) > 1 else one + limits.alone
    return total


def all_runs(order):
    for marks in itertools.product([False, True], repeat=len(order) - 1):
        ends = [0, *(place for place, mark in enumerate(marks, 1) if mark), len(order)]
        yield [order[slice(*pair)] for pair in itertools.pairwise(ends)]


@given(
    given_rows=st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(1, 400)), min_size=1, max_size=7),
    rows=st.integers(1, 7),
    most=st.sampled_from([1, 300, 1000, math.inf]),
    alone=st.sampled_from([0, 16, 64]),
    share=st.booleans(),
    answers=st.integers(1, 2),
)
def test_a_cut_is_no_worse_than_any_cut_of_the_sorted_rows_nor_better_by_one_move(
    given_rows, rows, most, alone, share, answers
):
    prompts, lengths = (list(values) for values in zip(*given_rows, strict=True))
    limits = Limits(rows, most, alone)
    found = cut(prompts, lengths, limits, share_prompts=share, answers=answers)
    assert sorted(row for piece in found for row in piece) == list(range(len(lengths)))
    of = (prompts, lengths, limits, share, answers)
    names = [id(prompt) for prompt in prompts]
    by_length = sorted(range(len(lengths)), key=lambda row: (lengths[row], names.index(names[row])))
    least = cost(found, *of)
    assert least <= min(cost(pieces, *of) for pieces in all_runs(by_length))
    for here, there in itertools.permutations(range(len(found)), 2):
        for row in found[here]:
            moved = [list(piece) for piece in found]
            moved[here].remove(row)
            moved[there].append(row)
            assert cost([piece for piece in moved if piece], *of) >= least


def test_nothing_is_cut_into_nothing():
    assert cut([], [], Limits.of("cpu", 4)) == []


def test_answers_of_like_length_stand_together_unless_their_prompt_is_long():
    """Two prompts, each with two short answers and two long ones, at most four a pass."""
    for length, together in ((10, {(0, 1, 4, 5), (2, 3, 6, 7)}), (1000, {(0, 1, 2, 3), (4, 5, 6, 7)})):
        first, second = torch.zeros(length), torch.zeros(length)
        found = cut([first] * 4 + [second] * 4, [50, 51, 150, 151] * 2, Limits(4, math.inf, 64))
        assert {tuple(sorted(piece)) for piece in found} == together


RECIPE = load_recipe("recipes/starter/wavalign.yaml", ["run_dir=unused", "optim.micro_batch=4"])


def answer_of(lm, length: int):
    answer = make_answers(lm.layout, torch.Generator().manual_seed(0))[0]
    return type(answer)(*(values.repeat(length)[:length] for values in (answer.ids, answer.text, answer.action)))


@pytest.mark.parametrize(("device", "passes"), [("cpu", 4), ("cuda", 1)])
def test_on_a_cpu_a_pass_is_no_larger_than_pays(tiny_lm, device, passes):
    """Four answers of 1,000 tokens to a prompt of 100, at most 2,048 cells; on a GPU, micro_batch says how many."""
    update = Update(RECIPE, Policy(tiny_lm), None, Accelerator(cpu=True))
    update.device = torch.device(device)
    prompt = torch.zeros(100, dtype=torch.long)
    assert len(update._pieces(Rows.of([prompt] * 4, [answer_of(tiny_lm, 1000)] * 4))) == passes


@pytest.mark.parametrize(("shared", "passes"), [(True, 1), (False, 2)])
def test_passes_are_cut_as_the_policy_runs_prompts(tiny_lm, shared, passes):
    """Four answers of 10 tokens to a prompt of 1,000, which is run once for all of them, or for each."""
    policy, accelerator = Policy(tiny_lm, share_prompts=shared), Accelerator(cpu=True)
    prompt, answer = torch.zeros(1000, dtype=torch.long), answer_of(tiny_lm, 10)
    update = Update(RECIPE, policy, None, accelerator)
    assert len(update._pieces(Rows.of([prompt] * 4, [answer] * 4))) == passes
    pairs = [Pair(prompt, answer, answer)] * 2
    assert len(preference_update.pieces(RECIPE, policy, pairs, accelerator.device)) == passes
