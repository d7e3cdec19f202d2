"""A cut has the fewest cells of all cuts, and no pass is too large."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.recipe import load_recipe
from elocute.training.passes import PASS, cut
from elocute.training.update import Rows, Update
from tests.training.test_update import make_answers

PROMPTS = [torch.zeros(n) for n in (3, 40, 200)]


def worked(prompts, lengths, share: bool) -> int:
    """The cells of one pass, padding included."""
    count = len({id(prompt) for prompt in prompts}) if share else len(prompts)
    return len(lengths) * max(lengths) + count * max(map(len, prompts))


def cost(pieces, prompts, lengths, rows, cells, share) -> float:
    """Of a whole cut; infinite where a pass of several rows is too large."""
    total = 0.0
    for piece in pieces:
        one = worked(prompts[piece], lengths[piece], share)
        count = len(lengths[piece])
        total += math.inf if count > rows or (one > cells and count > 1) else one + PASS
    return total


def all_cuts(count: int):
    for marks in itertools.product([False, True], repeat=count - 1):
        ends = [0, *(place for place, mark in enumerate(marks, 1) if mark), count]
        yield [slice(*pair) for pair in itertools.pairwise(ends)]


@given(
    given_rows=st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(1, 400)), min_size=1, max_size=7),
    rows=st.integers(1, 7),
    cells=st.sampled_from([1, 300, 1000, math.inf]),
    share=st.booleans(),
)
def test_no_cut_has_fewer_cells(given_rows, rows, cells, share):
    prompts, lengths = (list(values) for values in zip(*given_rows, strict=True))
    found = cut(prompts, lengths, rows=rows, cells=cells, share_prompts=share)
    assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(len(lengths)))
    of = (prompts, lengths, rows, cells, share)
    assert cost(found, *of) == min(cost(pieces, *of) for pieces in all_cuts(len(lengths)))


def test_nothing_is_cut_into_nothing():
    assert cut([], [], rows=4, cells=100) == []


@pytest.mark.parametrize(("device", "passes"), [("cpu", 4), ("cuda", 1)])
def test_on_a_cpu_a_pass_is_no_larger_than_pays(tiny_lm, device, passes):
    """Four answers of 1,000 tokens to a prompt of 100, at most 2,048 cells; on a GPU, micro_batch says how many."""
    recipe = load_recipe("recipes/starter/wavalign.yaml", ["run_dir=unused", "optim.micro_batch=4"])
    update = Update.__new__(Update)
    update.recipe, update.device = recipe, torch.device(device)
    answer = make_answers(tiny_lm.layout, torch.Generator().manual_seed(0))[0]
    long = type(answer)(*(values.repeat(1000)[:1000] for values in (answer.ids, answer.text, answer.action)))
    prompt = torch.zeros(100, dtype=torch.long)
    assert len(update._pieces(Rows.of([prompt] * 4, [long] * 4))) == passes
