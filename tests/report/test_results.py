import io

import pytest
from rich.console import Console

from elocute.errors import InputError
from elocute.report.results import METRICS, compare, results_table


def estimate(value, low, high, n=200):
    return {"value": value, "n": n, "ci95": [low, high]}


def evaluation(metric, before, after):
    return {"before": {metric: estimate(*before)}, "after": {metric: estimate(*after)}}


def shown(values, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(values))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("metric", "after", "verdict"),
    [
        ("answer_accuracy_text", (0.60, 0.53, 0.66), "better"),
        ("answer_accuracy_text", (0.20, 0.15, 0.26), "worse"),
        ("answer_accuracy_text", (0.42, 0.35, 0.49), "no clear change"),
        ("speech_wer", (0.60, 0.53, 0.66), "worse"),  # fewer errors are better
        ("broken_audio", (0.20, 0.15, 0.26), "better"),
    ],
)
def test_verdict_follows_the_interval_and_the_metric(metric, after, verdict):
    (change,) = compare(evaluation(metric, (0.40, 0.33, 0.47), after))
    assert change.verdict == verdict


def test_table_shows_values_intervals_and_points():
    text = shown(evaluation("answer_accuracy_text", (0.40, 0.33, 0.47), (0.3, 0.24, 0.367)))
    for part in ("40.0 %", "33.0 – 47.0", "30.0 %", "24.0 – 36.7", "−10.0", "200"):
        assert part in text


def test_one_side_and_nothing_measured():
    values = {"after": {"speech_wer": {"value": None, "n": 0, "ci95": None}, "broken_audio": estimate(1.0, 0.98, 1.0)}}
    wer, broken = compare(values)
    assert wer.delta is None and broken.delta is None and broken.verdict == ""
    assert "100.0 %" in shown(values)
    assert compare({}) == []


@pytest.mark.parametrize(
    "entry",
    [
        0.5,
        {"value": 0.5},
        {"value": "0.5", "n": 3, "ci95": [0, 1]},
        {"value": 0.5, "n": 3, "ci95": [0]},
        {"value": 0.5, "n": 3, "ci95": 0.1},
    ],
)
def test_a_malformed_estimate_is_named(entry):
    with pytest.raises(InputError, match=r"eval.json: before.speech_wer: expected .*ci95"):
        compare({"before": {"speech_wer": entry}})


def test_a_malformed_side_is_named():
    with pytest.raises(InputError, match="eval.json: after: expected an object"):
        compare({"after": [1]})


def test_one_models_result_has_a_table_too():
    text = shown({"result": {"speech_wer": estimate(0.063, 0.041, 0.088, n=57)}})
    for part in ("Word errors", "6.3 %", "4.1 – 8.8", "57"):
        assert part in text
    assert "before" not in text


def test_tables_fit_80_columns():
    values = {side: {name: estimate(0.4, 0.3, 0.5, 1000) for name in METRICS} for side in ("before", "after")}
    text = shown(values, width=80)
    assert "Word errors of the speech" in text and "−14.1 to +14.1" in text and "…" not in text


def test_a_paired_test_decides_where_there_is_one():
    values = evaluation("wer", (0.40, 0.33, 0.47), (0.36, 0.30, 0.43)) | {"paired": {"wer": {"p": 0.0002, "n": 200}}}
    (change,) = compare(values)
    assert change.verdict == "better" and change.shown_p == "p < 0.001" and "p < 0.001" in shown(values, width=80)
    values["paired"]["wer"]["p"] = 0.2
    assert compare(values)[0].verdict == "no clear change"
    for paired in ([], {"wer": 0.2}, {"wer": {"n": 3}}):
        if paired:
            with pytest.raises(InputError, match="eval.json: paired: expected"):
                compare(values | {"paired": paired})


def test_what_is_neither_good_nor_bad_is_more_or_less():
    (change,) = compare(evaluation("f0_range", (6.0, 5.5, 6.5), (4.0, 3.6, 4.4)))
    assert change.verdict == "less" and "6.00 st" in shown(evaluation("f0_range", (6.0, 5.5, 6.5), (4.0, 3.6, 4.4)))
    assert "−2.00" in shown(evaluation("f0_range", (6.0, 5.5, 6.5), (4.0, 3.6, 4.4)))


def test_each_dimension_stands_below_all_labels():
    names = ("wer", "label_alignment/speed", "label_alignment", "label_alignment/emotion", "no_such_metric")
    found = compare({"after": {name: estimate(0.4, 0.3, 0.5) for name in names}})
    assert [change.metric.label for change in found] == ["Word errors", "Labels heard", "… emotion", "… speed"]
