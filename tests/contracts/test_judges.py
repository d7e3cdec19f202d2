"""Every judge on disk, opened as its folder is published: alone and in any batch, by `elocute score`, and misused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from elocute.cli import app
from elocute.data.audio import save_wav
from elocute.data.types import Answer, AudioRef, Example, Message, Utterance
from elocute.errors import InputError
from elocute.recipe import load_judges
from elocute.rewards import packaged
from elocute.rewards.asr import TransformersEar
from elocute.rewards.build import build_reward
from elocute.rewards.outcome import Invalid, Scored
from tests.contracts import judges
from tests.rewards import tiny_onnx
from tests.rewards.voices import RATE, voice

LABELS = {"structure": "Statement", "emotion": "Happy", "speed": "Slow", "tone": "Declarative"}
NAMES = {"Happy": ["hap"], "Sad": ["sad"], "Angry": ["ang"], "Neutral": ["neu"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    judges.whisper(root / "whisper-tiny")
    judges.qwen2_audio(root / "Qwen2-Audio-7B-Instruct", writes_verdicts=True)
    judges.mistral(root / "Mistral-7B-Instruct-v0.2", writes_verdicts=True)
    judges.emotion(root / "wav2vec2-base-superb-er")
    judges.speaker(root / "wavlm-base-plus-sv")
    tiny_onnx.mean_times(root / "sig_bak_ovr.onnx", [40.0, 50.0, 60.0])
    save_wav(root / "voice.wav", voice(150, 1.5), RATE)
    return root


def entries(models: Path) -> dict[str, dict]:
    """A recipe's entry for each judge."""
    here = {"device": "cpu", "batch_size": 3}
    qwen, mistral = (str(models / name) for name in ("Qwen2-Audio-7B-Instruct", "Mistral-7B-Instruct-v0.2"))
    chat = {"kind": "local_judge", "dtype": "float32", "max_tokens": 12, **here}
    ear = {"kind": "transformers", "path": str(models / "whisper-tiny"), **here}
    listener = {"kind": "transformers", "path": qwen, "dtype": "float32", **here}
    return {
        "whisper": {"kind": "asr", "form": "exp", "ear": ear},
        "labels": {"kind": "audio_judge", "dimensions": ["emotion", "speed"], "listener": listener},
        "listener": chat | {"path": qwen, "rubric": "acoustic"},
        "reader": chat | {"path": mistral, "rubric": "continuation", "send_audio": False},
        "emotion": {
            "kind": "emotion", "path": str(models / "wav2vec2-base-superb-er"), "label_map": NAMES, "device": "cpu",
        },
        "speaker": {
            "kind": "speaker", "path": str(models / "wavlm-base-plus-sv"), "device": "cpu", "weight": 1,
            "reference": str(models / "voice.wav"),
        },
        "dnsmos": {"kind": "dnsmos", "path": str(models / "sig_bak_ovr.onnx"), "weight": 1},
    }  # fmt: skip


JUDGES = list(entries(Path()))


