"""Which metrics stand together in which chart. A metric that no chart names still gets one, by its first name."""

import math
from collections.abc import Sequence

from elocute.report.charts import COLOURS, Series, line_chart, stacked_chart
from elocute.report.read import Metrics

POINTS = 400  # more steps than this and each point is the mean of several: the page stays light

# Title, note, metrics in the order of their colours.
Chart = tuple[str, str, Sequence[str]]

REWARD: Chart = (
    "Reward",
    "Mean over the step's scored answers, band ± one standard deviation.",
    ("reward/mean", "reward/max"),
)
PREFERENCE: Sequence[Chart] = (
    (
        "Reward accuracy",
        "Share of pairs whose chosen answer has the higher reward β·log(π/π_ref); ½ is chance. dev: held-out pairs.",
        ("dpo/accuracy", "dev/accuracy"),
    ),
    ("Reward margin", "Reward of the chosen answer less that of the rejected one.", ("dpo/margin", "dev/margin")),
    (
        "Rewards of chosen and rejected",
        "β·log(π/π_ref) of an answer: above 0 it became likelier than before training.",
        ("dpo/chosen_reward", "dpo/rejected_reward"),
    ),
    (
        "Log-probs of chosen and rejected",
        "Summed over an answer's tokens in scope, without weights.",
        ("logp/chosen_text", "logp/rejected_text", "logp/chosen_speech", "logp/rejected_speech"),
    ),
    ("Loss: preference", "Mean over the step's pairs.", ("loss/dpo",)),
)
PAIRS: Chart = (
    "Pairs",
    "Prompts a step: with a pair, or without one, by reason.",
    ("pairs/kept", "pairs/equal", "pairs/small_gap", "pairs/unjudged", "pairs/no_tokens"),
)
BEST: Chart = ("Best step so far", "By the held-out pairs; the last one is in model/.", ("dev/best_step",))
LINES: Sequence[Chart] = (
    ("Mixing λ", "The policy gradient's share of the loss: smoothed (used) and raw.", ("lambda", "lambda/raw")),
    (
        "Gates of λ",
        "Information: do the rewards of a group differ? Reward: is the best of a group good?",
        ("gate/information", "gate/reward"),
    ),
    ("Loss: total and supervised", "As they enter the sum, weights included.", ("loss/total", "loss/sft")),
    (
        "Loss: policy gradient and KL",
        "As they enter the sum, weights included.",
        ("loss/pg", "loss/kl_text", "loss/kl_speech"),
    ),
    ("KL to the reference", "Per sampled token.", ("kl/text", "kl/speech")),
    ("Entropy of the sampler", "Nats per sampled token.", ("entropy/text", "entropy/speech")),
    ("NLL of the targets", "Nats per token of the supervised answers.", ("nll/text", "nll/speech")),
    (
        "Incomplete rollouts",
        "Answers a step without an end, and without any text token.",
        ("rollout/truncated", "rollout/no_text"),
    ),
    (
        "Sampler mismatch",
        "Distance between the sampler's log-probs and the trainer's.",
        ("sampler/mismatch", "sampler/drift"),
    ),
    ("Clipped tokens", "Share of tokens on which the ratio was clipped.", ("pg/clip_fraction",)),
    ("Tokens of the policy gradient", "Sampled tokens a step that the policy gradient touches.", ("pg/tokens",)),
    ("Gradient norm", "Before clipping.", ("grad_norm",)),
    ("Learning rate", "", ("lr",)),
    ("Throughput", "Sampled tokens a second.", ("rollout/tokens_per_s",)),
)
OUTCOMES: Chart = (
    "Outcomes",
    "Answers a step: scored, invalid (the answer's fault), unavailable (the judge's fault).",
    ("outcomes/scored", "outcomes/invalid", "outcomes/unavailable"),
)
SECONDS: Chart = (
    "Seconds by stage",
    "Wall-clock seconds a step.",
    ("seconds/rollout", "seconds/decode", "seconds/reward", "seconds/update", "seconds/checkpoint"),
)


