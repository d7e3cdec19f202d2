"""What a judge may be bought with: repetition, length, sameness. Measured on every round's candidates and compared with
the first round's, which are the base model's."""

import json
from pathlib import Path
from typing import Any

from elocute.data.normalise import normalise
from elocute.evaluation.continuation import distinct
from elocute.training.watch import RULES, in_words

REPETITION, SHORTER, LONGER, SAMENESS = 1.5, 2 / 3, 3 / 2, 2 / 3
"""Times the base model's auto-BLEU, length (twice) and distinct-2 from which on there is an alarm."""
NOTICEABLE = 0.02
"""Rise of auto-BLEU below which there is none: a small number is soon doubled."""
SILENCE = 0.05
"""Rise of the share of answers that are broken or in which no word is heard."""


def measure_candidates(scored: Path) -> dict[str, Any]:
    """Means over the candidates in a file that `elocute score` wrote; None where nothing was measured."""
    columns: dict[str, list[float]] = {}
    words: list[list[str]] = []
    broken = count = 0
    with scored.open() as lines:
        for line in lines:
            for candidate in json.loads(line)["output"].values():
                count += 1
                broken += candidate["broken"] is not None
                words.append(normalise(candidate["output-text"]).split())
                values = {"score": candidate["score"], "seconds": candidate["seconds"]}
                if words[-1]:  # silence repeats nothing, and is no merit
                    values |= candidate["measures"]
                values |= {f"score/{name}": v for name, v in candidate["scores"].items()}
                values |= _of_the_voice(candidate)
                for name, value in values.items():
                    if value is not None:
                        columns.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in sorted(columns.items())}
    shares = {"broken": broken / count, "empty": sum(not some for some in words) / count}
    return {"n": count, **shares, "distinct_2": distinct(words, 2).value, **means}


def alarms(now: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """One line for each measure that has left the base model's; both from `measure_candidates`."""
    found = []
    for name in ("auto_bleu", "auto_bleu_units"):
        if name in now and name in base and now[name] > max(REPETITION * base[name], base[name] + NOTICEABLE):
            found.append(f"repetition: {name} rose from {base[name]:.3f} to {now[name]:.3f}")
    for name, what in (("broken", "broken answers"), ("empty", "answers without a word")):
        if now[name] > base[name] + SILENCE:
            found.append(f"silence: {what} rose from {base[name]:.1%} to {now[name]:.1%}")
    if not SHORTER <= now["seconds"] / max(base["seconds"], 1e-9) <= LONGER:
        found.append(f"length: answers last {now['seconds']:.1f} s, the base model's {base['seconds']:.1f} s")
    if base["distinct_2"] and (now["distinct_2"] or 0) < SAMENESS * base["distinct_2"]:
        found.append(f"diversity: distinct-2 fell from {base['distinct_2']:.3f} to {now['distinct_2'] or 0:.3f}")
    for name in sorted(now.keys() & base.keys()):
        if name.startswith("measured/") and RULES[name.rpartition("/")[2]][0](base[name], now[name]):
            found.append(f"{in_words(name)}, from {base[name]:.3g} to {now[name]:.3g}")
    return found


def _of_the_voice(candidate: dict[str, Any]) -> dict[str, float | None]:
    """What rewards measured of the voice beside their value, as far as a run's watch has a rule for it."""
    details = {name: outcome.get("detail", {}) for name, outcome in candidate["outcomes"].items()}
    return {f"measured/{name}/{key}": own[key] for name, own in details.items() for key in RULES.keys() & own.keys()}
