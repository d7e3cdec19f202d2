"""A step's experience: truncated answers are penalised, each file is encoded once, only targets are learned."""

import json
from pathlib import Path

import pytest
import torch

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.errors import RunError
from elocute.recipe import Recipe, load_recipe
from elocute.rewards.outcome import Invalid, Scored
from elocute.speech.codec import StarterCodec
from elocute.training import update
from elocute.training.trainer import Trainer

REWARD = """
def constant(completions):
    return [0.5] * len(completions)

def silent(completions):
    return [None] * len(completions)

def one_voice(completions):
    return [None] * (len(completions) - 1) + [0.5]
"""


@pytest.fixture(scope="module")
def folder(speaking_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experience")
    speaking_lm.save(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    return folder


def make_recipe(folder: Path, run: Path, *overrides: str) -> Recipe:
    small = [f"model={folder / 'model'}", f"run_dir={run}", "data.eval=null", "rollout.prompts_per_step=4"]
    small += [f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:constant', low: -1, high: 1}}]"]
    small += ["steps=3", "rollout.group_size=6", "rollout.max_new_tokens=14", "report=false"]
    return load_recipe("recipes/starter/wavalign.yaml", [*small, *overrides])


def test_defect_12_a_truncated_answer_is_penalised_and_not_trained_as_complete(folder, tmp_path, monkeypatch):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", "steps=1"))
    seen = []
    learn = trainer._learn
    monkeypatch.setattr(trainer, "_learn", lambda *args: (seen.append(args[0]), learn(*args))[1])
    lines = []
    trainer.train(lambda _step, values: lines.append(values))
    experience = seen[0]
    truncated = [rollout.truncated for rollout in experience.rollouts]
    assert 0 < sum(truncated) < len(truncated)
    end = trainer.lm.layout.answer_end
    advantage = trainer.rollout_rows(experience).advantage
    for index, rollout in enumerate(experience.rollouts):
        if rollout.truncated:
            assert rollout.broken.startswith("no end") and len(rollout.tokens) == 14
            assert end not in rollout.tokens.ids  # no end is made up
            assert isinstance(experience.judged.combined[index], Invalid)
            assert experience.judged.values[index] == -1 and advantage[index] <= 0
        elif not rollout.broken:
            assert rollout.tokens.ids[-1] == end
            assert experience.judged.combined[index] == Scored(0.5) and advantage[index] >= 0
    assert advantage.min() < 0 < advantage.max()
    assert lines[0]["rollout/truncated"] == sum(truncated)
    assert lines[0]["outcomes/invalid"] >= sum(truncated)


@pytest.mark.parametrize("mixing", ["{kind: adaptive}", "{kind: fixed, value: 0.5}"])
def test_a_dead_judge_stops_the_run_before_it_learns(folder, tmp_path, mixing):
    """At once, with one line; what was learned before stays as it is."""
    reward = f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:silent', low: -1, high: 1}}]"
    trainer = Trainer(make_recipe(folder, tmp_path / "run", reward, f"objective.mixing={mixing}"))
    before = [parameter.clone() for parameter in trainer.raw_policy.parameters()]
    said = r"judgements are unavailable \(more than 50%\), most often: the function gave no score"
    with pytest.raises(RunError, match=rf"^reward \w+: (\d+) of \1 {said}$"):
        trainer.train()
    assert trainer.step == 0 and not (tmp_path / "run/metrics.jsonl").exists()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.raw_policy.parameters(), strict=True))


def test_a_judge_that_may_fall_silent_leaves_its_answers_out(folder, tmp_path, monkeypatch):
    """Of all proper answers one is scored: the others stand in no mean and in no count of tokens."""
    reward = f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:one_voice', low: -1, high: 1}}]"
    trainer = Trainer(make_recipe(folder, tmp_path / "run", reward, "reward_mix.max_unavailable=1", "steps=1"))
    seen, lines = [], []
    learn = trainer._learn
    monkeypatch.setattr(trainer, "_learn", lambda *args: (seen.append(args[0]), learn(*args))[1])
    trainer.train(lambda _step, values: lines.append(values))
    [experience], [line] = seen, lines
    there = experience.available.flatten().tolist()
    assert line["outcomes/scored"] == 1 and line["outcomes/unavailable"] == there.count(False) > 1
    tokens = [rollout.tokens for rollout, judged in zip(experience.rollouts, there, strict=True) if judged]
    assert line["pg/tokens"] == sum(int((answer.text & answer.action).sum()) for answer in tokens)
    assert trainer.rollout_rows(experience).counted == there.count(True)


def test_defect_rlaif_4_a_constant_judge_rings_in_its_run(folder, tmp_path):
    """And goes on ringing after the run was stopped and resumed."""
    Trainer(make_recipe(folder, tmp_path / "run", "steps=4")).train()
    Trainer(make_recipe(folder, tmp_path / "run", "steps=8"), resume=True).train()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    known = [line["spread/function"] is not None for line in lines]  # steps whose answers are all broken say nothing
    assert {line["spread/function"] for line in lines} <= {0.0, None}
    rings = [line.get("alarm/spread/function") == 1 for line in lines]
    assert any(rings) and rings == [sum(known[: step + 1]) >= 5 for step in range(8)]


def test_defect_12_training_encodes_each_file_once(folder, tmp_path, monkeypatch):
    encoded = []
    encode = StarterCodec.encode

    def counting(codec, waveform, rate):
        encoded.append(waveform.tobytes())
        return encode(codec, waveform, rate)

    monkeypatch.setattr(StarterCodec, "encode", counting)
    overrides = ["data.train=starter/data/wavs.jsonl", f"data.cache={tmp_path / 'units'}", "steps=5"]
    Trainer(make_recipe(folder, tmp_path / "one", *overrides)).train()
    rows = read_rows("starter/data/wavs.jsonl")
    files = {ref.path.read_bytes() for row in rows for ref in (*row.audios, row.target_audio)}
    assert len(encoded) == len(set(encoded)) == len(files)  # 20 prompts from 12 rows: all were asked, some twice
    Trainer(make_recipe(folder, tmp_path / "two", *overrides)).train()
    assert len(encoded) == len(files)


def test_defect_10_earlier_assistant_turns_are_context_and_never_targets(folder, tmp_path, monkeypatch):
    messages = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")]
    sound = Path("starter/audio/heldout-sum-0000.answer.wav").resolve()
    row = {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "sft_target_text": "six six",
        "sft_target_audio": str(sound),
    }
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    batches = []
    make_batch = update.make_batch
    monkeypatch.setattr(update, "make_batch", lambda *args: batches.append(make_batch(*args)) or batches[-1])
    off = ["objective.mixing={kind: fixed, value: 0}", "objective.kl.text=0", "objective.kl.speech=0", "steps=1"]
    trainer = Trainer(make_recipe(folder, tmp_path / "run", f"data.train={rows}", "rollout.prompts_per_step=1", *off))
    trainer.train()
    [batch] = batches
    lm, [example] = trainer.lm, read_rows(rows)
    target = lm.encode_target(example, EncodedAudio(lm.codec))
    assert batch.targets.tolist() == target.ids[target.action].tolist()
    context = batch.prompts[0].tolist()
    for _role, content in messages:
        assert set(lm.tokenizer.encode(content)) <= set(context)
    assert torch.equal(batch.answer_ids[0], target.ids)


def test_each_answer_is_decoded_once_for_all_rewards(folder, tmp_path, monkeypatch):
    decoded = []
    decode = StarterCodec.decode
    monkeypatch.setattr(StarterCodec, "decode", lambda codec, units: decoded.append(units) or decode(codec, units))
    one = f"{{kind: function, function: '{folder / 'reward.py'}:constant', low: -1, high: 1, name: %s}}"
    Trainer(make_recipe(folder, tmp_path / "run", f"rewards=[{one % 'a'}, {one % 'b'}]", "steps=2")).train()
    assert len(decoded) == 2 * 4 * 6
