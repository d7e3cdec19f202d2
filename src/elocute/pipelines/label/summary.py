"""What `elocute label` wrote, counted: labels, their entropy, who decided them, and what was left out and why."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elocute.prosody.schema import Schema

Summary = dict[str, Any]


class LabelTally:
    """Counts rows one by one."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.read = self.written = 0
        self.labels = {name: Counter() for name in schema.dimensions}
        self.by = {name: Counter() for name in schema.dimensions}
        self.left_out: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def add(self, labels: Mapping[str, str], by: Mapping[str, str]) -> None:
        """A row that is written."""
        self.read += 1
        self.written += 1
        for name, label in labels.items():
            self.labels[name][label] += 1
            self.by[name][by.get(name, "given")] += 1

    def leave_out(self, reason: str) -> None:
        """A row that is not."""
        self.read += 1
        self.left_out[reason] += 1

    def summary(self) -> Summary:
        """All counts; `entropy` of a dimension's labels in bits, `highest`: with all labels equally often."""
        dimensions = {name: self._dimension(name) for name in self.schema.dimensions}
        return {
            "rows": {"read": self.read, "written": self.written},
            "left_out": dict(self.left_out.most_common()),
            "unknown": dict(self.unknown.most_common()),
            "dimensions": dimensions,
            "warnings": [warning for name, one in dimensions.items() if (warning := _warning(name, one))],
        }

    def _dimension(self, name: str) -> Summary:
        counts = {label: self.labels[name][label] for label in self.schema.dimensions[name].labels}
        return {
            "labels": counts,
            "open": self.written - sum(counts.values()),
            "entropy": entropy(counts),
            "highest": math.log2(len(counts)),
            "by": dict(self.by[name].most_common()),
        }


def entropy(counts: Mapping[str, int]) -> float:
    """In bits; 0 for nothing at all."""
    total = sum(counts.values())
    return sum(-n / total * math.log2(n / total) for n in counts.values() if n) + 0.0


def summary_path(output: Path) -> Path:
    """`rows.summary.json` beside `rows.jsonl`."""
    return output.with_name(f"{output.stem}.summary.json")


def summary_lines(summary: Summary) -> list[str]:
    """For people: a line a dimension, then what was left out, then what is suspicious."""
    rows = summary["rows"]
    lines = [f"{summary['output']}: {rows['written']:,} of {rows['read']:,} rows have labels"]
    for name, one in summary["dimensions"].items():
        found = sorted(((n, label) for label, n in one["labels"].items() if n), key=lambda pair: (-pair[0], pair[1]))
        counts = ", ".join(f"{label} {n:,}" for n, label in found) or "no label"
        never = len(one["labels"]) - len(found)
        more = [f"{never} never"] * bool(found and never) + [f"open in {one['open']:,} rows"] * bool(one["open"])
        bounds = [f"bounds {', '.join(f'{b:.3g}' for b in one['bounds'])} {one['measure']}"] if "bounds" in one else []
        tail = "; ".join([f"{one['entropy']:.2f} of {one['highest']:.2f} bits", *more, *bounds])
        lines.append(f"{name}: {counts} ({tail})")
    lines += [f"left out: {count:,} rows: {reason}" for reason, count in summary["left_out"].items()]
    lines += [f"dropped, not in the schema: {label}: {count:,}" for label, count in summary["unknown"].items()]
    return lines + [f"warning: {warning}" for warning in summary["warnings"]]


def _warning(name: str, one: Summary) -> str | None:
    found = [label for label, count in one["labels"].items() if count]
    if len(found) != 1 or one["labels"][found[0]] < 2:
        return None
    return (
        f"{name} is {found[0]} wherever it has a label: nothing can be learnt about it, and a judge that always says "
        f"{found[0]} is always right"
    )
