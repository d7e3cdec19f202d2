import re
from pathlib import Path

import pytest

from elocute.report.curves import curves, thin
from elocute.report.read import Metrics, read_run


def titles(figures):
    return [re.search(r"<h3>(.*?)</h3>", figure)[1] for figure in figures]


def test_every_metric_of_a_run_is_drawn(finished_run: Path):
    names = list(read_run(finished_run).metrics.columns)
    numbers = {name: float(1000 + index) for index, name in enumerate(names)}
    page = "".join(curves(Metrics([1], {name: [number] for name, number in numbers.items()}, {})))
    latest = {float(number) for number in re.findall(r"<li>.*? <b>(\d+)</b>", page)}
    not_drawn = {name for name, number in numbers.items() if number not in latest}
    assert not_drawn == {"reward/std", "seconds/total"}  # the band, and the height of the stack


def test_each_measure_has_a_chart_of_its_own():
    names = ["measured/asr/wer", "measured/guard/pitch_range", "spread/asr", "spread/prosody", "alarm/spread/asr"]
    figures = curves(Metrics([1], {name: [1.0] for name in names}, {}))
    assert titles(figures) == ["Spread of rewards", "asr: wer", "guard: pitch range"]


def test_a_run_without_rollouts_has_fewer_charts():
    metrics = Metrics([1, 2], {"loss/total": [1.0, 2.0], "reward/mean": [None, None], "lr": [0.1, 0.2]}, {})
    assert titles(curves(metrics)) == ["Loss: total and supervised", "Learning rate"]


def test_unknown_metrics_get_a_chart_of_their_own():
    columns = {f"new/{i}": [1.0] for i in range(10)} | {"new/gone": [None]}
    figures = curves(Metrics([1], columns, {}))
    assert titles(figures) == ["Other: new", "Other: new"]  # as many as there are colours
    assert "".join(figures).count("<li>") == 10


def test_a_preference_run_has_its_own_charts():
    """Held-out pairs are measured now and then, the first time before the first step."""
    sides = [f"{side}_{modality}" for side in ("chosen", "rejected") for modality in ("text", "speech")]
    pairs = [f"pairs/{name}" for name in ("kept", "equal", "small_gap", "unjudged", "no_tokens")]
    names = ["dpo/accuracy", "dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward", "loss/dpo", *pairs]
    columns = {name: [None, 1.0, 2.0] for name in names + [f"logp/{side}" for side in sides]}
    columns |= {"dev/accuracy": [0.5, None, 0.75], "dev/margin": [0.0, None, 3.0], "dev/best_step": [None, None, 2.0]}
    figures = curves(Metrics([0, 1, 2], columns, {}))
    assert titles(figures) == [
        "Reward accuracy",
        "Reward margin",
        "Rewards of chosen and rejected",
        "Log-probs of chosen and rejected",
        "Loss: preference",
        "Pairs",
        "Best step so far",
    ]
    assert "dpo accuracy <b>2</b>" in figures[0] and "dev accuracy <b>0.75</b>" in figures[0]
    assert "".join(figures).count("<li>") == len(columns)


def test_seconds_no_stage_accounts_for_are_shown_as_rest():
    columns = {"seconds/rollout": [1.0, 1.0], "seconds/warm": [0.5, None], "seconds/total": [2.0, 0.5]}
    metrics = Metrics([1, 2], columns, {})
    (figure,) = curves(metrics)
    assert "rest: 0.5" in figure and "rest: 0\n" in figure and "warm: 0.5" in figure
    assert "seconds/rest" not in metrics.columns


def test_thin_keeps_the_mean_and_the_last_step():
    metrics = Metrics(list(range(1, 8)), {"a": [1.0, 2.0, None, 4.0, None, None, 7.0], "b": [None] * 7}, {})
    thinned, each = thin(metrics, 4)
    assert each == 2 and thinned.steps == [2, 4, 6, 7]
    assert thinned.columns == {"a": [1.5, 4.0, None, 7.0], "b": [None] * 4}
    assert thin(metrics, 7) == (metrics, 1)


@pytest.mark.parametrize("steps", [400, 401, 5000])
def test_long_runs_stay_light(steps):
    (figure,) = curves(Metrics(list(range(1, steps + 1)), {"lr": [1.0] * steps}, {}))
    assert figure.count("<rect") <= 400
    assert ("each point is the mean of" in figure.lower()) == (steps > 400)
