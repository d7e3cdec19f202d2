"""A tiny TTS model evaluated from end to end: what eval.json says follows from the answers beside it."""

import json
from pathlib import Path

import pytest
import yaml
from command import run
from reading_files import ROWS, listeners, write_files

from elocute.cli import app
from elocute.data.digest import digest_folder
from elocute.errors import InputError
from elocute.evaluation.read_aloud import evaluate_aloud, read_rows_to_read
from elocute.evaluation.reading import paired, summarise
from elocute.models import load_model
from elocute.recipe import load_rewards
from elocute.recipe.ears import PocketSphinxSpec

EAR = PocketSphinxSpec(kind="pocketsphinx", vocabulary=Path("starter/answers.txt"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def evaluated(files) -> tuple[Path, dict]:
    """By `elocute eval`."""
    words = ["--data", files / "rows.jsonl", "--labels", files / "listeners.yaml", "--vocabulary", EAR.vocabulary]
    return files / "out", run(files / "model", *words, "--seed", 3, "--max-new-tokens", 60, "-o", files / "out")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_eval_json_says_how_it_was_measured(evaluated, files):
    out, values = evaluated
    assert json.loads((out / "eval.json").read_text()) == values
    assert (values["suite"], values["seed"], values["temperature"], values["max_new_tokens"]) == ("reading", 3, 0.7, 60)
    assert [one["dimensions"] for one in values["labels"]] == [["emotion"], ["speed"]]
    assert values["labels"][0]["digests"] == {"path": digest_folder(files / "classifier")}
    assert values["limits"]["pitch_range"] == [1.0, None] and values["trained_against"] is None
    assert values["model_digest"] == {"result": digest_folder(files / "model")}
    assert "closed vocabulary" in values["ear"] and "normalise" in values["normalisation"]
    assert values["unjudged"] == {"result": {}} and "paired" not in values


def test_the_metrics_are_those_of_the_answers_written(evaluated):
    out, values = evaluated
    rows = lines(out / "result.jsonl")
    assert [(row["question_text"], row["labels"]) for row in rows] == ROWS
    assert values["result"] == {name: one.to_json() for name, one in summarise(rows).items()}
    assert values["result"]["wer"]["n"] == 5 and values["result"]["label_alignment"]["n"] == 4
    assert [set(row["labels_heard"]) for row in rows] == [set(labels) for _, labels in ROWS]
    assert {row["broken"] is None for row in rows} <= {True, False} and any(row["measured"] for row in rows)
    assert all((out / row["audio"]).is_file() for row in rows if row["measured"])
    assert rows[1]["measured"] != rows[3]["measured"]  # the same text and labels are two draws
    assert not list(out.glob("combinations*"))


def test_answers_do_not_depend_on_their_batch_or_company(files, tmp_path):
    """And combinations, spoken at the same time, are in files of their own."""
    lm, specs = load_model(files / "model"), load_rewards(files / "listeners.yaml")
    rows = read_rows_to_read(files / "rows.jsonl", None, files / "model", EAR, specs, "labels")
    found = []
    for name, batch, combine in (("before", 2, True), ("after", 64, False)):
        found.append(
            evaluate_aloud(
                lm, rows, name, earlier=found[-1] if found else {}, model=files / "model", data=files / "rows.jsonl",
                samples=tmp_path, ear=EAR, labels=specs, seed=1, temperature=0.7, max_new_tokens=60, batch=batch,
                combine=combine,
            )
        )  # fmt: skip
    before, after = (lines(tmp_path / f"{name}.jsonl") for name in ("before", "after"))
    for old, new in zip(before, after, strict=True):
        assert old | {"audio": None} == new | {"audio": None}
    assert "paired" not in found[0]
    assert found[1]["paired"] == paired(before, after) and found[1]["paired"]["wer"] == {"p": 1.0, "n": 5}
    assert found[1]["before"] == found[0]["before"] == found[1]["after"]
    every = lines(tmp_path / "combinations-before.jsonl")
    assert len(every) == 9 and {row["question_text"] for row in every} == {"the train leaves at nine"}
    assert every[0]["labels"] == {"emotion": "Neutral", "speed": "Slow"} and len({row["id"] for row in every}) == 9
    assert all(set(row["labels_heard"]) == {"emotion", "speed"} for row in every)
    assert all((tmp_path / row["audio"]).is_file() for row in every if row["audio"])
    assert not (tmp_path / "combinations-after.jsonl").exists()


def check(files, *, rows: list[dict] | None = None, labels: list[dict] | None = None):
    data = files / "rows.jsonl"
    if rows is not None:
        data = files / "bad.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (files / "bad.yaml").write_text(json.dumps({"rewards": labels or listeners(files)}))
    return read_rows_to_read(data, None, files / "model", EAR, load_rewards(files / "bad.yaml"), "evaluation.labels")


def asking(text: str, **labels: str) -> dict:
    return {"messages": [{"role": "user", "content": text}], "labels": labels}


def test_rows_that_cannot_be_read_are_named_before_anything_loads(files):
    rows = [asking("one", emotion="Glad"), asking("?!"), asking("two", emotion="Happy"), asking("<|text|>")]
    with pytest.raises(InputError) as caught:
        check(files, rows=rows)
    first, second, fourth = str(caught.value).split("\n")
    assert first.startswith(f"{files / 'bad.jsonl'}:1: labels.emotion: no such label: 'Glad'; nearest: ")
    assert second == f"{files / 'bad.jsonl'}:2: messages: expected words to say, found '?!'"
    assert fourth.startswith(f"{files / 'bad.jsonl'}:4: text: the text holds the control token")


def test_listeners_that_cannot_hear_the_rows_are_named(files):
    emotion, prosody = listeners(files)
    with pytest.raises(InputError, match=r"^evaluation.labels.1: emotion is heard by evaluation.labels.0 too; choose"):
        check(files, labels=[emotion, emotion])
    with pytest.raises(InputError, match=r"^evaluation.labels.0: no row has a label in speed$"):
        check(files, rows=[asking("one", emotion="Happy", speed=None)], labels=[prosody])
    with pytest.raises(InputError, match=r"bad.jsonl:1: labels.emotion: expected one of .*, got 'Very Sad'"):
        check(files, rows=[asking("one", emotion="Very Sad")], labels=[emotion | {"label_map": {}}])


def elocute(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-k", 3], "--top-k: not an option of --suite reading; it has --allow-trained, "),
        (["--suite", "spoken-qa"], "a TTS model reads a text aloud, it answers no questions"),
        (["--labels", "rules.yaml"], "rules.yaml: rewards.0: kind: expected one that hears labels, .* got rule"),
        (["--max-new-tokens", 999], "rows.jsonl:1: max_new_tokens: expected at most"),
    ],
)
def test_what_does_not_fit_is_one_line(files, tmp_path, monkeypatch, words, said):
    (tmp_path / "rules.yaml").write_text("rewards: [{kind: rule, column: answer}]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        elocute("eval", files / "model", "--data", files / "rows.jsonl", "-o", tmp_path / "out", *words)
    assert "\n" not in str(caught.value) and not (tmp_path / "out/eval.json").exists()


def test_a_model_that_answers_is_not_read_aloud(files, tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "asks")
    words = ["--suite", "reading", "--data", files / "rows.jsonl", "-o", tmp_path / "out"]
    with pytest.raises(InputError, match="asks: expected a model that reads aloud"):
        elocute("eval", tmp_path / "asks", *words)


def test_a_dry_run_loads_no_weights(files, tmp_path, capsys):
    words = ["--data", files / "rows.jsonl", "--labels", files / "listeners.yaml", "--rows", 3, "--dry-run"]
    (tmp_path / "model").symlink_to(files / "model")
    (tmp_path / "recipe.yaml").write_text("rewards: []")
    elocute("eval", tmp_path, *words, "-o", tmp_path / "out")
    assert "rows: 3" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_who_decided_a_run_does_not_hear_it(files, tmp_path):
    """The same classifier is refused, and so is measuring what was measured; allowed, it is written down."""
    (tmp_path / "model").symlink_to(files / "model")
    emotion, prosody = listeners(files)
    trained = [emotion | {"name": "felt"}, {"kind": "prosody", "labels": prosody["labels"], "weight": 0.5}]
    words = ["--data", files / "rows.jsonl", "--labels", files / "listeners.yaml", "--rows", 2]
    words += ["--vocabulary", EAR.vocabulary, "--max-new-tokens", 24]
    for number, name in enumerate(("felt", "prosody")):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"rewards": [trained[number]]}))
        with pytest.raises(InputError, match=f"{name!r} decided the run and --labels rewards.{number} is the same"):
            elocute("eval", tmp_path, *words, "-o", tmp_path / "out")
    values = run(tmp_path, *words, "-o", tmp_path / "out", "--allow-trained")
    assert values["trained_against"] == {"--labels rewards.1": "prosody"}
