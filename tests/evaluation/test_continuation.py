"""Measures of continuations against naive twins that follow the definitions word by word."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.evaluation.continuation import (
    auto_bleu_gslm,
    auto_bleu_slamkit,
    distinct,
    gen_ppl,
    gen_ppl_slamkit,
    mean_estimate,
    ngrams,
    seq_rep,
)
from elocute.evaluation.statistics import bootstrap_mean, bootstrap_ratio

sequences = st.lists(st.integers(0, 3), max_size=14)


def runs(sequence, n):
    return [tuple(sequence[place : place + n]) for place in range(len(sequence) - n + 1)]


def naive_gslm(sequence, n, mean):
    """What stands left of an n-gram and what stands right of it, each cut into n-grams of its own."""
    shares = []
    for order in range(1, n + 1):
        grams = runs(sequence, order)
        found = sum(
            gram in runs(sequence[:place], order) + runs(sequence[place + order :], order)
            for place, gram in enumerate(grams)
        )
        shares.append(found / len(grams) if grams else 0)
    return sum(shares) / n if mean == "arithmetic" else np.prod(shares) ** (1 / n)


def naive_slamkit(sequence, n):
    grams = runs(sequence, n)
    found = sum(gram in grams[:place] + grams[place + 1 :] for place, gram in enumerate(grams))
    return found / len(grams) if grams else 0


@given(sequences, st.integers(1, 4))
def test_auto_bleu_as_the_naive_twins(sequence, n):
    for mean in ("arithmetic", "geometric"):
        assert auto_bleu_gslm(sequence, n, mean=mean) == pytest.approx(naive_gslm(sequence, n, mean))
    assert auto_bleu_slamkit(sequence, n) == pytest.approx(naive_slamkit(sequence, n))
    assert ngrams(sequence, n) == runs(sequence, n)
    assert ngrams(tuple("abcab"), 2) == runs("abcab", 2)


def test_auto_bleu_by_hand():
    words = "the cat saw the cat".split()
    # one word: the ×2, cat ×2 of 5; two words: "the cat" twice of 4
    assert auto_bleu_gslm(words, 1) == 4 / 5
    assert auto_bleu_gslm(words) == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert auto_bleu_gslm(words, mean="geometric") == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert auto_bleu_slamkit(words) == 2 / 4


def test_where_the_two_definitions_part():
    """In a a a the two bigrams overlap: SlamKit finds both repeated, GSLM neither."""
    assert auto_bleu_slamkit("aaa") == 1
    assert auto_bleu_gslm("aaa") == pytest.approx((1 + 0) / 2)
    assert auto_bleu_gslm("aaaa") == pytest.approx((1 + 2 / 3) / 2)  # the middle one overlaps both others


@pytest.mark.parametrize("sequence", [[], ["a"], "a"])
def test_what_is_too_short_does_not_repeat_itself(sequence):
    assert auto_bleu_gslm(sequence) == auto_bleu_slamkit(sequence) == seq_rep(sequence, 4) == 0
    assert auto_bleu_gslm(sequence, mean="geometric") == 0


def test_seq_rep_by_hand():
    assert seq_rep("abcabc", 3) == 1 - 3 / 4  # abc bca cab abc
    assert seq_rep("aaaaaa", 4) == 1 - 1 / 3
    assert seq_rep("abcd", 4) == 0


def naive_distinct(parts, n):
    grams = [gram for part in parts for gram in runs(part, n)]
    return len(set(grams)) / len(grams)


@given(st.lists(sequences, max_size=8), st.integers(1, 2))
def test_distinct_and_its_jackknife_as_the_naive_twin(parts, n):
    found = distinct(parts, n)
    own = [part for part in parts if len(part) >= n]
    assert found.n == len(own)
    if not own:
        assert found.to_json() == {"value": None, "n": 0, "ci95": None}
        return
    assert found.value == pytest.approx(naive_distinct(own, n))
    low, high = found.ci95
    assert 0 <= low <= found.value <= high <= 1
    if len(own) < 2:
        assert low == found.value == high
        return
    without = np.array([naive_distinct(own[:i] + own[i + 1 :], n) for i in range(len(own))])
    half = 1.959963984540054 * math.sqrt((len(own) - 1) / len(own) * ((without - without.mean()) ** 2).sum())
    assert (low, high) == (pytest.approx(max(0, found.value - half)), pytest.approx(min(1, found.value + half)))


def test_gen_ppl_by_hand():
    rows = [[-1.0, -2.0, -3.0], [-4.0], []]
    found, slamkit = gen_ppl(rows), gen_ppl_slamkit(rows)
    assert found.value == pytest.approx(math.exp(10 / 4)) and found.n == 2
    assert slamkit.value == pytest.approx(math.exp((2 + 4) / 2)) and slamkit.n == 2
    assert found.ci95 == tuple(math.exp(bound) for bound in bootstrap_ratio([6, 4], [3, 1], 0)[1:])
    assert slamkit.ci95 == tuple(math.exp(bound) for bound in bootstrap_mean([2, 4], 0)[1:])


def test_nothing_measured_is_nothing_and_never_nan():
    nothing = {"value": None, "n": 0, "ci95": None}
    for estimate in (gen_ppl([[], []]), gen_ppl([]), gen_ppl_slamkit([[]]), mean_estimate([]), distinct([[], []], 1)):
        assert estimate.to_json() == nothing
