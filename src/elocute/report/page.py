"""A run as one HTML page that needs nothing else: no network, no script, no server. Open the file.

Its content security policy forbids every request, so the page stays what it is wherever it is put.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

from elocute.data.files import write_atomically
from elocute.report.answers import before_and_after, rollouts_over_time
from elocute.report.combinations import every_combination
from elocute.report.curves import curves
from elocute.report.read import Run, read_run
from elocute.report.results import Change, compare, results_table
from elocute.report.style import CSS
from elocute.training.watch import in_words

__all__ = ["results_table", "write_report"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; base-uri 'none'; form-action 'none'"

CLEAR = {
    False: "the change is clear when it leaves out 0.",
    True: "p is of a test on each row before and after (shares: McNemar, exact; else: permutations), and a change is "
    "clear below 0.05.",
}
"""When a change is clear, without and with a paired test."""


def write_report(run_dir: str | Path) -> Path:
    """Read the run in `run_dir` and write its `report.html`; returns that path.

    Raises InputError, naming file and line, when the folder is no run or a file in it is malformed.
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    write_atomically(path, page(run).encode("utf-8"))
    return path


def page(run: Run) -> str:
    """The whole HTML document."""
    name = escape(run.folder.resolve().name)
    samples = run.folder / "samples"
    sections = [
        ("results", "Results", _results(run)),
        *_labels(run),
        ("curves", "Curves", f'<div class="charts">{"".join(curves(run.metrics))}</div>'),
        ("answers", "Answers before and after", before_and_after(samples, run.before, run.after)),
        ("rollouts", "Rollouts over time", rollouts_over_time(samples, run.rollouts)),
        ("setup", "Recipe and environment", _setup(run)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name} – elocute</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><header><small>elocute run</small><h1>{name}</h1>{_facts(run)}"
        f"{_notices(run)}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def _labels(run: Run) -> list[tuple[str, str, str]]:
    """The section of a TTS model's run."""
    if not any(run.combinations):
        return []
    return [("labels", "Every combination of labels", every_combination(run.folder / "samples", *run.combinations))]


def _facts(run: Run) -> str:
    recipe, metrics = run.recipe, run.metrics
    facts = {
        "model": recipe.get("model"),
        "command": run.environment.get("command"),
        "started": run.environment.get("started"),
        "device": run.environment.get("device"),
        "steps": f"{metrics.steps[-1]} of {recipe.get('steps', '?')}",
        "best step by data.dev": next((s for s in reversed(metrics.columns.get("dev/best_step", ())) if s), None),
        "seed": recipe.get("seed"),
        "training time": _duration(sum(value or 0 for value in metrics.columns.get("seconds/total", ()))),
    }
    rows = "".join(
        f"<dt>{name}</dt><dd>{_code(value) if name == 'command' else escape(str(value))}</dd>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<dl>{rows}</dl>"


def _code(value: Any) -> str:
    return f"<code>{escape(str(value))}</code>"


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _notices(run: Run) -> str:
    """What a reader must know before believing the page."""
    notices = []
    if not (run.evaluation.get("before") and run.evaluation.get("after")):
        there = "the evaluation before training is there" if run.evaluation.get("before") else "there is no evaluation"
        notices.append(f"This run has no result yet: {there}, the one after training is missing.")
    for name, step in run.metrics.not_finite.items():
        notices.append(f"{name} was not a finite number, first at step {step}; the curves leave such values out.")
    counts = {
        kind: sum(value or 0 for value in run.metrics.columns.get(f"outcomes/{kind}", ()))
        for kind in ("scored", "invalid", "unavailable")
    }
    if counts["unavailable"]:
        notices.append(
            f"{counts['unavailable']:.0f} of {sum(counts.values()):.0f} rollouts could not be judged "
            "(the judge's fault); they took no part in the training."
        )
    for moment, dimensions in (run.evaluation.get("unjudged") or {}).items():
        for name, reasons in dimensions.items():
            what = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
            notices.append(f"{name}, {moment}: {sum(reasons.values())} labels could not be judged: {what}.")
    notices += _alarms(run)
    return "".join(f'<p class="notice">{escape(text)}</p>' for text in notices)


def _alarms(run: Run) -> list[str]:
    """What rang in this run, and whether it still does at its end."""
    found = []
    for name, values in run.metrics.columns.items():
        if name.startswith("alarm/") and any(values):
            rang = [step for step, value in zip(run.metrics.steps, values, strict=True) if value]
            until = "still" if rang[-1] == run.metrics.steps[-1] else f"until step {rang[-1]}"
            found.append(f"Alarm from step {rang[0]}, {until}: {in_words(name.removeprefix('alarm/'))}.")
    return found


def _results(run: Run) -> str:
    changes = compare(run.evaluation)
    if not changes:
        return "<p>Not evaluated.</p>"
    rows = "".join(_result_row(change) for change in changes)
    paired = any(change.p is not None for change in changes)
    return (
        '<div class="wide"><table><thead><tr><th></th><th>before</th><th>after</th><th>change</th><th>n</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="muted">Small: 95 % intervals; changes of shares are in percentage points. The interval of a change '
        f"takes both sides as independent, which is cautious for the same {'rows' if paired else 'questions'}; "
        f"{CLEAR[paired]}</p>{_parts(run)}"
    )


def _result_row(change: Change) -> str:
    metric = change.metric
    points, interval = metric.show_delta(change.delta)
    sides = "".join(
        f"<td>{escape(metric.show(side))}<small>{metric.show_interval(side)}</small></td>"
        for side in (change.before, change.after)
    )
    return (
        f"<tr><th>{escape(metric.label)}</th>{sides}<td>{points}<small>{interval}</small>"
        f'<span class="{change.verdict.replace(" ", "-")}">{change.verdict}</span></td>'
        f"<td>{(change.after or change.before).n}<small>{escape(change.shown_p)}</small></td></tr>"
    )


def _parts(run: Run) -> str:
    """The same metrics for parts of the questions: every `by_COLUMN` of eval.json."""
    tables = []
    for key in sorted(key for key in run.evaluation if key.startswith("by_")):
        sides = {side: run.evaluation[key].get(side) or {} for side in ("before", "after")}
        for part in dict.fromkeys([*sides["before"], *sides["after"]]):
            changes = compare({side: parts.get(part) for side, parts in sides.items()})
            cells = "".join(_result_row(change) for change in changes)
            tables.append(f'<tr><th colspan="5">{escape(key[3:])}: {escape(part)}</th></tr>{cells}')
    if not tables:
        return ""
    return (
        "<details><summary>By part of the questions</summary>"
        f'<div class="wide"><table><tbody>{"".join(tables)}</tbody></table></div></details>'
    )


def _setup(run: Run) -> str:
    evaluation = {
        key: value
        for key, value in run.evaluation.items()
        if key not in ("before", "after") and not key.startswith("by_")
    }
    blocks = {
        "Resolved recipe (recipe.yaml)": run.recipe_text,
        "Environment (environment.json)": _pretty(run.environment),
        "How it was evaluated (eval.json)": _pretty(evaluation),
    }
    return "".join(
        f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
        for title, text in blocks.items()
        if text
    )


def _pretty(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) if value else ""
