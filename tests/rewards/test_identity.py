"""Who judged is told by what decides the scores, and by nothing else."""

import json

import pytest
import tiny_models
from pydantic import TypeAdapter

from elocute.data.digest import digest_file, digest_folder
from elocute.recipe.ears import EarSpec
from elocute.recipe.rewards import RewardSpec
from elocute.rewards import identity as who
from elocute.rewards.build import build_reward
from elocute.rewards.identity import digests, identity


def spec_of(**entry):
    return TypeAdapter(RewardSpec).validate_python(entry)


def test_a_judge_at_an_endpoint(monkeypatch):
    monkeypatch.setenv("WAVALIGN_REWARD_API_KEY", "sk-secret")
    monkeypatch.setenv("WAVALIGN_REWARD_API_BASE", "http://nowhere.invalid/v1")
    monkeypatch.setenv("WAVALIGN_REWARD_MODEL", "some-model")
    spec = spec_of(kind="judge", name="sense", rubric="continuation", send_audio=False, cache="runs/c", weight=0.5)
    found = identity(spec, build_reward(spec))
    assert found == {
        "spec": {
            "kind": "judge", "rubric": "continuation", "model": "some-model", "send_audio": False, "temperature": 0.0,
            "max_tokens": 1024,
        },
        "digests": {},
    }  # fmt: skip
    assert "secret" not in json.dumps(found) and "nowhere" not in json.dumps(found)
    named = spec_of(kind="judge", model="another")
    assert identity(named, build_reward(named))["spec"]["model"] == "another"


def test_local_weights_by_their_content(tmp_path, monkeypatch):
    folder = tiny_models.causal(tmp_path / "causal")
    spec = spec_of(kind="perplexity", path=str(folder), device="cpu", batch_size=2)
    assert identity(spec, build_reward(spec)) == {
        "spec": {"kind": "perplexity", "path": str(folder)},
        "digests": {"path": digest_folder(folder)},
    }
    first = digests(spec)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert digests(spec) != first
    # without a path: the weights that come in a package
    monkeypatch.setitem(who.PACKAGED, "coherence", lambda: folder / "model.safetensors")
    assert digests(spec_of(kind="coherence")) == {"path": digest_file(folder / "model.safetensors")}


@pytest.mark.parametrize("kind", ["asr", "ear"])
def test_an_ear_by_its_vocabulary(tmp_path, kind):
    (tmp_path / "words.txt").write_text("four\n")
    ear = {"kind": "pocketsphinx", "vocabulary": str(tmp_path / "words.txt"), "workers": 3}
    spec = spec_of(kind="asr", ear=ear) if kind == "asr" else TypeAdapter(EarSpec).validate_python(ear)
    key = "ear.vocabulary" if kind == "asr" else "vocabulary"
    assert digests(spec) == {key: digest_file(tmp_path / "words.txt")}
    assert digests(spec_of(kind="asr")) == {}


def test_a_function_by_its_file(tmp_path):
    (tmp_path / "mine.py").write_text("def score(prompts, completions): return [1] * len(prompts)\n")
    mine = spec_of(kind="function", function=f"{tmp_path / 'mine.py'}:score", low=0, high=1)
    assert digests(mine) == {"function": digest_file(tmp_path / "mine.py")}
    assert digests(spec_of(kind="function", function="json:dumps", low=0, high=1)) == {
        "function": digest_file(json.__file__)
    }
