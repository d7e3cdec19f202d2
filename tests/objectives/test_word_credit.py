"""Word-level credit against a twin in plain Python floats."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from elocute.objectives.word_credit import at_times, word_advantages

GROUPS = st.integers(1, 5).flatmap(
    lambda words: st.lists(
        st.tuples(st.booleans(), st.lists(st.booleans(), min_size=words, max_size=words)), min_size=1, max_size=5
    )
)
"""A group's answers: was it judged, and which of its words were right?"""


def twin(group, baseline="mean", scale="std") -> list[list[float]]:
    found = []
    for i, (judged, words) in enumerate(group):
        found.append([])
        for k in range(len(words)):
            column = [float(of[k]) for there, of in group if there]
            others = [float(of[k]) for j, (there, of) in enumerate(group) if there and j != i]
            if not judged or len(column) < 2:
                found[-1].append(0.0)
                continue
            mean = sum(column) / len(column)
            std = math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
            against = mean if baseline == "mean" else sum(others) / len(others)
            found[-1].append((float(words[k]) - against) / (std + 1e-4 if scale == "std" else 1))
    return found


def tensors(group):
    return torch.tensor([words for _, words in group]).double(), torch.tensor([judged for judged, _ in group])


@given(GROUPS, st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(["std", "none"]))
def test_a_words_advantage_is_the_twins(group, baseline, scale):
    ours = word_advantages(*tensors(group), baseline=baseline, scale=scale)
    assert torch.allclose(ours, torch.tensor(twin(group, baseline, scale), dtype=torch.float64), atol=1e-9)


@given(GROUPS)
def test_wrong_words_lose_what_right_ones_gain(group):
    right, there = tensors(group)
    found = word_advantages(right, there)
    assert torch.allclose(found.sum(0), torch.zeros(right.shape[1], dtype=torch.float64), atol=1e-9)
    assert not found[~there].any()
    for column, values in zip(right[there].T, found[there].T, strict=True):
        if len(set(column.tolist())) < 2:  # all right or all wrong: nothing to learn from
            assert not values.any()
        else:
            assert (values[column == 1] > 0).all() and (values[column == 0] < 0).all()


SPANS = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.floats(-3, 3)), max_size=5)


@given(SPANS, st.lists(st.floats(0, 3) | st.just(math.nan), min_size=1, max_size=8))
def test_a_token_has_the_mean_of_the_words_that_sound_then(words, times):
    spans = [(start, start + length) for start, length, _ in words]
    expected = []
    for time in times:
        there = [value for (start, end), (*_, value) in zip(spans, words, strict=True) if start <= time < end]
        expected.append(sum(there) / len(there) if there else 0.0)
    found = at_times(
        torch.tensor([value for *_, value in words], dtype=torch.float64),
        torch.tensor(spans, dtype=torch.float64).view(-1, 2),
        torch.tensor(times, dtype=torch.float64),
    )
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
