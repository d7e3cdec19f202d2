"""Before against after: the rows of the result table, for the page and for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from elocute.errors import InputError
from elocute.evaluation.statistics import Estimate, difference


@dataclass(frozen=True)
class Metric:
    """What people read of a metric. better: +1 when more is better, −1 when less is, 0: neither. unit "%": a share."""

    label: str
    better: int = 0
    unit: str = "%"

    def show(self, estimate: Estimate | None) -> str:
        """`41.5 %`, or a dash when nothing was measured."""
        if estimate is None or estimate.value is None:
            return "–"
        return f"{self._number(estimate.value)} {self.unit}"

    def show_interval(self, estimate: Estimate | None) -> str:
        """`36.2 – 47.0`, in the same unit."""
        return "" if estimate is None or not estimate.ci95 else " – ".join(map(self._number, estimate.ci95))

    def show_delta(self, delta: tuple[float, float, float] | None) -> tuple[str, str]:
        """(`+16.5`, `+9.8 to +23.0`), of shares in percentage points, with a true minus sign."""
        if delta is None:
            return "–", ""
        change, low, high = (self._number(x, "+").replace("-", "−") for x in delta)
        return change, f"{low} to {high}"

    def _number(self, value: float, sign: str = "") -> str:
        return f"{100 * value + 0.0:{sign}.1f}" if self.unit == "%" else f"{value + 0.0:{sign}.2f}"


METRICS = {
    "answer_accuracy_text": Metric("Right answers, as written", +1),
    "answer_accuracy_speech": Metric("Right answers, as heard", +1),
    "speech_wer": Metric("Word errors of the speech", -1),
    "wer": Metric("Word errors", -1),
    "label_alignment": Metric("Labels heard", +1),
    "broken_audio": Metric("Broken audio", -1),
    "f0_range": Metric("F0 range", 0, "st"),
    "seconds": Metric("Length", 0, "s"),
    "syllables_per_second": Metric("Syllables a second", 0, "/s"),
}
"""In the order of the table; label_alignment/DIMENSION follows label_alignment."""


@dataclass(frozen=True)
class Change:
    """One metric before and after; either is None while not measured. `delta` is (difference, low, high) or None.

    p: of no change, by a test on the rows that both sides have, where one was made.
    """

    metric: Metric
    before: Estimate | None
    after: Estimate | None
    delta: tuple[float, float, float] | None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """What the paired test allows to say at 5 %, or without one the interval of the difference."""
        if self.delta is None:
            return ""
        change, low, high = self.delta
        clear = low > 0 or high < 0 if self.p is None else self.p < 0.05 and change != 0
        if not clear:
            return "no clear change"
        if self.metric.better:
            return "better" if change * self.metric.better > 0 else "worse"
        return "more" if change > 0 else "less"

    @property
    def shown_p(self) -> str:
        """`p = 0.013`, or nothing where no test was made."""
        return "" if self.p is None else "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"


def compare(evaluation: Mapping[str, Any]) -> list[Change]:
    """One Change for each metric that `evaluation` (the content of eval.json) holds, before or after."""
    before, after = (_estimates(evaluation, side) for side in ("before", "after"))
    tests, changes = _tests(evaluation), []
    for name in sorted(before.keys() | after.keys(), key=_place):
        sides = before.get(name), after.get(name)
        measured = all(side is not None and side.value is not None and side.ci95 for side in sides)
        p = tests[name]["p"] if name in tests else None
        changes.append(Change(metric_of(name), *sides, difference(*sides) if measured else None, p))
    return changes


def _tests(evaluation: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    tests = evaluation.get("paired") or {}
    found = tests.values() if isinstance(tests, dict) else [None]
    if not all(isinstance(test, dict) and type(test.get("p")) in (int, float) for test in found):
        raise InputError(f'eval.json: paired: expected {{METRIC: {{"p", "n"}}}}, got {tests!r}')
    return tests


def metric_of(name: str) -> Metric:
    """KeyError for a metric that no table shows."""
    first, _, dimension = name.partition("/")
    if not dimension:
        return METRICS[name]
    if first != "label_alignment":
        raise KeyError(name)
    return Metric(f"… {dimension}", +1)


def _place(name: str) -> tuple[int, str]:
    return list(METRICS).index(name.partition("/")[0]), name


def results_table(evaluation: Mapping[str, Any]) -> Table:
    """The small table a run or an evaluation ends with. `evaluation` is the content of its eval.json."""
    if "result" in evaluation:
        return _single_table(_estimates(evaluation, "result"))
    table = _table("Before and after, with 95 % intervals", ("before", "after", "change", "n"))
    style = {"better": "green", "worse": "red"}
    for change in compare(evaluation):
        metric = change.metric
        both = change.before, change.after
        sides = [f"{metric.show(side)}\n[dim]{metric.show_interval(side)}[/dim]" for side in both]
        points = "{}\n[dim]{}[/dim]".format(*metric.show_delta(change.delta))
        n = f"{(change.after or change.before).n}\n[dim]{change.shown_p}[/dim]"
        label = f"{escape(metric.label)}\n[dim]{change.verdict}[/dim]"
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
    for name, estimate in sorted(estimates.items(), key=lambda item: _place(item[0])):
        metric = metric_of(name)
        table.add_row(escape(metric.label), metric.show(estimate), metric.show_interval(estimate), str(estimate.n))
    return table


def _estimates(evaluation: Mapping[str, Any], side: str) -> dict[str, Estimate]:
    metrics = evaluation.get(side) or {}
    if not isinstance(metrics, dict):
        raise InputError(f"eval.json: {side}: expected an object of metrics, got {metrics!r}")
    shown = [name for name in metrics if name in METRICS or name.startswith("label_alignment/")]
    return {name: _estimate(metrics[name], f"eval.json: {side}.{name}") for name in shown}


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
