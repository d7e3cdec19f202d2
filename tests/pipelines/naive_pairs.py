"""The pair builder as its definition reads: every ordered pair of candidates is looked at. Plain JSON, no streaming."""

import os
from collections import Counter
from itertools import permutations

WEIGHTS = {"sum": (1, 1), "semantic": (1, 0), "paralinguistic": (0, 1)}
DEFAULTS = {
    "score_mode": "sum",
    "rule": "best_worst",
    "chosen_source": "best_output",
    "differ_in": "text",
    "pairs_per_prompt": 1,
    "thresholds": (3, 1, 0.1),
}


class NoPair(Exception):
    pass


def naive_pairs(rows, **told):
    """(pair rows without weights, margins, reasons of rows without a pair, of unusable candidates)."""
    options = DEFAULTS | told
    found, margins, dropped, unusable = [], [], Counter(), Counter()
    for row in rows:
        try:
            pairs = pairs_of(row, options, unusable)
        except NoPair as reason:
            dropped[str(reason)] += 1
            continue
        found += [filled(row, pair, options) for pair in pairs]
        margins += [pair["margin"] for pair in pairs]
    return found, margins, dropped, unusable


def score_of(candidate, options):
    if options["score_mode"] == "reward":
        return candidate.get("score")
    scores = candidate.get("gemini_score") or {}
    total = 0
    weights = WEIGHTS.get(options["score_mode"]) or options["weights"]
    for weight, name in zip(weights, ("semantic_score", "paralinguistic_score"), strict=True):
        if scores.get(name) is None and weight:
            return None
        total += weight * (scores.get(name) or 0)
    return round(total, 9)


def quality(key, candidate, score):
    """Larger is better; never equal for two keys."""
    scores = candidate.get("gemini_score") or {}
    order = [score, scores.get("semantic_score") or 0, scores.get("paralinguistic_score") or 0]
    seconds = candidate.get("seconds")
    order += [-(len(said(candidate)) or (float("inf") if seconds is None else seconds)), -int(key)]
    return order


def invalid(candidate):
    return (candidate.get("outcome") or {}).get("kind") == "invalid"


def said(candidate):
    return (candidate.get("output-text") or "").strip()


def usable(row, options, unusable):
    ranked = []
    for key, candidate in row["output"].items():
        if candidate.get("broken"):
            unusable["broken"] += 1
        elif not (said(candidate) or candidate.get("output-audio") or candidate.get("output-units")):
            unusable["without text and audio"] += 1
        elif (score := score_of(candidate, options)) is None:
            unusable["without a score"] += 1
        else:
            ranked.append({**candidate, "key": key, "score": score, "quality": quality(key, candidate, score)})
    return sorted(ranked, key=lambda one: one["quality"], reverse=True)


def pairs_of(row, options, unusable):
    ranked = usable(row, options, unusable)
    if options["chosen_source"] == "sft_target":
        return against_target(row, ranked, options)
    scores = [one["score"] for one in ranked]
    least, largest, delta = options["thresholds"]
    if options["rule"] != "threshold" and len(ranked) < 2:
        raise NoPair("fewer than two usable candidates")
    repeats = [one.get("measures", {}).get("auto_bleu", 0) > delta for one in ranked]
    good = [i for i, one in enumerate(ranked) if one["score"] >= least and not repeats[i] and not invalid(one)]
    bad = [i for i, one in enumerate(ranked) if one["score"] <= largest or repeats[i]]
    if options["rule"] == "threshold" and not (good and bad):
        lacking = [name for name, some in (("choose", good), ("reject", bad)) if not some]
        raise NoPair(f"no candidate to {' and none to '.join(lacking)}")
    pairs = []
    for i, j in permutations(range(len(ranked)), 2):
        if options["rule"] == "threshold":
            if i not in good or j not in bad:
                continue
        elif i > j or invalid(ranked[i]) or ranked[i]["measures"]["auto_bleu"] > options.get("max_auto_bleu", 1):
            continue
        gap = round(scores[i] - scores[j], 9)
        margin = {"best_worst": gap, "threshold": scores[i] - min(scores[j], largest), "rank": 0}[options["rule"]]
        if options["rule"] == "rank":
            worse = [sum(s < scores[x] for s in scores) + (scores.count(scores[x]) - 1) / 2 for x in (i, j)]
            margin = (worse[0] - worse[1]) / (len(ranked) - 1)
        pairs.append({"chosen": ranked[i], "rejected": ranked[j], "gap": gap, "margin": margin, "order": (i, -j)})
    if not pairs:
        raise NoPair("no candidate to choose: the better ones are invalid or repeat themselves")
    pairs.sort(key=lambda pair: (-pair["margin"], -pair["gap"], pair["order"]))
    return wide_enough(different(pairs, options), options)