def curves(metrics: Metrics) -> list[str]:
    """All charts that `metrics` has something for, as HTML figures."""
    metrics, each = thin(metrics, POINTS)
    metrics, seconds = _with_rest(metrics)
    used = {"reward/std", "seconds/total", *(name for name in metrics.columns if name.startswith("alarm/"))}

    def draw(chart: Chart, make=line_chart) -> list[str]:
        title, note, names = chart
        used.update(names)
        series = [_series(metrics, name, names) for name in names if metrics.has(name)]
        note = f"{note} Each point is the mean of {each} steps.".strip() if each > 1 else note
        return [make(title, metrics.steps, series, note)] if series else []

    shown = draw(REWARD)
    parts = [name for name in sorted(metrics.columns) if name.startswith("reward/") and name not in used]
    for page in _pages(parts):
        shown += draw(("Rewards by name", "Mean of each reward, on its own scale.", page))
    spreads = [name for name in sorted(metrics.columns) if name.startswith("spread/")]
    for page in _pages(spreads):
        shown += draw(("Spread of rewards", "Standard deviation within a prompt's group; 0 teaches nothing.", page))
    alike = [name for name in sorted(metrics.columns) if name.startswith("alike/")]
    for page in _pages(alike):
        note = "Share of a step's answers in which the commonest label was heard; 1: whatever is asked for."
        shown += draw(("Labels heard alike", note, page))
    for name in sorted(metrics.columns):  # each on its own: seconds, semitones and shares have no common axis
        if name.startswith("measured/"):
            reward, _, measure = name.removeprefix("measured/").partition("/")
            shown += draw((f"{reward}: {measure.replace('_', ' ')}", "Mean over the step's scored answers.", [name]))
    for chart in PREFERENCE:
        shown += draw(chart)
    shown += draw(PAIRS, stacked_chart) + draw(BEST)
    for chart in LINES[:4]:
        shown += draw(chart)
    shown += draw(OUTCOMES, stacked_chart)
    for chart in LINES[4:]:
        shown += draw(chart)
    shown += draw(seconds, stacked_chart)
    return shown + [figure for chart in _leftover(metrics, used) for figure in draw(chart)]


def thin(metrics: Metrics, points: int) -> tuple[Metrics, int]:
    """At most `points` points, each the mean of `each` neighbouring steps and standing at the last of them."""
    each = math.ceil(len(metrics.steps) / points)
    if each == 1:
        return metrics, 1
    starts = range(0, len(metrics.steps), each)
    columns = {name: [_mean(values[i : i + each]) for i in starts] for name, values in metrics.columns.items()}
    steps = [metrics.steps[min(i + each, len(metrics.steps)) - 1] for i in starts]
    return Metrics(steps, columns, metrics.not_finite), each


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _series(metrics: Metrics, name: str, beside: Sequence[str]) -> Series:
    """A metric's line, called by its last name unless another one of the chart has the same."""
    spread = metrics.columns.get("reward/std") if name == "reward/mean" else None
    first, _, last = name.partition("/")
    alone = sum(other.partition("/")[2] == last for other in beside) == 1
    return Series(last if last and alone else f"{first} {last}".strip(), metrics.columns[name], spread)


def _pages(names: Sequence[str]) -> list[Sequence[str]]:
    """As many as one chart has colours for."""
    return [names[start : start + COLOURS] for start in range(0, len(names), COLOURS)]


def _with_rest(metrics: Metrics) -> tuple[Metrics, Chart]:
    """The chart of all stages there are; `seconds/rest` is what of `seconds/total` no stage accounts for."""
    title, note, known = SECONDS
    others = {name for name in metrics.columns if name.startswith("seconds/")} - {*known, "seconds/total"}
    stages = [*known, *sorted(others)]
    if not metrics.has("seconds/total"):
        return metrics, (title, note, stages)
    parts = [metrics.columns[name] for name in stages if metrics.has(name)]
    rest = [
        None if total is None else max(0.0, total - sum(part[i] or 0 for part in parts))
        for i, total in enumerate(metrics.columns["seconds/total"])
    ]
    columns = metrics.columns | {"seconds/rest": rest}
    return Metrics(metrics.steps, columns, metrics.not_finite), (title, note, [*stages, "seconds/rest"])


def _leftover(metrics: Metrics, used: set[str]) -> list[Chart]:
    """Metrics no chart has named, those with the same first name together."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(metrics.columns) - used):
        groups.setdefault(name.partition("/")[0], []).append(name)
    return [(f"Other: {group}", "", page) for group, names in groups.items() for page in _pages(names)]
