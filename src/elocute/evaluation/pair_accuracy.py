"""acc = mean[1(s⁺ > s⁻) + ½·1(s⁺ = s⁻)] over pairs of utterances, voices averaged before items.

Intervals are over items: Wilson for plain shares, the bootstrap where items are means (several voices) or ties.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elocute.evaluation.statistics import Estimate, bootstrap_mean, wilson
from elocute.evaluation.suites import Pair, Part, Suite

SEED = 0
"""Of the bootstrap."""


@dataclass(frozen=True)
class Item:
    """One item's accuracy, the mean over its pairs."""

    label: str | None
    value: float


def accuracies(suite: Suite, part: Part, scores: Mapping[Path, float]) -> dict[str, Estimate]:
    """The part's metrics. With a gold table: `PART_all`, and `PART_in_vocab` for sWUGGY; else one named as the part.

    in_vocab is the mean of the frequency bands without OOV, weighted by their counts: the mean over their items.
    """
    items = averaged(part.pairs or (), scores)
    if suite.table is None:
        return {part.name: accuracy(items)}
    found = {f"{part.name}_all": accuracy(items)}
    if suite.table == "frequency":
        found[f"{part.name}_in_vocab"] = accuracy([item for item in items if item.label not in (None, "oov")])
    return found


def table(suite: Suite, part: Part, scores: Mapping[Path, float]) -> dict[str, Estimate]:
    """The part's accuracy by label: sWUGGY's by frequency band, sBLIMP's by type; empty for the others."""
    items = averaged(part.pairs or (), scores)
    there = {item.label for item in items if item.label is not None}
    labels = [label for label in suite.labels if label in there] or sorted(there)
    return {label: accuracy([item for item in items if item.label == label]) for label in labels}


def averaged(pairs: Iterable[Pair], scores: Mapping[Path, float]) -> list[Item]:
    """Pairs → items, each the mean over its voices."""
    values, labels = defaultdict(list), {}
    for pair in pairs:
        values[pair.item].append(compare(scores[pair.positive], scores[pair.negative]))
        labels.setdefault(pair.item, pair.label)
    return [Item(labels[item], sum(own) / len(own)) for item, own in values.items()]


def compare(positive: float, negative: float) -> float:
    """1 when the right one scores higher, ½ when both score the same, else 0."""
    return ((positive > negative) + (positive >= negative)) / 2


def accuracy(items: Sequence[Item]) -> Estimate:
    """The mean over items with its interval."""
    values = [item.value for item in items]
    if not values:
        return Estimate(None, 0, None)
    if set(values) <= {0.0, 1.0}:
        return Estimate(sum(values) / len(values), len(values), wilson(int(sum(values)), len(values)))
    mean, *interval = bootstrap_mean(values, SEED)
    return Estimate(mean, len(values), tuple(interval))
