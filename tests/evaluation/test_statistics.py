"""Intervals and tests against brute force, published values and each other's limits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.evaluation import statistics as stats
from elocute.evaluation.statistics import Estimate, jackknife


def test_wilson_known_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert stats.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share_and_is_symmetric(case):
    successes, n = case
    low, high = stats.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert stats.wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))
    # Wilson's bounds are where the score test is exactly at z: (share - bound)² = z² · bound · (1 - bound) / n.
    for bound in {low, high} - {0.0, 1.0}:
        assert (successes / n - bound) ** 2 == pytest.approx(stats.Z95**2 * bound * (1 - bound) / n, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="successes"):
        stats.wilson(successes, n)


def exact_bootstrap(statistic, n):
    """All n^n resamples: what the random bootstrap approaches."""
    return np.quantile([statistic(list(rows)) for rows in itertools.product(range(n), repeat=n)], [0.025, 0.975])


def test_bootstrap_mean_approaches_all_resamples():
    values = np.array([0.1, 0.9, 0.35, 0.6, 0.2])
    mean, low, high = stats.bootstrap_mean(values, seed=3)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(exact_bootstrap(lambda rows: values[rows].mean(), 5), abs=0.02)


def test_bootstrap_ratio_weighs_items_by_their_words():
    errors, words = np.array([0, 2, 1, 5, 0]), np.array([4, 10, 3, 6, 12])
    ratio, low, high = stats.bootstrap_ratio(errors, words, seed=3)
    assert ratio == pytest.approx(8 / 35)  # not the mean of the items' rates
    assert (low, high) == pytest.approx(exact_bootstrap(lambda r: errors[r].sum() / words[r].sum(), 5), abs=0.02)


def test_bootstrap_repeats_with_its_seed_and_not_without():
    values = list(np.random.default_rng(0).normal(size=40))
    assert stats.bootstrap_mean(values, 1) == stats.bootstrap_mean(values, 1)
    assert stats.bootstrap_mean(values, 1) != stats.bootstrap_mean(values, 2)


def test_bootstrap_agrees_with_the_normal_interval_on_many_items():
    values = np.random.default_rng(0).normal(5, 2, size=3000)
    mean, low, high = stats.bootstrap_mean(values, 0)
    half = stats.Z95 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_ratio_survives_wordless_items_but_not_only_those():
    ratio, low, high = stats.bootstrap_ratio([0, 1, 0], [0, 4, 0], seed=0)
    assert (ratio, low, high) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="not all 0"):
        stats.bootstrap_ratio([1, 2], [0, 0], seed=0)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_no_interval_without_finite_numbers(values):
    with pytest.raises(ValueError, match="finite"):
        stats.bootstrap_mean(values, 0)


def test_t_quantile_known_values():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 29: 2.0452, 120: 1.9799}
    for degrees, quantile in table.items():
        assert stats.t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)
    assert stats.t_quantile(100_000) == pytest.approx(stats.Z95, abs=1e-4)


def test_mean_t_interval():
    mean, half = stats.mean_t_interval([56.0, 58.0, 60.0])
    assert (mean, half) == pytest.approx((58.0, 4.30265 * 2 / math.sqrt(3)), abs=1e-4)
    with pytest.raises(ValueError, match="two seeds"):
        stats.mean_t_interval([56.0])


def test_difference_is_newcombes_interval():
    # Newcombe (1998), Statistics in Medicine 17:873, method 10: 56/70 - 48/80 = 0.2 (0.0524, 0.3339).
    before, after = Estimate(48 / 80, 80, stats.wilson(48, 80)), Estimate(56 / 70, 70, stats.wilson(56, 70))
    assert stats.difference(before, after) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    with pytest.raises(ValueError, match="measured"):
        stats.difference(before, Estimate(None, 0, None))


def brute_force_p(a, b):
    deltas = [x - y for x, y in zip(a, b, strict=True)]
    sums = [
        abs(sum(s * d for s, d in zip(signs, deltas, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(deltas))
    ]
    return sum(total >= abs(sum(deltas)) - 1e-9 for total in sums) / len(sums)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=8))
def test_paired_permutation_is_exact_for_few_pairs(pairs):
    a, b = zip(*pairs, strict=True)
    assert stats.paired_permutation(a, b, seed=0) == pytest.approx(brute_force_p(a, b))


def test_paired_permutation_random_flips_approach_the_exact_p():
    generator = np.random.default_rng(5)
    b = generator.normal(size=16)
    a = b + generator.normal(0.4, 1.0, size=16)
    assert stats.paired_permutation(a, b, seed=1) == pytest.approx(brute_force_p(a, b), abs=0.01)
    far = stats.paired_permutation(b + 1 + 0.01 * a, b, seed=1)
    assert 0 < far < 0.001


def test_five_seeds_cannot_reach_five_percent():
    assert stats.paired_permutation([2, 3, 4, 5, 6], [1, 1, 1, 1, 1], seed=0) == 2 / 32


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_against_the_binomial_summed_by_hand(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    n = only_a + only_b
    weights = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(w for w in weights if w <= weights[only_a] * (1 + 1e-9))  # every split as unlikely as this one
    assert stats.mcnemar_exact(a, b) == pytest.approx(expected)
    assert stats.mcnemar_exact(a, b) == stats.mcnemar_exact(b, a)


def test_mcnemar_known_value_and_large_counts():
    a, b = [True] * 10 + [False] * 2 + [True] * 30, [False] * 10 + [True] * 2 + [True] * 30
    assert stats.mcnemar_exact(a, b) == pytest.approx(0.038574, abs=1e-6)
    assert stats.mcnemar_exact([True] * 5000, [False] * 5000) < 1e-300  # no overflow


def test_mcnemar_of_very_many_rows_ends():
    """Binomials of 400,000 are near the normal; as sums of whole coefficients they would take hours."""
    ones, other = 199_500, 200_500
    a, b = [True] * ones + [False] * other, [False] * ones + [True] * other
    z = (other - ones - 1) / math.sqrt(ones + other)
    assert stats.mcnemar_exact(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize("test", [stats.mcnemar_exact, lambda a, b: stats.paired_permutation(a, b, 0)])
def test_paired_tests_need_pairs(test):
    with pytest.raises(ValueError, match="equally many"):
        test([1, 0], [1])


def test_estimate_to_json():
    assert Estimate(0.5, 8, (0.2, np.float64(0.8))).to_json() == {"value": 0.5, "n": 8, "ci95": [0.2, 0.8]}
    assert Estimate(None, 0, None).to_json() == {"value": None, "n": 0, "ci95": None}
    with pytest.raises(ValueError, match="finite"):
        Estimate(float("nan"), 3, (0.0, 1.0)).to_json()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    without = [np.mean(values[:i] + values[i + 1 :]) for i in range(4)]
    half = 1.959963984540054 * np.std(values, ddof=1) / 2
    assert jackknife(4.0, without) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert jackknife(4.0, without, low=3.5, high=4.5) == (3.5, 4.5)
    assert jackknife(4.0, without[:1]) == (4.0, 4.0)
