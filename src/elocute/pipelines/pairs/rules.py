"""Which of a prompt's candidates become pairs: by WavAlign (best against worst), Align-SLM (thresholds), or by rank.

Candidates are ranked by score; ties by the semantic, then the acoustic score, then the shorter answer (in characters;
without words, in seconds), then the key. No two stand at the same place, so no candidate is its own rejected answer.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

import msgspec
from msgspec import Raw

from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.rows import BadRow, Candidate, Scores

TARGET_KEY = "sft_target"
FEW = "fewer than two usable candidates"
NOT_SCORED = Scores()
DIGITS = 9
"""Decimal places that count of scores and gaps: 0.7·4 + 0.3·3 is 3.7, and 4.3 is 0.4 more than 3.9."""


Ranked = tuple[float, float, float, float, str, Candidate]
"""-score, -semantic, -acoustic, length, key, candidate: sorts from best to worst. A target's score may be NaN: none."""


class NoPair(Exception):
    """A prompt gives no pair; says why."""


class Pair(msgspec.Struct, frozen=True, gc=False):
    """Two answers to one prompt. `gap` is between their scores; `margin`, which weighs the pair, is the rule's.

    Both are NaN where a supervised target without a score is the chosen answer.
    """

    margin: float
    gap: float
    chosen: Ranked
    rejected: Ranked


def rank(output: dict[str, Candidate], weights: tuple[float, float] | None, tally: Counter[str]) -> list[Ranked]:
    """The usable candidates, best first; `tally` counts all of them and the unusable ones by reason."""
    ranked, by_reward = [], weights is None
    a, b = weights or (0.0, 0.0)
    whole = by_reward or (a.is_integer() and b.is_integer())
    for key, one in output.items():
        if text := one.text and one.text.strip():
            length = len(text)
        elif _speaks(one):
            length = math.inf if one.seconds is None else one.seconds
        else:
            continue
        scores = one.gemini_score or NOT_SCORED
        semantic, acoustic = scores.semantic_score, scores.paralinguistic_score
        if semantic is None or acoustic is None:
            if (semantic is None and a) or (acoustic is None and b):
                continue
            semantic, acoustic = semantic or 0.0, acoustic or 0.0
        score = one.score if by_reward else a * semantic + b * acoustic
        if score is None or one.broken:
            continue
        if not whole:
            score = _rounded(score)
        ranked.append((-score, -semantic, -acoustic, length, key, one))
    tally["read"] += len(output)
    if len(ranked) < len(output):
        used = {one[4] for one in ranked}
        tally.update(_unusable(candidate) for key, candidate in output.items() if key not in used)
    ranked.sort()
    return ranked


def _speaks(one: Candidate) -> bool:
    return bool(one.audio or _bare(one.units))


def _unusable(one: Candidate) -> str:
    if one.broken:
        return "broken"
    return "without a score" if one.says or _speaks(one) else "without text and audio"


