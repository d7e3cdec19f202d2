"""Textless models sample, train and talk as any speech LM does."""

import json
import math
from pathlib import Path

import pytest
import torch

from elocute.chat import one_turn
from elocute.cli import app
from elocute.data.audio import load_audio, save_wav
from elocute.errors import InputError
from elocute.models import UnitLM, load_model
from elocute.models.batch import make_batch
from elocute.recipe import load_recipe
from elocute.rollout import Sampling, sample_groups
from elocute.training.policy import Policy
from elocute.training.trainer import Trainer
from tests.models.unit_folders import network, settings, slamkit, twist
from tests.speech import unit_models
from tests.speech.unit_models import UNITS, speech


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory) -> Path:
    return unit_models.unit_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sound") / "two.wav"
    save_wav(file, speech(1.6, seed=4), 16000)
    return file


@pytest.fixture(scope="module", params=["opt", "qwen2", "llama"])
def any_lm(request, codec_folder, tmp_path_factory) -> UnitLM:
    folder = tmp_path_factory.mktemp("any")
    network(request.param, UNITS + 2).save_pretrained(folder)
    return load_model(settings(folder, codec_folder, unit_0=2, bos=1))


PROMPTS = [torch.tensor([1, 5, 6]), torch.tensor([1, 7, 8, 9, 10, 11, 12, 13, 14]), torch.tensor([1, 20])]
SEEDS = [[1, 2], [3, 4], [5, 6]]


def test_padding_is_invisible_in_sampling(any_lm):
    together = sample_groups(any_lm, PROMPTS, SEEDS, Sampling(24))
    for prompt, seeds, group in zip(PROMPTS, SEEDS, together, strict=True):
        for seed, rollout in zip(seeds, group, strict=True):
            [[alone]] = sample_groups(any_lm, [prompt], [[seed]], Sampling(24))
            assert alone.tokens.ids.equal(rollout.tokens.ids)
            assert torch.allclose(alone.logprob, rollout.logprob, atol=1e-5)
            # and by the whole network, one row, no cache, no padding
            ids = torch.cat([prompt, rollout.tokens.ids])
            logp = torch.log_softmax(any_lm.model(ids[None]).logits[0], -1)[len(prompt) - 1 : -1]
            expected = logp.gather(1, rollout.tokens.ids[:, None])[:, 0]
            assert torch.allclose(rollout.logprob, expected, atol=1e-5)
            cut = len(rollout.tokens) == 24 and rollout.tokens.ids[-1] > 1
            assert (rollout.broken is None) == cut == rollout.truncated


@pytest.mark.parametrize("share_prompts", [True, False])
def test_score_equals_sample(any_lm, share_prompts):
    rollouts = [rollout for group in sample_groups(any_lm, PROMPTS, SEEDS, Sampling(20, 0.8)) for rollout in group]
    selected = torch.ones(len(rollouts), 20, dtype=torch.bool)
    batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], selected, "cpu")
    logp, _ = Policy(any_lm, share_prompts=share_prompts)(batch, 0.8)
    assert torch.allclose(logp, torch.cat([r.logprob for r in rollouts]), atol=1e-5)


def recipe(model: Path, folder: Path, *overrides: str):
    """Two rows: go on with what you hear."""
    for name, seed in (("a", 1), ("b", 2)):
        save_wav(folder / f"{name}.wav", speech(1.5, seed=seed), 16000)
    rows = [
        {
            "messages": [{"role": "user", "content": "<|audio|>"}],
            "audios": [f"{one}.wav"],
            "sft_target_audio": f"{two}.wav",
        }
        for one, two in (("a", "b"), ("b", "a"))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "loud.py").write_text(
        "def loud(waveforms, sample_rates, **columns):\n    return [float(abs(w).mean()) for w in waveforms]\n"
    )
    given_ = {"model": model, "run_dir": folder / "run", "data.train": folder / "rows.jsonl", "data.eval": "null"}
    given_ |= {"data.cache": folder / "cache", "report": "false", "steps": 1, "rollout.group_size": 3}
    given_ |= {"rollout.prompts_per_step": 2, "rollout.max_new_tokens": 10, "optim.warmup_steps": 0}
    words = [f"{key}={value}" for key, value in given_.items()]
    return load_recipe("recipes/starter/wavalign.yaml", [*words, *overrides])