def opened(models, tmp_path, name: str, **changes):
    """The reward that a file with this one judge describes."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"rewards": [entries(models)[name] | {"name": name} | changes]}))
    (spec,) = load_judges(file).rewards
    return build_reward(spec)


@pytest.fixture(scope="module")
def rewards(models, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("recipes")
    return {name: opened(models, tmp_path, name) for name in JUDGES}


@pytest.fixture(scope="module")
def pool(models) -> list[Answer]:
    """Proper answers of several lengths, rates and voices, and three that are not."""
    rng = np.random.default_rng(0)
    sounds = [(voice(110, 1.2), RATE), (np.repeat(voice(240, 0.4), 2), 2 * RATE), (voice(90, 2.1, level=0.02), RATE)]
    sounds += [(0.1 * rng.standard_normal(8 * 1200).astype(np.float32), 8_000), (np.zeros(0, np.float32), RATE)]
    sounds += [(np.full(100, np.nan, np.float32), RATE), (voice(120, 0.5), RATE)]
    texts = ["it is cold", "so it was", "it will rain", "cold", "mute", "broken sound", "no end"]
    row = Example(
        id="1", messages=(Message("user", "how is it"),), question_text="how is it", columns={"labels": LABELS},
        target_audio=AudioRef(models / "voice.wav"), file="rows.jsonl", line=7,
    )  # fmt: skip
    broken = [None] * 6 + ["no end"]
    return [Answer(row, Utterance(text, *sound, why)) for text, sound, why in zip(texts, sounds, broken, strict=True)]


@pytest.fixture(scope="module")
def alone(rewards, pool):
    return {name: [reward([answer])[0] for answer in pool] for name, reward in rewards.items()}


@pytest.mark.parametrize("name", JUDGES)
@settings(max_examples=5)
@given(order=st.lists(st.integers(0, 6), min_size=2, max_size=7))
def test_an_answer_is_judged_alike_in_any_batch_and_order(rewards, pool, alone, name, order):
    for found, i in zip(rewards[name]([pool[i] for i in order]), order, strict=True):
        wanted = alone[name][i]
        assert type(found) is type(wanted)
        if isinstance(found, Scored):
            assert found.value == pytest.approx(wanted.value, abs=1e-4)
            assert found.detail.get("heard") == wanted.detail.get("heard")
        else:
            assert found == wanted


@pytest.mark.parametrize("name", JUDGES)
def test_what_is_heard_matters_and_bad_answers_are_invalid(alone, name):
    proper = [outcome.value for outcome in alone[name][:4]]
    # Random verdicts and random words may well be alike: tests/rewards/test_local_judge.py and below.
    assert name in ("whisper", "listener", "reader") or np.ptp(proper) > 1e-4, proper
    reads = name == "reader"
    assert alone[name][4:6] == [Invalid("empty audio"), Invalid("the audio has values that are not finite")] or reads
    assert alone[name][6] == Invalid("no end")


def test_another_rate_is_the_same_sound(rewards, pool):
    """Twice as many samples a second: heard almost alike, by judges that hear 16 kHz."""
    slow = np.interp(np.arange(4 * RATE) / (2 * RATE), np.arange(2 * RATE) / RATE, voice(110, 2.0)).astype(np.float32)
    for name in ("labels", "emotion", "speaker", "dnsmos"):
        one, other = (
            rewards[name]([Answer(pool[0].example, Utterance("it is cold", wave, rate))])[0]
            for wave, rate in ((voice(110, 2.0), RATE), (slow, 2 * RATE))
        )
        assert one.value == pytest.approx(other.value, abs=0.02), name


def test_whisper_hears_english_a_batch_at_a_time_and_no_digital_silence(models):
    """Its first release forces and suppresses tokens by keys that have since gone; they must not be in the way."""
    ear = TransformersEar(models / "whisper-tiny", batch_size=4, device="cpu")
    calls, generate = [], ear.model.generate
    ear.model.generate = lambda **inputs: calls.append(inputs) or generate(**inputs)
    sounds = [voice(f0, seconds) for f0, seconds in ((110, 1.0), (240, 31.0), (90, 0.5))]
    silent = np.zeros(3 * RATE, np.float32)
    gap = np.concatenate([sounds[0], np.zeros(59 * RATE, np.float32), sounds[2]])
    heard = ear.transcribe([*sounds, silent, gap], RATE)
    assert [len(call["input_features"]) for call in calls] == [4, 2] and heard[3] == ""
    assert {(call["language"], call["task"]) for call in calls} == {("en", "transcribe")}
    assert [ear.transcribe([sound], RATE)[0] for sound in (*sounds, silent, gap)] == heard
    assert len(set(heard)) > 2
    assert ear.words([gap], RATE)[0][-1].end > 60  # the windows between hold nothing and still take their time


def candidates(folder: Path, models: Path) -> Path:
    """Two prompts with two candidates each, of which one is mute."""
    folder.mkdir()
    lines = []
    for n, f0 in enumerate((110, 220)):
        save_wav(folder / f"{n}.wav", voice(f0, 0.8), RATE)
        spoken = {"output-text": "it is cold", "output-audio": f"{n}.wav"}
        mute = {"output-text": "cold", "output-audio": None}
        ask = [{"role": "user", "content": "how is it"}]
        row = {"id": f"q{n}", "messages": ask, "labels": LABELS, "sft_target_audio": str(models / "voice.wav")}
        lines.append(json.dumps(row | {"output": {"a": spoken, "b": mute}}) + "\n")
    (folder / "candidates.jsonl").write_text("".join(lines))
    return folder / "candidates.jsonl"


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_alone_scores_candidates(models, tmp_path, name):
    """A file with one entry under `rewards` is all that `elocute score` needs."""
    file = tmp_path / "judge.yaml"
    file.write_text(yaml.safe_dump({"rewards": [entries(models)[name] | {"name": name}]}))
    given, out = candidates(tmp_path / "given", models), tmp_path / "scored.jsonl"
    done = CliRunner().invoke(app, ["score", str(file), "--candidates", str(given), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    bad = 0 if name == "reader" else 2
    assert summary["outcomes"] == {"scored": 4 - bad, "invalid": bad, "unavailable": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line["output"]["a"]["scores"][name] == line["output"]["a"]["score"] is not None for line in lines)
    assert (lines[1]["output"]["b"]["scores"][name] is None) == bool(bad)


def test_a_file_of_judges_says_what_is_wrong_in_it(models, tmp_path):
    file = tmp_path / "judges.yaml"
    for text, said in [
        ("rewards: []", "rewards: list should have at least 1 item"),
        ("rewards: [{kind: dnsmos}]\nreward_mx: {}", "reward_mx: unknown key"),
        ("rewards: [{kind: local_judge, path: nowhere}]", "rewards.0.path: no such folder or file: nowhere"),
        ("rewards: [{kind: local_judge, path: src, rubric: nice}]", "rewards.0.rubric: expected holistic, .*'nice'"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=f"judges.yaml: {said}"):
            load_judges(file)
    file.write_text("rewards: []\nmodel: src\n")  # a recipe, if not a whole one
    with pytest.raises(InputError, match="run_dir: field required"):
        load_judges(file)


OTHERS = [
    ("whisper", "Mistral-7B-Instruct-v0.2"),
    ("whisper", "Qwen2-Audio-7B-Instruct"),
    ("whisper", "wav2vec2-base-superb-er"),
    ("labels", "Mistral-7B-Instruct-v0.2"),
    ("labels", "whisper-tiny"),
    ("listener", "Mistral-7B-Instruct-v0.2"),
    ("listener", "whisper-tiny"),
    ("reader", "wav2vec2-base-superb-er"),
    ("reader", "sig_bak_ovr.onnx"),
    ("emotion", "wavlm-base-plus-sv"),
    ("emotion", "whisper-tiny"),
    ("emotion", "Mistral-7B-Instruct-v0.2"),
    ("speaker", "wav2vec2-base-superb-er"),
    ("speaker", "Qwen2-Audio-7B-Instruct"),
    ("dnsmos", "voice.wav"),
]


@pytest.mark.parametrize(("name", "other"), OTHERS)
def test_another_models_folder_is_refused_in_one_line(models, tmp_path, name, other):
    changes = {"path": str(models / other)}
    if name in ("whisper", "labels"):
        key = "ear" if name == "whisper" else "listener"
        changes = {key: entries(models)[name][key] | changes}
    with pytest.raises(InputError, match=other) as caught:
        opened(models, tmp_path, name, **changes)
    assert len(str(caught.value).splitlines()) == 1, caught.value
    print(caught.value)


def test_another_onnx_model_is_refused(models, tmp_path):
    two = tiny_onnx.mean_times(tmp_path / "sig_bak_ovr.onnx", [2.0, 3.0])
    with pytest.raises(InputError, match=r"expected DNSMOS P.835, .*found \[N, 144160\] and \[N, 2\]"):
        opened(models, tmp_path, "dnsmos", path=str(two))


def test_a_shard_that_is_missing_is_named(models, tmp_path):
    folder = shutil.copytree(models / "Mistral-7B-Instruct-v0.2", tmp_path / "mistral")
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match="mistral: .*model-00002-of-00004.safetensors"):
        opened(models, tmp_path, "reader", path=str(folder))


@pytest.mark.parametrize(("name", "auto"), [("speaker", "AudioXVector"), ("emotion", "AudioClassification")])
def test_pickled_weights_are_refused_and_can_be_converted(models, tmp_path, rewards, pool, name, auto):
    """As docs/judges.md says; the names of weights stay or change, what is judged does not."""
    import transformers

    folder = judges.pickled(shutil.copytree(entries(models)[name]["path"], tmp_path / "folder"))
    with pytest.raises(InputError, match=r"folder: cannot be opened: .*pickled \(pytorch_model.bin\).*docs/judges.md"):
        opened(models, tmp_path, name, path=str(folder))
    getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder).save_pretrained(folder)
    again = opened(models, tmp_path, name, path=str(folder))
    assert again(pool[:2])[0].value == pytest.approx(rewards[name](pool[:2])[0].value, abs=1e-6)


def test_what_is_not_installed_is_said(models, tmp_path, monkeypatch):
    from elocute.rewards import dnsmos

    for module, said in [(packaged, "the weights in the package speechmos"), (dnsmos, "dnsmos needs onnxruntime")]:
        with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"{said}.*pip install -e '.\[dnsmos\]'"):
            patch.setattr(module, "find_spec", lambda name: None)
            opened(models, tmp_path, "dnsmos", path=None)