class Rule:
    """Turns a prompt's ranked candidates into at most `pairs_per_prompt` pairs, the widest first; NoPair for none."""

    def __init__(self, options: PairOptions):
        self._least_gap = options.least_gap
        self._gap_asked = bool(options.min_score_gap)
        self._thresholds = options.thresholds
        self._most_repeats = options.max_auto_bleu
        self._most = options.pairs_per_prompt
        self._in_words = options.differ_in == "text"
        rules = {"best_worst": self._best_worst, "threshold": self._threshold, "rank": self._by_rank}
        self.pairs = rules[options.rule]

    def against_target(self, target: Candidate, score: float | None, ranked: list[Ranked]) -> list[Pair]:
        """The supervised target against the worst candidates; `score` is the target's, if one is known."""
        if not (target.says or _speaks(target)):
            raise NoPair("no supervised target")
        if not ranked:
            raise NoPair("no usable candidate")
        if score is None and self._gap_asked:
            raise NoPair("the target has no chosen_score, so there is no gap to measure")
        chosen = (math.nan if score is None else -score, 0.0, 0.0, 0.0, TARGET_KEY, target)
        return self._widest(_pair(chosen, one) for one in reversed(ranked))

    def _best_worst(self, ranked: list[Ranked]) -> list[Pair]:
        if len(ranked) < 2:
            raise NoPair(FEW)
        if self._most == 1 and self._most_repeats is None and not ranked[0][5].invalid:
            pair = _pair(ranked[0], ranked[-1])  # no other can be wider: nearly all prompts end here
            if pair.gap >= self._least_gap and pair.gap > 0 and not self._same(pair.chosen, pair.rejected):
                return [pair]
        return self._widest(_pair(a, b) for a, b in self._downhill(ranked))

    def _by_rank(self, ranked: list[Ranked]) -> list[Pair]:
        """A candidate's rank is the number of worse ones plus half of the others that score the same; a margin is the
        distance of two ranks, as a share of the largest there can be."""
        if len(ranked) < 2:
            raise NoPair(FEW)
        scores = [one[0] for one in ranked]
        ranks = {s: sum(other > s for other in scores) + (scores.count(s) - 1) / 2 for s in set(scores)}
        most = len(ranked) - 1
        return self._widest(_pair(a, b, (ranks[a[0]] - ranks[b[0]]) / most) for a, b in self._downhill(ranked))

    def _threshold(self, ranked: list[Ranked]) -> list[Pair]:
        """A repetitive answer counts as one that scores s_r, however it was judged: no margin is below s_c - s_r."""
        least, largest, delta = self._thresholds
        repeats = [_auto_bleu(one) > delta for one in ranked]
        good = [one for one, bad in zip(ranked, repeats, strict=True) if not bad and not one[5].invalid]
        chosen = [one for one in good if -one[0] >= least]
        rejected = [one for one, bad in zip(ranked, repeats, strict=True) if -one[0] <= largest or bad]
        if not chosen or not rejected:
            lacking = [name for name, some in (("choose", chosen), ("reject", rejected)) if not some]
            raise NoPair(f"no candidate to {' and none to '.join(lacking)}")
        both = product(chosen, reversed(rejected))
        return self._widest(_pair(a, b, -a[0] - min(-b[0], largest)) for a, b in both)

    def _downhill(self, ranked: list[Ranked]) -> Iterator[tuple[Ranked, Ranked]]:
        """Each candidate that may be chosen, from the best on, against each behind it, from the worst on."""
        limit, places = self._most_repeats, range(len(ranked) - 1)
        places = [place for place in places if not ranked[place][5].invalid]
        if limit is not None:
            places = [place for place in places if _auto_bleu(ranked[place]) <= limit]
        if not places:
            raise NoPair("no candidate to choose: the better ones are invalid or repeat themselves")
        for place in places:
            for worse in reversed(ranked[place + 1 :]):
                yield ranked[place], worse

    def _widest(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The first `pairs_per_prompt` by margin, then by gap, of equals by their order: each of two different answers,
        no two of them the same; without those whose gap is below what is asked for or whose margin says nothing."""
        found: list[Pair] = []
        for pair in sorted(pairs, key=lambda pair: (-pair.margin, -pair.gap)):
            if self._same(pair.chosen, pair.rejected):
                continue
            if any(self._same(a.chosen, pair.chosen) and self._same(a.rejected, pair.rejected) for a in found):
                continue
            found.append(pair)
            if len(found) == self._most:
                break
        if not found:
            raise NoPair("all candidates are the same answer")
        least = self._least_gap
        wide = [pair for pair in found if not (pair.gap < least or pair.margin <= 0)]  # NaN: nothing to measure
        if not wide:
            raise NoPair("all candidates score the same" if found[0].margin == 0 else f"gap below {least:g}")
        return wide

    def _same(self, one: Ranked, other: Ranked) -> bool:
        """Whether two answers say the same: in words if they have any, else, or if any difference counts, in sound."""
        a, b = one[5], other[5]
        if a.text != b.text and a.says != b.says:
            return False
        if self._in_words and a.says:
            return True
        units = _bare(a.units), _bare(b.units)
        return units[0] == units[1] if all(units) else a.audio == b.audio


def _pair(best: Ranked, worst: Ranked, margin: float | None = None) -> Pair:
    """`margin`: the gap unless the rule has another."""
    gap = _rounded(worst[0] - best[0])
    return Pair(gap if margin is None else margin, gap, best, worst)


def _rounded(value: float) -> float:
    return value if value.is_integer() else round(value, DIGITS)


def _auto_bleu(one: Ranked) -> float:
    measures = one[5].measures
    if measures is None or measures.auto_bleu is None:
        raise BadRow(f"output.{one[4]}.measures.auto_bleu: expected a number, for --rule threshold, --max-auto-bleu")
    return measures.auto_bleu


def _bare(units: Raw | None) -> bytes:
    """Units without the white space between them; empty where there are none."""
    bare = b"" if units is None else bytes(units).translate(None, b" \t\r\n")
    return b"" if bare in (b"null", b"[]") else bare