def trained(recipe) -> tuple[Trainer, dict, float]:
    trainer = Trainer(recipe)
    before = {name: tensor.clone() for name, tensor in trainer.lm.core().state_dict().items()}
    targets = {id: tokens.ids.clone() for id, tokens in trainer.targets.items()}
    values: dict = {}
    trainer.train(lambda step, metrics: values.update(metrics))
    assert all(trainer.targets[id].ids.equal(ids) for id, ids in targets.items())  # nothing is written into them
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in trainer.lm.core().state_dict().items())
    return trainer, values, moved


@pytest.mark.parametrize("made", [twist, slamkit])
def test_a_step_of_supervised_training(codec_folder, tmp_path, made):
    model, _ = made(tmp_path / "model", codec_folder)
    trainer, values, moved = trained(recipe(model, tmp_path, "objective.mixing={kind: fixed, value: 0}",
                                            "objective.kl={text: 0, speech: 0}"))  # fmt: skip
    assert moved > 0 and math.isfinite(values["loss/sft"]) and values["nll/speech"] > 0
    saved = load_model(trainer.save_model())
    ids = torch.arange(9)[None] + 4
    assert torch.allclose(saved.model(ids).logits, trainer.lm.model(ids).logits, atol=1e-6)


def test_a_step_of_policy_gradient_on_what_is_heard(codec_folder, tmp_path):
    model, _ = twist(tmp_path / "model", codec_folder, offset=0)
    rewards = f"rewards=[{{kind: function, name: loud, function: '{tmp_path}/loud.py:loud', low: 0, high: 1}}]"
    lora = "lora={rank: 2, alpha: 4, targets: [q_proj, k_proj, v_proj, out_proj, fc1, fc2]}"
    mixing = "objective.mixing={kind: fixed, value: 1}"
    trainer, values, moved = trained(
        recipe(model, tmp_path, mixing, "objective.policy_gradient.scope=speech", rewards, lora)
    )
    assert moved > 0 and math.isfinite(values["loss/pg"]) and values["reward/mean"] is not None


def test_one_turn_continues_the_recording(codec_folder, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))
    model, _ = twist(tmp_path, codec_folder, offset=0)
    said = one_turn(model, audio=sound, text=None, temperature=1.0, max_new_tokens=8, seed=1)
    assert said.text == "" and len(said.waveform)
    with pytest.raises(InputError, match="--text: .* is textless, it hears only; use --audio"):
        one_turn(model, audio=None, text="go on", temperature=1.0, max_new_tokens=8, seed=1)


def test_the_command_line_takes_a_unit_lm(codec_folder, sound, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path / "cache"))
    model, _ = twist(tmp_path / "model", codec_folder, offset=0)
    out = tmp_path / "answer.wav"
    app(["chat", str(model), "--audio", str(sound), "-o", str(out), "--max-new-tokens", "8"], standalone_mode=False)
    assert load_audio(out)[1] == 16000
    assert capsys.readouterr().out == ""  # it wrote nothing
    supervised = ["rewards=[]", "objective.mixing={kind: fixed, value: 0}", "objective.kl={text: 0, speech: 0}"]
    checked = recipe(model, tmp_path, *supervised)
    words = [f"model={model}", f"run_dir={tmp_path / 'run'}", f"data.train={checked.data.train}", "data.eval=null"]
    words += supervised
    app(["train", "recipes/starter/wavalign.yaml", *words, "--dry-run"], standalone_mode=False)
    assert "data.train has 2 rows" in capsys.readouterr().out
    (model / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: not the config of a causal LM over units"):
        app(["train", "recipes/starter/wavalign.yaml", *words, "--dry-run"], standalone_mode=False)
