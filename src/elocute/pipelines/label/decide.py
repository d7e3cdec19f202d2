"""What the sources decide of rows, as lines of `elocute label`'s journal."""

from collections.abc import Collection, Sequence
from typing import Any

from elocute.data.rows import check_rows
from elocute.pipelines.label.rows import LabelRow
from elocute.pipelines.label.sources import Reader, by_rule, measured
from elocute.prosody.schema import Schema
from elocute.rewards.outcome import Unavailable

Line = dict[str, Any]
"""{"row", "labels", "by"} (and "measured"), or {"row", "unavailable": why}."""


class Decider:
    """Decides what is open, by the sources "rule", "audio" and, with a reader, "llm", in this order."""

    def __init__(self, schema: Schema, sources: Collection[str], reader: Reader | None):
        self.schema, self.sources, self.reader = schema, sources, reader

    def decide(self, portion: Sequence[tuple[int, LabelRow]]) -> tuple[list[Line], int]:
        """What the sources decide of some rows, a line each; for how many of them the reader was asked."""
        lines = []
        values = iter(self._measure([row for _, row in portion]))
        for number, row in portion:
            line: Line = {"row": number, "labels": dict(row.labels), "by": {}}
            if "rule" in self.sources:
                self._by_rule(row, line)
            if "audio" in self.sources:
                line["measured"] = next(values)
            lines.append(line)
        return lines, self._ask([row for _, row in portion], lines) if self.reader else 0

    def _measure(self, rows: Sequence[LabelRow]) -> list[dict[str, float | None]]:
        found: list[dict[str, float | None]] = []
        if "audio" in self.sources:
            check_rows(rows, lambda row: found.append(measured(row)))
        return found

    def _by_rule(self, row: LabelRow, line: Line) -> None:
        for name, dimension in self.schema.dimensions.items():
            if name not in line["labels"] and (label := by_rule(row.text, dimension)):
                line["labels"][name], line["by"][name] = label, "rule"

    def _ask(self, rows: Sequence[LabelRow], lines: list[Line]) -> int:
        """Ask the reader for what is still open; a line for which it has no answer says why instead. How many."""
        asked = []
        for i, line in enumerate(lines):
            taken = line["labels"].keys() | by_measure(self.schema, line).keys()
            if still_open := [name for name in self.schema.dimensions if name not in taken]:
                asked.append((i, self.schema.only(still_open)))
        found = self.reader([(rows[i].text, schema) for i, schema in asked])
        for (i, _), labels in zip(asked, found, strict=True):
            if isinstance(labels, Unavailable):
                lines[i] = {"row": lines[i]["row"], "unavailable": labels.reason}
            else:
                lines[i]["labels"] |= labels
                lines[i]["by"] |= dict.fromkeys(labels, "llm")
        return len(asked)


def by_measure(schema: Schema, line: Line) -> dict[str, float]:
    """Dimensions that the measured values decide, with the value."""
    values = line.get("measured", {})
    found = {name: values.get(one.measure) for name, one in schema.dimensions.items() if one.measure}
    return {n: value for n, value in found.items() if value is not None and n not in line["labels"]}
