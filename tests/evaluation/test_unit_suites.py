"""Suites from end to end, by the command line: official trees, a unit LM's folder, eval.json and what is beside it."""

import csv
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elocute.cli import app
from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_folder
from elocute.errors import InputError
from elocute.evaluation import unit_suites
from elocute.evaluation.likelihood import file_logprobs
from elocute.evaluation.pair_accuracy import accuracies
from elocute.evaluation.suites import SUITES, read_scores
from elocute.evaluation.unit_suites import check_options
from elocute.evaluation.write_suites import write_gold_suite, write_salmon_part, write_storycloze
from elocute.models.unit_lm import UnitLM
from elocute.report.suites import suite_table
from tests.evaluation.command import run
from tests.evaluation.tiny_unit_lm import record


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path) -> Path:
    """All four suites, a few sounds each."""
    sounds = [record(tmp_path / f"sounds/{seed}.wav", seed, 0.4 + 0.05 * seed) for seed in range(8)]
    words = []
    for number in range(3):
        for voice in "AB":
            for right in (1, 0):
                row = {"id": number, "voice": voice, "frequency": 3 * number, "correct": right}
                words.append((sounds[4 * (number % 2) + 2 * (voice == "B") + right], row))
    write_gold_suite(tmp_path / "data/lexical/dev", words)
    sentences = [(path, row | {"type": "t", "subtype": "s"}) for path, row in words]
    write_gold_suite(tmp_path / "data/syntactic/dev", sentences)
    write_storycloze(tmp_path / "data/cloze/tStoryCloze", {"a": (sounds[0], sounds[1]), "b": (sounds[3], sounds[3])})
    write_salmon_part(tmp_path / "data/salmon/rir_consistency", [(sounds[5], sounds[6])])
    return tmp_path / "data"


def test_a_likelihood_suite_from_the_command_line(model, data, tmp_path):
    words = (model, "--suite", "swuggy", "--data", data, "-o", tmp_path / "out")
    assert run(*words, "--dry-run") == {"model": str(model), "dev": "12 files, 6 pairs"}
    assert not (tmp_path / "out").exists()
    values = run(*words)
    assert values == json.loads((tmp_path / "out/eval.json").read_text())
    assert (values["suite"], values["normalisation"], values["seeds"]) == ("swuggy", "mean", {"bootstrap": 0})
    assert values["model_digest"] == digest_folder(model) and len(values["data_digest"]) == 64
    assert values["versions"]["torch"] == version("torch") and "pocketsphinx" in values["versions"]
    assert list(values["result"]) == ["dev_all", "dev_in_vocab"] and values["result"]["dev_all"]["n"] == 3
    assert set(values["tables"]["dev_by_frequency"]) == {"oov", "1-5", "6-20"}
    # the score file is what the official evaluator takes, and says the same
    assert values["score_files"] == ["lexical/dev.txt"]
    [part] = SUITES["swuggy"].read(data)
    again = accuracies(SUITES["swuggy"], part, read_scores(tmp_path / "out/lexical/dev.txt", data / "lexical/dev"))
    assert {name: estimate.to_json() for name, estimate in again.items()} == values["result"]
    # and scores are those of the model
    lm = UnitLM.load(model)
    logprobs = file_logprobs(lm, EncodedAudio(lm.codec), part.files, batch=3)
    scores = read_scores(tmp_path / "out/lexical/dev.txt", data / "lexical/dev")
    assert scores == {file: pytest.approx(total / count, abs=1e-6) for file, (total, count) in logprobs.items()}
    assert values["tokens"] == sum(count for _, count in logprobs.values())


