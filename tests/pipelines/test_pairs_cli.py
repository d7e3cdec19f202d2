"""`elocute pairs` as it is typed."""

import json
from functools import partial

import pytest

from tests.pipelines.pair_files import as_lines, candidate, row, some_rows


@pytest.fixture
def typed(tmp_path, type_command):
    """Type `elocute pairs …` in a folder with candidates: (exit status, stdout, stderr)."""
    (tmp_path / "c.jsonl").write_text(as_lines(some_rows(40)))
    return partial(type_command, "pairs")


def test_names_with_dashes_and_with_underscores(typed, tmp_path):
    dashes = ["--input", "c.jsonl", "--output", "a.jsonl", "--min-score-gap", 6, "--score-mode", "weighted"]
    dashes += ["--semantic-weight", 2, "--paralinguistic-weight", 1, "--chosen-source", "best_output", "--top-k", 9]
    status, out, err = typed(*dashes, "--max-samples", 5, "--seed", 3, "--generated-audio-root", ".")
    assert status == 0, err
    assert "40 rows → 5 pairs: a.jsonl" in out and "gap below 6: " in out and "not drawn for --max-samples: 4" in out
    assert "MiB of candidates 1/1" in err
    beside = {f"a.card.{suffix}" for suffix in ("md", "json", "html")}
    assert {path.name for path in tmp_path.iterdir()} == {"c.jsonl", "a.jsonl", *beside}
    words = [w.replace("-", "_").replace("__", "--", 1) if str(w).startswith("--") else w for w in map(str, dashes)]
    words = ["--input_path" if w == "--input" else "--output_path" if w == "--output" else w for w in words]
    words[3] = "b.jsonl"
    assert typed(*words, "--max_samples", 5, "--seed", 3, "--generated_audio_root", ".", "--json")[0] == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_same_command_again_and_another_one(typed):
    assert typed("--input", "c.jsonl", "--output", "a.jsonl")[0] == 0
    status, out, _ = typed("--input", "c.jsonl", "--output", "a.jsonl", "--json")
    assert status == 0 and json.loads(out)["pairs"]["written"] == 40
    status, _, err = typed("--input", "c.jsonl", "--output", "a.jsonl", "--rule", "rank")
    assert (status, err) == (2, "a.jsonl: there already, and not made by this command; choose another --output\n")


def test_a_dry_run_checks_and_writes_nothing(typed, tmp_path):
    assert typed("--input", "c.jsonl", "--output", "a.jsonl", "--dry-run")[1] == (
        "# checked: the first 40 rows give 40 pairs\n"
    )
    status, out, _ = typed("--input", "c.jsonl", "--output", "a.jsonl", "--dry-run", "--json", "--min-score-gap", 4)
    assert status == 0 and json.loads(out)["first_part"]["dropped"].keys() == {"gap below 4"}
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "best"], "best"),
        (["--rule", "threshold"], "measures.auto_bleu: expected a number, for --rule threshold"),
        (["--min-score-gap", 9], "c.jsonl: no pair is left of 40 rows: gap below 9: 40"),
        (["--score-mode", "reward"], "fewer than two usable candidates: 40 (of 160 candidates, without a score: 160)"),
        (["--input", "d.jsonl"], "--input: no such file: d.jsonl"),
    ],
)
def test_what_cannot_be_is_status_2(typed, tmp_path, words, said):
    status, out, err = typed("--input", "c.jsonl", "--output", "a.jsonl", *words)
    assert status == 2 and said in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_malformed_rows_are_all_named(typed, tmp_path):
    (tmp_path / "c.jsonl").write_text(as_lines([{}, row(candidate(), candidate()), {"output": 3}]))
    status, _, err = typed("--input", "c.jsonl", "--output", "a.jsonl")
    assert status == 2 and [line.split(" ")[0] for line in err.splitlines()] == ["c.jsonl:1:", "c.jsonl:3:"]
