"""Measures of continuations: do they repeat themselves, how varied are they, how likely does a text LM find them.

A sequence is a list of units, or of the words of a transcript. Published auto-BLEU is of words.
- `auto_bleu_gslm` (Lakhotia et al. 2021, arXiv 2102.01192): for each order 1 … n the share of n-grams that also occur
  elsewhere in the sequence without overlapping; the orders' mean, arithmetic or geometric.
- `auto_bleu_slamkit` (Maimon et al. 2025, arXiv 2502.15814): the share of n-grams that occur more than once, overlaps
  count; bigrams only.
- `seq_rep` (Welleck et al. 2020, arXiv 1908.04319): 1 − different n-grams / n-grams.
- `distinct` (Li et al. 2016, arXiv 1510.03055): different n-grams / n-grams, over all sequences together.
- `gen_ppl`: exp of the mean NLL of a token.
Where a sequence is too short for one n-gram, nothing repeats: its share is 0.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from elocute.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_ratio, jackknife

SEED = 0
"""Of the bootstrap."""


def auto_bleu_gslm(
    sequence: Sequence[Hashable], n: int = 2, mean: Literal["arithmetic", "geometric"] = "arithmetic"
) -> float:
    """In [0, 1]; 0 for a sequence of less than two items."""
    shares = [_repeated_apart(ngrams(sequence, order), order) for order in range(1, n + 1)]
    return sum(shares) / n if mean == "arithmetic" else math.prod(shares) ** (1 / n)


def auto_bleu_slamkit(sequence: Sequence[Hashable], n: int = 2) -> float:
    """In [0, 1]; 0 for a sequence of less than n + 1 items."""
    grams = ngrams(sequence, n)
    counts = Counter(grams)
    return sum(count for count in counts.values() if count > 1) / len(grams) if grams else 0.0


def seq_rep(sequence: Sequence[Hashable], n: int) -> float:
    """In [0, 1]; 0 for a sequence of less than n + 1 items."""
    grams = ngrams(sequence, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(sequences: Sequence[Sequence[Hashable]], n: int) -> Estimate:
    """Over the sequences that have an n-gram; the interval is the jackknife's, for resampling makes copies."""
    parts = [Counter(grams) for sequence in sequences if (grams := ngrams(sequence, n))]
    if not parts:
        return Estimate(None, 0, None)
    holders = Counter(gram for part in parts for gram in part)
    different, total = len(holders), sum(part.total() for part in parts)
    without = [
        (different - sum(holders[gram] == 1 for gram in part)) / rest
        for part in parts
        if (rest := total - part.total())
    ]
    return Estimate(different / total, len(parts), jackknife(different / total, without, low=0.0, high=1.0))


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean with its bootstrap interval; nothing was measured where there are no values."""
    if not values:
        return Estimate(None, 0, None)
    value, *interval = bootstrap_mean(values, SEED)
    return Estimate(value, len(values), tuple(interval))


def gen_ppl(log_probs: Sequence[Sequence[float]]) -> Estimate:
    """exp(−Σ log p / tokens) over all tokens of all transcripts; transcripts are resampled.

    log_probs: of each transcript's tokens. Those without tokens take no part; n says how many do.
    """
    scored = [row for row in log_probs if len(row)]
    if not scored:
        return Estimate(None, 0, None)
    nll, tokens = [-math.fsum(row) for row in scored], [len(row) for row in scored]
    return _exp(bootstrap_ratio(nll, tokens, SEED), len(scored))


def gen_ppl_slamkit(log_probs: Sequence[Sequence[float]]) -> Estimate:
    """exp of the mean over transcripts of each one's mean token NLL: short ones weigh as much as long ones."""
    means = [-math.fsum(row) / len(row) for row in log_probs if len(row)]
    return _exp(bootstrap_mean(means, SEED), len(means)) if means else Estimate(None, 0, None)


def ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple]:
    """All runs of n neighbours, in order."""
    return list(zip(*(sequence[start:] for start in range(n)), strict=False))


def _repeated_apart(grams: list[tuple], order: int) -> float:
    """The share of n-grams that occur again at least `order` places away."""
    first = {gram: place for place, gram in reversed(list(enumerate(grams)))}
    last = {gram: place for place, gram in enumerate(grams)}
    repeated = sum(
        place - first[gram] >= order or last[gram] - place >= order for place, gram in enumerate(grams)
    )  # fmt: skip
    return repeated / len(grams) if grams else 0.0


def _exp(estimate: tuple[float, float, float], n: int) -> Estimate:
    value, low, high = map(math.exp, estimate)
    return Estimate(value, n, (low, high))
