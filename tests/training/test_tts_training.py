"""Policy gradient on the tokens that become sound: a TTS LM on a tiny random checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elocute.errors import InputError
from elocute.models import load_model
from elocute.recipe import Recipe, load_recipe
from elocute.training import update
from elocute.training.trainer import Trainer
from tests.models.tts_folders import tts_lm

REWARD = """
import random

import numpy as np

draws = random.Random(0)

def loud(waveforms):
    return [float(np.clip(1 + np.log10(np.sqrt(np.mean(w**2)) + 1e-9) / 2, 0, 1)) for w in waveforms]

def brief(waveforms):
    return [1.0 if len(w) == 1280 else 0.0 for w in waveforms]

def somebody_elses(waveforms):
    values = brief(waveforms)
    draws.shuffle(values)
    return values
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tts")
    lm = tts_lm(folder)
    lm.save(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    units = [lm.codec.shape.codebook + 60, 0, 1, 2, 3] * 2
    rows = [
        {
            "messages": [{"role": "user", "content": text}],
            "labels": {"emotion": emotion, "speed": "Fast"},
            "sft_target_units": units,
            "units_codec": lm.codec.digest,
        }
        for text, emotion in (("the train leaves", "Happy"), ("at nine", "Neutral"), ("one two", "Very Sad"))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_recipe(folder: Path, run: Path, *overrides: str, reward: str = "loud") -> Recipe:
    given = [f"model={folder / 'model'}", f"run_dir={run}", f"data.train={folder / 'rows.jsonl'}", "data.eval=null"]
    given += [
        f"rewards=[{{kind: function, name: sound, function: '{folder / 'reward.py'}:{reward}', low: 0, high: 1}}]"
    ]
    given += ["objective.policy_gradient.scope=speech", "objective.sft.scope=speech", "report=false", "steps=2"]
    given += ["rollout.group_size=3", "rollout.prompts_per_step=2", "rollout.max_new_tokens=24", "optim.warmup_steps=0"]
    return load_recipe("recipes/starter/wavalign.yaml", [*given, *overrides])


def trained(recipe: Recipe) -> tuple[Trainer, list[dict]]:
    trainer, lines = Trainer(recipe), []
    trainer.train(lambda step, metrics: lines.append(metrics))
    return trainer, lines


RL = ["objective.mixing={kind: fixed, value: 1}", "objective.kl={text: 0, speech: 0}"]


def test_defect_rlaif_1_true_rewards_teach_and_permuted_rewards_do_not(folder, tmp_path):
    """The very samples that were judged are trained: given each other's rewards they teach nothing."""
    gains = {}
    for reward in ("brief", "somebody_elses"):
        learning = ["steps=12", "rollout.group_size=12", "optim.lr=0.003", "optim.schedule=constant", *RL]
        learning += ["rollout.max_new_tokens=60"]
        _, lines = trained(make_recipe(folder, tmp_path / reward, *learning, reward=reward))
        means = [line["reward/sound"] for line in lines]
        gains[reward] = sum(means[-4:]) / 4 - sum(means[:4]) / 4
    assert gains["brief"] > 0.25 and abs(gains["somebody_elses"]) < 0.15, gains


def test_defect_rlaif_2_the_prompt_is_in_context_and_first_and_last_token_are_trained(folder, tmp_path, monkeypatch):
    batches, seen = [], []
    make_batch = update.make_batch
    monkeypatch.setattr(update, "make_batch", lambda *args: batches.append(make_batch(*args)) or batches[-1])
    trainer = Trainer(make_recipe(folder, tmp_path / "run", "steps=1", *RL))
    learn = trainer._learn
    monkeypatch.setattr(trainer, "_learn", lambda *args: (seen.append(args[0]), learn(*args))[1])
    lines = []
    trainer.train(lambda step, metrics: lines.append(metrics))
    [experience] = seen
    sampled = [rollout.tokens.ids[1:].tolist() for rollout in experience.rollouts]  # behind the marker
    asked, rows = [rollout.prompt.tolist() for rollout in experience.rollouts], []
    for batch in batches:  # the passes, in an order of their own
        for row, owner in enumerate(batch.owner):
            ids = batch.targets[batch.rows == row].tolist()
            assert batch.columns[batch.rows == row].tolist() == list(range(1, len(ids) + 1))
            rows.append((batch.prompts[owner].tolist(), ids))
    assert sorted(rows) == sorted(zip(asked, sampled, strict=True))
    assert lines[0]["pg/tokens"] == sum(map(len, sampled))
    assert any(ids[-1] == trainer.lm.layout.answer_end for ids in sampled)
    # Each of these tokens moves the gradient, and what stands before it is the row's own text and labels.
    logp = trainer.raw_policy(batch)[0]
    assert all(torch.autograd.grad(value, trainer.lm.head().weight, retain_graph=True)[0].any() for value in logp[:3])
    vocabulary = trainer.lm.tokenizer.get_vocab()
    fast, slow = (vocabulary[f"<|speed:{label}|>"] for label in ("Fast", "Slow"))
    others = [torch.where(prompt == fast, slow, prompt) for prompt in batch.prompts]
    with torch.no_grad():
        changed = trainer.raw_policy(replace(batch, prompts=others))[0]
    assert (changed != logp)[batch.columns == 1].all() and (changed - logp).abs().max() > 1e-4


@pytest.mark.parametrize("mixing", ["{kind: adaptive}", "{kind: fixed, value: 0.5}"])
def test_the_hybrid_objective_trains_speech(folder, tmp_path, mixing):
    kl = "objective.kl={text: 0, speech: 0.01}"
    _, lines = trained(make_recipe(folder, tmp_path / "run", f"objective.mixing={mixing}", kl))
    for line in lines:
        assert 0 < line["lambda"] < 1 and line["loss/sft"] > 0 and line["nll/speech"] > 0
        assert line["kl/speech"] >= 0 and line["loss/pg"] != 0 and line["nll/text"] is None
        assert line["rollout/no_text"] == 6
    assert lines[1]["kl/speech"] > 0


def test_a_supervised_target_is_needed_only_where_it_counts(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        del row["sft_target_units"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"data.train={tmp_path / 'rows.jsonl'}"
    assert trained(make_recipe(folder, tmp_path / "rl", data, *RL))[1][0]["loss/pg"] != 0
    with pytest.raises(InputError, match="rows.jsonl:1: sft_target_audio: expected the answer's speech"):
        Trainer(make_recipe(folder, tmp_path / "hybrid", data))


def test_bad_labels_stop_a_run_before_its_first_step(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[1]["labels"]["speed"] = "Quick"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"^\S*rows.jsonl:2: labels.speed: no such label: 'Quick'; nearest: "):
        Trainer(make_recipe(folder, tmp_path / "run", f"data.train={tmp_path / 'rows.jsonl'}"))
    assert not (tmp_path / "run").exists()


def test_defect_rlaif_8_a_resumed_run_is_the_uninterrupted_run(folder, tmp_path):
    """With the paper's adapter, clip and k3 penalty, the supervised anchor and its adaptive weight."""
    paper = ["lora={rank: 8, alpha: 32}", "objective.policy_gradient.clip=0.2", "optim.updates_per_rollout=2"]
    paper += ["objective.kl={text: 0, speech: 0.01}", "optim.schedule=constant", "checkpoint.every=2"]
    trained(make_recipe(folder, tmp_path / "cut", *paper, "steps=2"))
    resumed = Trainer(make_recipe(folder, tmp_path / "cut", *paper, "steps=4"), resume=True)
    assert resumed.step == 2
    resumed.train()
    whole, _ = trained(make_recipe(folder, tmp_path / "whole", *paper, "steps=4"))
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        files = [tmp_path / run / "checkpoints/step-4" / name for run in ("cut", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    first, second = (load_model(trainer.save_model()) for trainer in (resumed, whole))
    for name, tensor in first.model.state_dict().items():
        assert tensor.equal(second.model.state_dict()[name])


def test_the_shipped_recipe_takes_a_step(tmp_path):
    """recipes/starter/rlaif_spa.yaml with what ships: model, rows, rewards, gates, word and unit credit, adapter."""
    given = [f"run_dir={tmp_path / 'run'}", "steps=1", "rollout.prompts_per_step=1", "report=false"]
    recipe = load_recipe("recipes/starter/rlaif_spa.yaml", [*given, "data.eval=null", "evaluation.labels=[]"])
    assert (recipe.lora.rank, recipe.lora.alpha, len(recipe.lora.targets)) == (8, 32, 7)
    _, [line] = trained(recipe)
    assert line["outcomes/scored"] >= 4 and line["reward/asr"] > 0.5 and 0 < line["reward/melody"] < 1
    assert line["lambda"] == 1 and line["pg/tokens"] > 0 and "pg/credited" in line and "kl/speech" in line