def against_target(row, ranked, options):
    target = {"key": "sft_target", "score": row.get("chosen_score")}
    target |= {f"output-{what}": row.get(f"sft_target_{what}") for what in ("text", "audio", "units", "tokens")}
    if not (said(target) or target["output-audio"] or target["output-units"]):
        raise NoPair("no supervised target")
    if not ranked:
        raise NoPair("no usable candidate")
    if target["score"] is None and options.get("min_score_gap"):
        raise NoPair("the target has no chosen_score, so there is no gap to measure")
    pairs = []
    for one in reversed(ranked):
        gap = None if target["score"] is None else round(target["score"] - one["score"], 9)
        pairs.append({"chosen": target, "rejected": one, "gap": gap, "margin": gap})
    return wide_enough(different(pairs, options), options)


def different(pairs, options):
    found = []
    for pair in pairs:
        if same(pair["chosen"], pair["rejected"], options):
            continue
        if any(all(same(a[side], pair[side], options) for side in ("chosen", "rejected")) for a in found):
            continue
        found.append(pair)
    if not found:
        raise NoPair("all candidates are the same answer")
    return found[: options["pairs_per_prompt"]]


def same(a, b, options):
    texts = [said(one) for one in (a, b)]
    if texts[0] != texts[1]:
        return False
    if texts[0] and options["differ_in"] == "text":
        return True
    if a.get("output-units") and b.get("output-units"):
        return a["output-units"] == b["output-units"]
    return a.get("output-audio") == b.get("output-audio")


def least_gap(options):
    if options.get("min_score_gap") is not None:
        return options["min_score_gap"]
    if options["rule"] == "threshold":
        return float("-inf")
    if options["rule"] == "rank" or options["score_mode"] == "reward":
        return 0
    return 0.5 * sum(WEIGHTS.get(options["score_mode"]) or options["weights"])


def wide_enough(pairs, options):
    least = least_gap(options)
    wide = [pair for pair in pairs if pair["gap"] is None or (pair["gap"] >= least and pair["margin"] > 0)]
    if not wide:
        raise NoPair("all candidates score the same" if pairs[0]["margin"] == 0 else f"gap below {least:g}")
    return wide


def filled(row, pair, options):
    new = {name: value for name, value in row.items() if name not in ("output", "weight")}
    for side, field in (("chosen", "sft_target"), ("rejected", "rejected")):
        for what in ("text", "audio", "units", "tokens"):
            new[f"{field}_{what}"] = pair[side].get(f"output-{what}") or None
        new[f"{field}_tokens"] = new[f"{field}_tokens"] if new[f"{field}_units"] else None
        if not said(pair[side]):
            new[f"{field}_text"] = None
        new[f"{side}_score"], new[f"{side}_key"] = pair[side]["score"], pair[side]["key"]
    new["score_gap"] = pair["gap"]
    new.setdefault("source_dataset", os.path.basename(options["input"]))
    if options["pairs_per_prompt"] > 1 and row.get("id") not in (None, ""):
        new["id"] = f"{row['id']}:{new['chosen_key']}-{new['rejected_key']}"
    return {name: value for name, value in new.items() if value is not None or name == "other field"}
