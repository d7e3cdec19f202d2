"""What is wrong in a run folder is said with file and line; what is not there yet is no error."""

import json

import pytest

from elocute.errors import InputError
from elocute.report.read import read_metrics, read_run


def test_reads_a_finished_run(finished_run):
    run = read_run(finished_run)
    assert run.recipe["steps"] == 40
    assert run.metrics.steps == list(range(1, 41))
    assert len(run.metrics.columns["reward/mean"]) == 40
    assert run.metrics.columns["seconds/checkpoint"][18:20] == [None, 0.2]
    assert len(run.before) == len(run.after) == 60
    assert list(run.rollouts) == [10, 20, 30, 40]  # by number, not by name


def test_a_run_in_progress_is_no_error(small_run):
    samples = [f"samples/{name}.jsonl" for name in ("before", "after", "step-10")]
    for name in ("eval.json", "environment.json", *samples):
        (small_run / name).unlink()
    run = read_run(small_run)
    assert run.evaluation == run.environment == run.rollouts == {} and run.before == run.after == []


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such run folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl"])
def test_missing_file(small_run, name):
    (small_run / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: no such file; is .* a run folder\?"):
        read_run(small_run)


def test_no_metrics_yet(small_run):
    (small_run / "metrics.jsonl").write_text("\n")
    with pytest.raises(InputError, match="metrics.jsonl: no metrics yet"):
        read_run(small_run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "lambda"', r"line 3: not valid JSON"),
        ("[1, 2]", r"line 3: expected a JSON object, got list"),
        ('{"lambda": 0.1}', r"line 3: step: expected a whole number above 2, got None"),
        ('{"step": 2}', r"line 3: step: expected a whole number above 2, got 2"),
        ('{"step": 3, "lambda": "high"}', r"line 3: lambda: expected a number or null, got 'high'"),
        ('{"step": 3, "lambda": true}', r"line 3: lambda: expected a number or null, got True"),
    ],
)
def test_a_bad_line_of_metrics_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{{"step": 2}}\n{line}\n')
    with pytest.raises(InputError, match=f"metrics.jsonl, {message}"):
        read_metrics(path)


def test_columns_keep_step_when_metrics_come_and_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n\n{"step": 5, "b": 2}\n{"step": 6, "a": 3, "b": null}\n')
    metrics = read_metrics(path)
    assert metrics.steps == [1, 5, 6]
    assert metrics.columns == {"a": [1, None, 3], "b": [None, 2, None]}
    assert metrics.has("a") and not metrics.has("c")


def test_not_finite_values_are_kept_in_mind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": NaN, "b": Infinity}\n{"step": 3, "a": NaN}\n')
    metrics = read_metrics(path)
    assert metrics.columns == {"a": [1, None, None], "b": [None, None, None]}
    assert metrics.not_finite == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "no id"}, "line 1: id: expected a string, got None"),
        ({"id": "a", "audio": 3}, "line 1: audio: expected a path or null, got 3"),
        ({"id": "a", "rewards": [1]}, "line 1: rewards: expected an object"),
    ],
)
def test_a_bad_sample_is_named(small_run, row, message):
    (small_run / "samples" / "step-10.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"step-10.jsonl, {message}"):
        read_run(small_run)


def test_an_id_twice_cannot_be_paired(small_run):
    (small_run / "samples" / "after.jsonl").write_text('{"id": "a"}\n{"id": "a"}\n')
    with pytest.raises(InputError, match="after.jsonl: id: 'a' stands on more than one line"):
        read_run(small_run)


def test_a_line_separator_inside_a_text_ends_no_line(small_run):
    (small_run / "samples" / "after.jsonl").write_text('{"id": "a", "text": "one\u2028two"}\n', encoding="utf-8")
    assert read_run(small_run).after[0]["text"] == "one\u2028two"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "seed: 1\nrollout: {\n", r"recipe.yaml, line \d: not valid YAML"),
        ("recipe.yaml", "- 1\n", "recipe.yaml: expected a mapping"),
        ("eval.json", "{", "eval.json: not valid JSON"),
        ("environment.json", "3", "environment.json: expected a JSON object, got int"),
    ],
)
def test_bad_files_are_named(small_run, name, content, message):
    (small_run / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(small_run)
