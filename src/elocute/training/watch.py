"""Collapse, seen in a run's metrics while it runs: a voice that falls apart, a judge that cannot tell answers apart.

The mean of the latest WINDOW steps is compared with that of the first. An alarm is a column `alarm/COLUMN` of the
metrics, 1 while it rings; the report says it in words.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

WINDOW = 5
"""Steps that are averaged, so that an alarm is no single step's noise."""


def _left(base: float, now: float) -> bool:
    return not 2 / 3 <= now / max(base, 1e-9) <= 3 / 2


RULES: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "seconds": (_left, "answers became much longer or shorter"),
    "phones_per_second": (_left, "speech became much faster or slower"),
    "silence_share": (lambda base, now: now > base + 0.15, "silence spreads"),
    "clipping_share": (lambda base, now: now > base + 0.01, "the sound is clipped"),
    "pitch_range": (lambda base, now: now < base * 2 / 3, "the voice became flat"),
    "similarity": (lambda base, now: now < base - 0.1, "it is no longer the same voice"),
    "overall": (lambda base, now: now < base - 0.3, "the sound became worse"),
    "wer": (lambda base, now: now > base + 0.1, "words are lost"),
    "invalid": (lambda base, now: now > base + 0.1, "answers break"),
}
"""By the last part of a column's name: (mean at first, mean now) → whether it rings; and what it means."""

_WATCHED = ("measured/", "spread/", "alike/", "outcomes/invalid")
_CONSTANT = {"spread": 0.0, "alike": 1.0}
"""What these columns are, step after step, where a judge cannot tell answers apart."""


class Watch:
    """To be called with each step's metrics, in order; gives the columns of the alarms that ring after that step."""

    def __init__(self):
        self._first: dict[str, list[float]] = {}
        self._latest: dict[str, list[float]] = {}
        self._ringing: set[str] = set()

    def __call__(self, metrics: Mapping[str, float | None]) -> dict[str, int]:
        """A new alarm is also a warning in the log."""
        before = self._ringing
        self._take(metrics)
        for name in sorted(self._ringing - before):
            log.warning("step %s: %s", metrics.get("step"), self._words(name))
        return {f"alarm/{name}": 1 for name in sorted(self._ringing)}

    def replay(self, metrics: Path) -> None:
        """Takes in the steps of a run that goes on; their warnings were given then."""
        if metrics.exists():
            for line in metrics.read_text().splitlines():
                self._take(json.loads(line))

    def _take(self, metrics: Mapping[str, float | None]) -> None:
        for name, value in _shares(metrics).items():
            if value is not None and name.startswith(_WATCHED):
                first, latest = self._first.setdefault(name, []), self._latest.setdefault(name, [])
                if len(first) < WINDOW:
                    first.append(value)
                latest.append(value)
                del latest[:-WINDOW]
        self._ringing = {name for name in self._first if self._rings(name)}

    def _rings(self, name: str) -> bool:
        latest = self._latest[name]
        if len(latest) < WINDOW:
            return False
        if (constant := _CONSTANT.get(name.partition("/")[0])) is not None:
            return all(value == constant for value in latest)
        rule = RULES.get(name.rpartition("/")[2])
        return rule is not None and rule[0](_mean(self._first[name]), _mean(latest))

    def _words(self, name: str) -> str:
        first, latest = _mean(self._first[name]), _mean(self._latest[name])
        return in_words(name) + ("" if name.partition("/")[0] in _CONSTANT else f" (from {first:.3g} to {latest:.3g})")


def in_words(column: str) -> str:
    """What an alarm about this column means: "guard: the voice became flat (pitch_range)"."""
    kind, _, rest = column.partition("/")
    reward, _, measure = rest.partition("/")
    if kind == "spread":
        return f"{reward}: gave all answers of a group the same value in every group, which teaches nothing"
    if kind == "alike":
        return f"{reward}: heard the same {measure} in all answers, whatever was asked for"
    if kind == "outcomes":
        return RULES["invalid"][1]
    return f"{reward}: {RULES[measure][1]} ({measure})" if measure in RULES else column


def _shares(metrics: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """The metrics, the number of invalid answers turned into their share."""
    counts = [metrics.get(f"outcomes/{kind}") or 0 for kind in ("scored", "invalid", "unavailable")]
    return {**metrics, "outcomes/invalid": counts[1] / sum(counts) if sum(counts) else None}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
