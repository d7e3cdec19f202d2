"""What files of candidates hold, counted line by line: the summaries of `sample` and `score`."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

Line = Mapping[str, Any]


class SampledTally:
    """Counts of candidates; `seconds` of their speech."""

    def __init__(self):
        self.prompts = self.answers = self.broken = 0
        self.seconds = 0.0

    def add(self, line: Line) -> None:
        """Count one prompt's candidates."""
        self.prompts += 1
        for candidate in line["output"].values():
            self.answers += 1
            self.broken += candidate["broken"] is not None
            self.seconds += candidate["seconds"]

    def summary(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "answers": self.answers, "broken": self.broken, "seconds": self.seconds}


class ScoredTally:
    """Counts of scored candidates by outcome; moments of the combined score and of each reward."""

    def __init__(self):
        self.prompts = 0
        self.kinds: Counter[str] = Counter()
        self.moments: dict[str, Moments] = defaultdict(Moments)

    def add(self, line: Line) -> None:
        """Count one prompt's candidates."""
        self.prompts += 1
        for candidate in line["output"].values():
            self.kinds[candidate["outcome"]["kind"]] += 1
            self._add("score", candidate["score"])
            for name, value in candidate["scores"].items():
                self._add(f"scores.{name}", value)

    def summary(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "answers": self.kinds.total(),
            "outcomes": {kind: self.kinds[kind] for kind in ("scored", "invalid", "unavailable")},
            "values": {name: moments.to_json() for name, moments in self.moments.items()},
        }

    def _add(self, name: str, value: float | None) -> None:
        if value is not None:
            self.moments[name].add(value)


class Moments:
    """Mean and population standard deviation of a stream of numbers (Welford's updates)."""

    def __init__(self):
        self.n, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self._squares += step * (value - self.mean)

    def to_json(self) -> dict[str, float]:
        return {"n": self.n, "mean": self.mean, "std": math.sqrt(self._squares / self.n)}
