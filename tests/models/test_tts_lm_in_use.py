"""TTS LMs speak from the command line; verbs that do not fit say so."""

import json
import shlex
from pathlib import Path

import pytest

from elocute.cli import app
from elocute.data.audio import load_audio
from elocute.errors import InputError, RunError
from elocute.models import load_model
from elocute.rollout.speak import speak
from tests.models.tts_folders import tts_lm

TEXT = "the train leaves at nine"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tts")
    tts_lm(folder).save(folder / "model")
    return folder / "model"


def elocute(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_speak_with_labels(model, tmp_path, capsys):
    out = tmp_path / "happy.wav"
    elocute("speak", model, "--text", TEXT, "--emotion", "Very Sad", "--speed=Fast", "-o", out, "--json", "--seed", 3)
    found = json.loads(capsys.readouterr().out)
    waveform, rate = load_audio(out, silent=True)
    assert found == {
        "audio": str(out),
        "seconds": len(waveform) / rate,
        "units": round(len(waveform) / rate * 62.5),
        "labels": {"emotion": "Very Sad", "speed": "Fast"},
    }
    elocute("speak", model, "--text", TEXT, "-o", out, "--seed", 3)
    seconds = load_audio(out, silent=True)[0].size / rate
    assert f"{out} ({seconds:.2f} s, {round(seconds * 62.5)} units)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--emotion", "happy"], "labels.emotion: no such label: 'happy'; nearest: Happy"),
        (["--mood", "Happy"], "speak: no such option: --mood; this model's labels: --emotion, --speed"),
        (["--emotion"], "speak: --emotion: expected a label"),
        (["--emotion="], "speak: --emotion: expected a label"),
        (["--emotion", "--speed", "Fast"], "speak: --emotion: expected a label"),
        (["--speed=Fast", "--speed", "Slow"], "speak: --speed: expected once"),
        (["Happy"], "speak: no such option: Happy; this model's labels"),
        (["--text", " "], "text: expected a text to speak, got nothing"),
        (["--text", "<|text|>"], "text: the text holds the control token '<|text|>'"),
        (["--text", "nine " * 300], "text: too long: its prompt has 302 tokens, the model's context holds 256"),
        (["--max-new-tokens", "999"], "max_new_tokens: expected at most"),
        (["-o", "starter"], "speak: -o starter: expected a file, found a folder"),
    ],
)
def test_what_cannot_be_spoken_is_one_line(model, tmp_path, words, said):
    with pytest.raises(InputError) as caught:
        elocute("speak", model, "--text", TEXT, "-o", tmp_path / "x.wav", *words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x.wav").exists()


def test_labels_before_the_model_are_told_their_place(model, tmp_path):
    with pytest.raises(InputError, match="^speak: --emotion: MODEL comes first, its labels behind it$"):
        elocute("speak", "--emotion", "Happy", model, "--text", TEXT, "-o", tmp_path / "x.wav")


def test_what_the_readme_has_spoken_is_spoken(tmp_path):
    """The starter's base model breaks one answer in six: not the first one that somebody hears of it."""
    [command] = [line for line in Path("README.md").read_text().splitlines() if line.startswith("elocute speak")]
    [_, *words] = shlex.split(command)
    words[words.index("-o") + 1] = str(tmp_path / "said.wav")
    elocute(*words)
    assert 1 < load_audio(tmp_path / "said.wav")[0].size / 16_000 < 4


def test_broken_speech_is_not_written(model, tmp_path):
    said = "the speech is broken .no end.*; another --seed or a higher --max-new-tokens may do better"
    with pytest.raises(RunError, match=said):
        elocute("speak", model, "--text", TEXT, "-o", tmp_path / "x.wav", "--max-new-tokens", 4)
    assert not (tmp_path / "x.wav").exists()


def test_how_a_text_is_spoken_does_not_depend_on_what_else_is(model):
    lm = load_model(model)
    asked = [(TEXT, {}), ("one", {"emotion": "Happy"}), ("two three", {"speed": "Slow", "emotion": "Happy"})]
    together = speak(lm, asked, seed=1, batch=2)
    alone = [speak(lm, [one], seed=1)[0] for one in asked[::-1]][::-1]
    assert [spoken.units for spoken in together] == [spoken.units for spoken in alone]
    assert [(spoken.text, spoken.labels) for spoken in together] == asked
    swapped = speak(lm, [("two three", {"emotion": "Happy", "speed": "Slow"})], seed=1)[0]
    assert swapped.units == alone[2].units
    assert speak(lm, [asked[0]], seed=2)[0].units != alone[0].units


def test_verbs_that_ask_refuse_a_model_that_reads(model, tiny_lm, tmp_path):
    said = f"^{model}: a TTS model reads a text aloud, it answers no questions; see elocute speak$"
    with pytest.raises(InputError, match=said):
        elocute("chat", model, "--text", "who?", "-o", tmp_path / "x.wav")
    questions = "starter/data/heldout.jsonl"
    with pytest.raises(InputError, match=said):
        elocute("eval", model, "--suite", "spoken-qa", "--data", questions, "-o", tmp_path / "out")
    said = f"{questions}:2: messages: expected one, the text to speak, and no audio; got 1 and 1 audios"
    with pytest.raises(InputError, match=said):
        elocute("eval", model, "--data", questions, "-o", tmp_path / "out")
    recipe = ["recipes/starter/wavalign.yaml", f"model={model}", f"run_dir={tmp_path / 'run'}"]
    for more in (["--dry-run"], []):
        with pytest.raises(InputError, match=said):
            elocute("train", *recipe, *more)
    tiny_lm.save(tmp_path / "asks")
    with pytest.raises(InputError, match="asks: expected a model that reads aloud, this one answers questions"):
        elocute("speak", tmp_path / "asks", "--text", TEXT)


def rows_file(folder: Path, *labels: dict) -> Path:
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": "one"}], "labels": of} for n, of in enumerate(labels)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def test_a_dry_run_names_every_row_with_unknown_labels(model, tmp_path, capsys):
    words = ["recipes/starter/wavalign.yaml", f"model={model}", "data.eval=null", f"run_dir={tmp_path / 'run'}"]
    words += ["rewards=[{kind: asr}]", "objective.policy_gradient.scope=speech", "--dry-run"]
    data = rows_file(tmp_path, {"emotion": "Happy"}, {"emotion": "Glad"}, {"pitch": "High"})
    with pytest.raises(InputError) as caught:
        elocute("train", *words, f"data.train={data}")
    second, third = str(caught.value).splitlines()
    assert second.startswith(f"{data}:2: labels.emotion: no such label: 'Glad'; nearest: ")
    assert third.startswith(f"{data}:3: labels.pitch: no such dimension; nearest: ")
    rows_file(tmp_path, {"emotion": "Happy"}, {})
    elocute("train", *words, f"data.train={data}")
    assert "data.train has 2 rows" in capsys.readouterr().out


def test_candidates_carry_the_text_that_should_be_heard_and_the_labels(model, tmp_path):
    data = rows_file(tmp_path, {"emotion": "Happy"}, {"speed": "Slow"})
    recipe = ["recipes/starter/wavalign.yaml", f"model={model}", "data.eval=null", "rollout.max_new_tokens=40"]
    elocute("sample", *recipe, "--data", data, "-n", 3, "-o", tmp_path / "out", "--json")
    lines = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [{"emotion": "Happy"}, {"speed": "Slow"}]
    outputs = [output for line in lines for output in line["output"].values()]
    assert {output["output-text"] for output in outputs} == {"one"} and any(o["output-audio"] for o in outputs)
