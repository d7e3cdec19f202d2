"""Before against after: the rows of the result table, for the page and for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from elocute.errors import InputError
from elocute.evaluation.statistics import Estimate, difference

# Every metric is a share; +1 when more is better.
METRICS = {
    "answer_accuracy_text": ("Right answers, as written", +1),
    "answer_accuracy_speech": ("Right answers, as heard", +1),
    "speech_wer": ("Word errors of the speech", -1),
    "broken_audio": ("Broken audio", -1),
}


@dataclass(frozen=True)
class Change:
    """One metric before and after; either is None while not measured. `delta` is (difference, low, high) or None."""

    label: str
    better: int
    before: Estimate | None
    after: Estimate | None
    delta: tuple[float, float, float] | None

    @property
    def verdict(self) -> str:
        """What the interval of the difference allows to say."""
        if self.delta is None:
            return ""
        low, high = sorted(self.better * bound for bound in self.delta[1:])
        return "better" if low > 0 else "worse" if high < 0 else "no clear change"


def compare(evaluation: Mapping[str, Any]) -> list[Change]:
    """One Change for each of METRICS that `evaluation` (the content of eval.json) holds, before or after."""
    sides = [_estimates(evaluation, side) for side in ("before", "after")]
    changes = []
    for name, (label, better) in METRICS.items():
        before, after = (side.get(name) for side in sides)
        measured = all(side is not None and side.value is not None and side.ci95 for side in (before, after))
        if before is not None or after is not None:
            changes.append(Change(label, better, before, after, difference(before, after) if measured else None))
    return changes


def show_share(estimate: Estimate | None) -> str:
    """`41.5 %`, or a dash when nothing was measured."""
    return "–" if estimate is None or estimate.value is None else f"{100 * estimate.value:.1f} %"


def show_interval(estimate: Estimate | None) -> str:
    """`36.2 – 47.0`, in percent."""
    return "" if estimate is None or not estimate.ci95 else " – ".join(f"{100 * x:.1f}" for x in estimate.ci95)


def show_points(delta: tuple[float, float, float] | None) -> tuple[str, str]:
    """(`+16.5`, `+9.8 to +23.0`), in percentage points, with a true minus sign."""
    if delta is None:
        return "–", ""
    change, low, high = (f"{100 * x + 0.0:+.1f}".replace("-", "−") for x in delta)
    return change, f"{low} to {high}"


def results_table(evaluation: Mapping[str, Any]) -> Table:
    """The small table a run or an evaluation ends with. `evaluation` is the content of its eval.json."""
    if "result" in evaluation:
        return _single_table(_estimates(evaluation, "result"))
    table = _table("Before and after, with 95 % intervals", ("before", "after", "points", "n"))
    style = {"better": "green", "worse": "red"}
    for change in compare(evaluation):
        sides = [f"{show_share(side)}\n[dim]{show_interval(side)}[/dim]" for side in (change.before, change.after)]
        points = "{}\n[dim]{}[/dim]".format(*show_points(change.delta))
        n = str((change.after or change.before).n)
        label = f"{change.label}\n[dim]{change.verdict}[/dim]"
        table.add_row(label, *sides, points, n, style=style.get(change.verdict))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    """Plain enough for 80 columns; the first column names the metric."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _single_table(estimates: Mapping[str, Estimate]) -> Table:
    """One model's metrics, with nothing to compare them to."""
    table = _table("Result, with 95 % intervals", ("value", "95 %", "n"))
    for name, estimate in estimates.items():
        table.add_row(METRICS[name][0], show_share(estimate), show_interval(estimate), str(estimate.n))
    return table


def _estimates(evaluation: Mapping[str, Any], side: str) -> dict[str, Estimate]:
    metrics = evaluation.get(side) or {}
    if not isinstance(metrics, dict):
        raise InputError(f"eval.json: {side}: expected an object of metrics, got {metrics!r}")
    return {name: _estimate(metrics[name], f"eval.json: {side}.{name}") for name in METRICS if name in metrics}


def _estimate(entry: Any, where: str) -> Estimate:
    """`entry` is {"value", "n", "ci95"}; value and ci95 are null when n is 0."""
    fields = entry if isinstance(entry, dict) else {}
    value, n, ci95 = fields.get("value"), fields.get("n"), fields.get("ci95")
    bounds = [None, None] if ci95 is None else ci95
    if (
        type(n) is not int
        or not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(x is None or type(x) in (int, float) for x in (value, *bounds))
    ):
        raise InputError(f'{where}: expected {{"value", "n", "ci95": [low, high]}}, got {entry!r}')
    return Estimate(value, n, None if ci95 is None else (bounds[0], bounds[1]))