def test_the_normalisation_is_chosen_and_named(model, data, tmp_path):
    said = ["eval", str(model), "--suite", "storycloze", "--data", str(data / "cloze"), "--normalisation", "sum"]
    done = CliRunner().invoke(app, [*said, "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0 and "storycloze: sum log-prob" in done.stdout
    values = json.loads((tmp_path / "out/eval.json").read_text())
    assert values["normalisation"] == "sum" and values["result"]["tStoryCloze"]["n"] == 2
    [part] = SUITES["storycloze"].read(data / "cloze")
    lm = UnitLM.load(model)
    logprobs = file_logprobs(lm, EncodedAudio(lm.codec), part.files)
    scores = read_scores(tmp_path / "out/storycloze/tStoryCloze.txt", data / "cloze/tStoryCloze")
    assert scores == {file: pytest.approx(total, abs=1e-4) for file, (total, _) in logprobs.items()}
    same = [pair for pair in part.pairs if pair.item == ("b",)]
    assert scores[same[0].positive] == scores[same[0].negative]  # the same sound: a tie, to the last bit
    assert values["result"]["tStoryCloze"]["value"] in (0.25, 0.75)


def test_the_other_suites(model, data, tmp_path):
    blimp = run(model, "--suite", "sblimp", "--data", data, "-o", tmp_path / "blimp")
    assert list(blimp["tables"]["dev_by_type"]) == ["t"] and (tmp_path / "blimp/syntactic/dev.txt").is_file()
    salmon = run(model, "--suite", "salmon", "--data", data / "salmon", "-o", tmp_path / "salmon")
    assert list(salmon["result"]) == ["rir_consistency"] and len(salmon["missing_parts"]) == 7
    assert "tables" in salmon and not salmon["tables"]
    assert (
        suite_table(salmon | {"tables": {"dev_by_frequency": {}}}).row_count == 1
    )  # a table without rows has no title


def test_the_data_digest_is_of_what_was_used(model, data, tmp_path):
    first, second = (run(model, "--suite", "sblimp", "--data", data, "-o", tmp_path / name) for name in "ab")
    assert first == second
    gold = data / "syntactic/dev/gold.csv"
    with open(gold) as file:
        name = next(csv.DictReader(file))["filename"]
    record(gold.with_name(f"{name}.wav"), 77)
    assert run(model, "--suite", "sblimp", "--data", data, "-o", tmp_path / "c")["data_digest"] != first["data_digest"]


def test_the_data_digest_is_of_the_gold_table_too(model, data, tmp_path):
    """Every label turned round: the same sounds, another result, another digest."""
    first = run(model, "--suite", "sblimp", "--data", data, "-o", tmp_path / "a")
    gold = data / "syntactic/dev/gold.csv"
    turned = [row | {"correct": str(1 - int(row["correct"]))} for row in csv.DictReader(gold.open())]
    with gold.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(turned[0]))
        writer.writeheader()
        writer.writerows(turned)
    second = run(model, "--suite", "sblimp", "--data", data, "-o", tmp_path / "b")
    accuracies = [values["result"]["dev_all"]["value"] for values in (first, second)]
    assert accuracies[0] == pytest.approx(1 - accuracies[1]) and first["data_digest"] != second["data_digest"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "swagger"], "--suite swagger: expected spoken-qa, swuggy, sblimp, storycloze, salmon, contin"),
        (
            ["--suite", "salmon", "--judge", "x.yaml"],
            "--judge: not an option of --suite salmon; it has --normalisation",
        ),
        (["--suite", "swuggy", "--rows", "3"], "--rows: not an option of --suite swuggy"),
        (["--suite", "swuggy", "--seed", "0"], "--seed: not an option of --suite swuggy; it has --normalisation"),
        (["--suite", "sblimp", "--max-new-tokens", "9"], "--max-new-tokens: not an option of --suite sblimp"),
        (["--suite", "salmon", "--top-k", "9"], "--top-k: not an option of --suite salmon"),
        (["--suite", "storycloze", "--allow-trained"], "--allow-trained: not an option of --suite storycloze"),
        (["--normalisation", "sum"], "--normalisation: not an option of --suite spoken-qa"),
        (["--suite", "sblimp", "--normalisation", "max"], "--normalisation max: expected mean or sum"),
        (["--suite", "sblimp", "--data", "src"], "src: expected syntactic/dev/gold.csv in it"),
        (["--suite", "continuation", "--data", "src"], "src: expected sound files"),
        (["--suite", "continuation", "--judge", "nowhere.yaml"], "nowhere.yaml: cannot read"),
    ],
)
def test_wrong_options_are_one_line(model, data, tmp_path, words, said):
    with pytest.raises(InputError) as caught:
        run(model, "--data", data / "salmon/rir_consistency", "-o", tmp_path / "out", *words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_also_writes_takes_no_likelihood_suite(tiny_lm, data, tmp_path):
    tiny_lm.save(tmp_path / "model")
    with pytest.raises(InputError, match="--suite salmon: expected a unit LM"):
        run(tmp_path / "model", "--suite", "salmon", "--data", data / "salmon", "-o", tmp_path / "out")


def test_every_options_suite_is_known():
    for suite in unit_suites.OPTIONS:
        check_options(suite, {"--seed": None})
