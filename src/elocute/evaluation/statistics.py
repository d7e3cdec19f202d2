"""Intervals and tests for what elocute measures, all at 95 % and two-sided.

Which one: a share of items → `wilson`; a mean over items → `bootstrap_mean`; corpus WER (all errors over all words)
→ `bootstrap_ratio`; a statistic that copies of an item would change → `jackknife`; a mean over a few seeds →
`mean_t_interval`; two systems on the same items → `mcnemar_exact` for right/wrong and `paired_permutation` for any
number. Everything random takes its seed, so a result can be repeated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 10_000
# Up to here all 2^n sign flips are enumerated, which makes the permutation test exact (five seeds: 32 flips).
EXACT_FLIPS = 14


@dataclass(frozen=True)
class Estimate:
    """A measured number over `n` items and its 95 % interval. `value` and `ci95` are None when nothing was measured."""

    value: float | None
    n: int
    ci95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """{"value", "n", "ci95": [low, high]}. ValueError on NaN or infinity, which JSON cannot hold."""
        numbers = [x for x in (self.value, *(self.ci95 or ())) if x is not None]
        if not all(math.isfinite(x) for x in numbers):
            raise ValueError(f"an estimate must be finite, got {self}")
        ci95 = None if self.ci95 is None else [float(bound) for bound in self.ci95]
        return {"value": None if self.value is None else float(self.value), "n": self.n, "ci95": ci95}


def share(hits: Sequence[bool]) -> Estimate:
    """The share of one or more items that are hits, with Wilson's interval."""
    return Estimate(sum(hits) / len(hits), len(hits), wilson(sum(hits), len(hits)))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """(low, high) of a share `successes / n`, by Wilson's score interval (1927): sound also near 0 and 1."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound is exactly 0 or 1, and rounding must not put the share outside its own interval.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap_mean(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """(mean, low, high) by the percentile bootstrap over items. For right/wrong use `wilson`."""
    data = _numbers(values)
    low, high = _percentiles(len(data), seed, lambda rows: data[rows].mean(axis=1))
    return float(data.mean()), low, high


def bootstrap_ratio(errors: Sequence[float], words: Sequence[float], seed: int) -> tuple[float, float, float]:
    """(ratio, low, high) of sum(errors) / sum(words), for corpus WER: items (not words) are resampled, in pairs."""
    top, bottom = _numbers(errors), _numbers(words)
    if len(top) != len(bottom) or (bottom < 0).any() or bottom.sum() == 0:
        raise ValueError("a ratio needs one count of words (>= 0, not all 0) for each count of errors")

    def ratio(rows: np.ndarray) -> np.ndarray:
        total = bottom[rows].sum(axis=1)
        # A resample that drew only wordless items has no rate; the interval is over those that have one.
        return top[rows].sum(axis=1)[total > 0] / total[total > 0]

    low, high = _percentiles(len(top), seed, ratio)
    return float(top.sum() / bottom.sum()), low, high


def jackknife(
    value: float, without: Sequence[float], *, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """(low, high) of a statistic within bounds, from its `value` and its values `without` each of n items (Tukey 1958).

    With less than two items nothing is known about its spread: (value, value).
    """
    n = len(without)
    if n < 2:
        return value, value
    data = _numbers(without)
    half = Z95 * math.sqrt((n - 1) / n * float(((data - data.mean()) ** 2).sum()))
    return max(low, value - half), min(high, value + half)


def mean_t_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width) of a mean over independent runs (seeds), by Student's t. Needs at least two runs."""
    data = _numbers(values)
    if len(data) < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    return float(data.mean()), t_quantile(len(data) - 1) * float(data.std(ddof=1)) / math.sqrt(len(data))


def difference(before: Estimate, after: Estimate) -> tuple[float, float, float]:
    """(after - before, low, high) from the two intervals alone (MOVER: Zou & Donner 2008, equation 4).

    It takes the two as independent; on the same items it is therefore cautious: too wide rather than too narrow.
    """
    if before.value is None or after.value is None or before.ci95 is None or after.ci95 is None:
        raise ValueError("a difference needs two measured values with intervals")
    change = after.value - before.value
    down = math.hypot(after.value - after.ci95[0], before.ci95[1] - before.value)
    up = math.hypot(after.ci95[1] - after.value, before.value - before.ci95[0])
    return change, change - down, change + up


def paired_permutation(a: Sequence[float], b: Sequence[float], seed: int) -> float:
    """p of the mean difference between paired `a` and `b`, by flipping the signs of the differences.

    Exact for up to 14 pairs that differ; beyond that 10,000 random flips and (hits + 1) / (flips + 1), never 0.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired test needs equally many values, got {len(a)} and {len(b)}")
    deltas = _numbers(a) - _numbers(b)
    deltas = deltas[deltas != 0]  # a flipped zero changes nothing
    n = len(deltas)
    if n == 0:
        return 1.0
    # Sums that are equal on paper differ in the last bits, so "as large" needs a tolerance.
    bound = abs(deltas.sum()) - 1e-9 * np.abs(deltas).sum()
    if n <= EXACT_FLIPS:
        signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ deltas) >= bound).mean())
    hits, generator = 0, np.random.default_rng(seed)
    for block in _blocks(n):
        signs = 1 - 2.0 * generator.integers(2, size=(block, n))
        hits += int((np.abs(signs @ deltas) >= bound).sum())
    return (hits + 1) / (RESAMPLES + 1)


def mcnemar_exact(a: Sequence[bool], b: Sequence[bool]) -> float:
    """p that two systems are right equally often on the same items: the exact binomial on those where they disagree.

    The tail is summed from its largest term on, each a ratio of the one before: linear in the items, where whole
    binomial coefficients, of n digits, are not.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired test needs equally many values, got {len(a)} and {len(b)}")
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n, k = only_a + only_b, min(only_a, only_b)
    largest = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    term, tail = 1.0, 1.0
    while k and term > 1e-17 * tail:
        term *= k / (n - k + 1)
        tail += term
        k -= 1
    return min(1.0, 2 * math.exp(largest) * tail)


def t_quantile(degrees: int) -> float:
    """The t with P(|T| < t) = 0.95 at whole `degrees` of freedom: 12.706 at 1, towards 1.960."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 0.95 else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """P(|T| < t): the finite sums of Abramowitz & Stegun 26.7.3 (odd degrees) and 26.7.4 (even degrees)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _numbers(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError("expected a list of one or more finite numbers")
    return data


def _blocks(n: int) -> list[int]:
    """Sizes that add up to RESAMPLES, each small enough that a block of [size, n] stays near 8 MB."""
    size = max(1, 2**20 // n)
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


def _percentiles(n: int, seed: int, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of `statistic`, which maps item numbers [rows, n] to values [≤ rows]."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([statistic(generator.integers(n, size=(block, n))) for block in _blocks(n)])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
