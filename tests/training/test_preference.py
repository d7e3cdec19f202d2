"""Preference runs: where pairs come from, the cached reference, the best step by held-out pairs, resuming."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.errors import InputError
from elocute.recipe import Recipe, load_recipe
from elocute.rewards.combine import Judged
from elocute.rewards.outcome import Invalid, Scored, Unavailable
from elocute.training import reference_cache
from elocute.training.pairs import best_and_worst
from elocute.training.preference import LOGPS
from elocute.training.trainer import Trainer
from tests.training.preferences import preference_rows, write_rows
from tests.training.run_metrics import metrics

REWARD = """
def fours(completions):
    texts = [completion[0]["content"].split() for completion in completions]
    return [text.count("four") / len(text) if text else 0.0 for text in texts]
"""
OFFLINE = ["objective.mode=offline", "objective.min_gap=0", "rewards=[]"]


@pytest.fixture(scope="module")
def folder(speaking_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    speaking_lm.save(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    write_rows(folder / "all.jsonl", preference_rows(6))
    write_rows(folder / "some.jsonl", preference_rows(6, rejected=lambda index: index % 2 == 0))
    write_rows(folder / "dev.jsonl", preference_rows(5, first=300))
    return folder


def make_recipe(folder: Path, run: Path, *overrides: str) -> Recipe:
    small = [f"model={folder / 'model'}", f"run_dir={run}", f"data.train={folder / 'all.jsonl'}", "data.eval=null"]
    small += ["rollout.prompts_per_step=3", "rollout.group_size=4", "rollout.max_new_tokens=24", "steps=4"]
    small += [f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:fours', low: 0, high: 1}}]"]
    small += ["objective.min_gap=0.01", "checkpoint.every=2", "report=false", "optim.schedule=constant"]
    small += ["optim.lr=0.01", "optim.warmup_steps=0", f"objective.reference_cache={folder / 'reference'}"]
    return load_recipe("recipes/starter/dpo.yaml", [*small, *overrides])


def known(line: dict) -> dict:
    return {key: value for key, value in line.items() if value is not None}


def first_pairs(trainer: Trainer):
    """The first step's rows, fresh samples, pairs and counts."""
    examples = trainer.examples[:3]
    experience = trainer._experience(examples)
    return examples, experience, *trainer.preference.pairs(examples, experience)[:2]


# where pairs come from


def test_offline_pairs_are_the_rows(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", *OFFLINE))
    examples, experience, pairs, counts = first_pairs(trainer)
    assert experience is None and counts["kept"] == len(pairs) == 3
    for example, pair in zip(examples, pairs, strict=True):
        chosen, rejected = (trainer.lm.decode(answer.ids).text for answer in (pair.chosen, pair.rejected))
        assert (chosen, rejected) == (example.target_text, example.rejected_text)
        assert torch.equal(pair.prompt, trainer.lm.encode_prompt(example, trainer.audio))


def test_online_pairs_are_targets_over_fresh_samples(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", *OFFLINE, "objective.mode=online"))
    examples, experience, pairs, counts = first_pairs(trainer)
    assert experience.judged is None and len(experience.rollouts) == counts["kept"] == 3  # one a prompt
    for example, rollout, pair in zip(examples, experience.rollouts, pairs, strict=True):
        assert trainer.lm.decode(pair.chosen.ids).text == example.target_text
        assert pair.rejected is rollout.tokens
    trainer.preference.maker.chosen[examples[1].id] = experience.rollouts[1].tokens  # the policy says it word for word
    pairs, counts, _ = trainer.preference.pairs(examples, experience)
    assert len(pairs) == counts["kept"] == 2 and counts["equal"] == 1


def test_auto_samples_only_where_the_row_has_no_rejected_answer(folder, tmp_path):
    rows = f"data.train={folder / 'some.jsonl'}"
    trainer = Trainer(make_recipe(folder, tmp_path / "run", *OFFLINE, "objective.mode=auto", rows))
    examples, experience, pairs, counts = first_pairs(trainer)
    [sampled] = experience.rollouts
    assert counts["kept"] == 3 and pairs[1].rejected is sampled.tokens
    for index in (0, 2):
        assert trainer.lm.decode(pairs[index].rejected.ids).text == examples[index].rejected_text
    assert trainer.train()


def test_best_worst_pairs_are_made_by_the_rewards(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", "rollout.group_size=6"))
    examples, experience, pairs, counts = first_pairs(trainer)
    assert counts["kept"] == len(pairs) > 0 and sum(counts.values()) == 3
    values = experience.judged.values
    found = iter(pairs)
    for start in range(0, 18, 6):
        group = values[start : start + 6]
        if max(group) > min(group):
            pair = next(found)
            assert pair.chosen is experience.rollouts[start + group.index(max(group))].tokens
            assert pair.rejected is experience.rollouts[start + group.index(min(group))].tokens
    [line] = metrics_of(trainer, steps=1)
    assert "lambda" not in line and "reward/mean" in line
    assert line["pairs/kept"] + line["pairs/small_gap"] == 3


def metrics_of(trainer: Trainer, steps: int) -> list[dict]:
    """What the first steps log; Ctrl-C then stops the run after the next one."""
    lines = []

    def keep(step, values):
        lines.append(values)
        trainer.interrupted = step >= steps

    trainer.train(keep)
    return lines[:steps]


CUT, SILENT = Invalid("no end"), Unavailable("time-out")
GROUPS = [
    ([Scored(0.2), Scored(0.9), Scored(0.1), Scored(0.9)], [0.2, 0.9, 0.1, 0.9], 0.5, (1, 2)),
    ([Scored(0.4), Scored(0.8)], [0.4, 0.8], 0.5, "small_gap"),
    ([Scored(0.4), Scored(0.4)], [0.4, 0.4], 0.0, "small_gap"),  # equal: nothing is preferred
    ([Scored(0.4), SILENT, SILENT], [0.4, None, None], 0.0, "unjudged"),
    ([CUT, CUT], [0.0, 0.0], 0.0, "unjudged"),
    ([CUT, Scored(0.7), SILENT], [0.0, 0.7, None], 0.5, (1, 0)),
    ([CUT, Scored(0.1)], [0.5, 0.1], 0.0, "small_gap"),  # a high penalty does not make a broken answer the best
    ([Scored(0.4), CUT, Scored(0.1)], [0.4, 0.5, 0.1], 0.0, (0, 2)),
]


@pytest.mark.parametrize(("outcomes", "values", "min_gap", "expected"), GROUPS)
def test_best_and_worst_of_a_group(outcomes, values, min_gap, expected):
    before = [Scored(0.0)] * 3
    judged = Judged([0.0] * 3 + values, before + outcomes, {}, {}, {}, {}, {}, {}, {})
    found = best_and_worst(judged, slice(3, 3 + len(values)), min_gap)
    assert found == (expected if isinstance(expected, str) else tuple(3 + place for place in expected))


# what rows lack


def start(folder: Path, tmp_path: Path, rows: list[dict], *overrides: str) -> list[str]:
    """The lines of the error that a run on these rows starts with, each without the file's name."""
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError) as caught:
        Trainer(make_recipe(folder, tmp_path / "run", f"data.train={file}", *overrides))
    assert not (tmp_path / "run").exists()
    return [line.removeprefix(f"{file}:") for line in str(caught.value).split("\n")]


def test_what_rows_lack_is_said_before_the_first_step(folder, tmp_path):
    rows = preference_rows(4)
    del rows[0]["rejected_audio"]
    del rows[1]["rejected_text"]
    rows[2] |= {"rejected_text": rows[2]["sft_target_text"], "rejected_audio": rows[2]["sft_target_audio"]}
    lines = start(folder, tmp_path, rows, *OFFLINE)
    assert lines == [
        "1: rejected_audio: expected the answer's speech, it always speaks",
        "2: rejected_text: expected the answer's text, it always writes",
        "3: rejected_audio: expected another answer than sft_target's, it is the same",
    ]
    assert (
        start(folder, tmp_path, rows, *OFFLINE, "objective.mode=auto") == lines
    )  # a rejected answer that is half there
    del rows[3]["sft_target_audio"]
    assert start(folder, tmp_path, rows, *OFFLINE, "objective.mode=online")[0].startswith(
        "4: sft_target_audio: expected"
    )
    rows = [row | {"score_gap": gap} for row, gap in zip(preference_rows(3), (0.5, -1, None), strict=True)]
    assert start(folder, tmp_path, rows, *OFFLINE, "objective.pair_weight=score_gap") == [
        "2: score_gap: expected the pair's weight, 0 or more, found -1",
        "3: score_gap: expected the pair's weight, 0 or more, found None",
    ]


def test_prompts_leave_room_for_the_longest_sample(folder, tmp_path):
    long = ["rollout.max_new_tokens=500", f"data.train={folder / 'some.jsonl'}"]  # of 512 tokens of context
    Trainer(make_recipe(folder, tmp_path / "offline", *OFFLINE, long[0]))
    for mode, line in [("auto", 2), ("online", 1), ("best_worst", 1)]:  # in auto, row 1 has its rejected answer
        more = [*long, f"objective.mode={mode}"] + (OFFLINE[1:] if mode != "best_worst" else [])
        with pytest.raises(InputError, match=rf"^\S+some\.jsonl:{line}: max_new_tokens: expected at most \d+, got 500"):
            Trainer(make_recipe(folder, tmp_path / mode, *more))
        assert not (tmp_path / mode).exists()


def test_held_out_rows_need_both_answers_in_every_mode(folder, tmp_path):
    dev = write_rows(tmp_path / "dev.jsonl", preference_rows(2, rejected=lambda index: index == 0))
    with pytest.raises(InputError, match=f"^{dev}:2: rejected_audio: expected"):
        Trainer(make_recipe(folder, tmp_path / "run", f"data.dev={dev}"))


def test_a_model_without_text_is_not_trained_on_text(folder, tmp_path, tiny_lm):
    settings = json.loads((folder / "model/elocute.json").read_text()) | {"ratio": "speech-only"}
    for file in (folder / "model").iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).symlink_to(file)
    (tmp_path / "model/elocute.json").unlink()
    (tmp_path / "model/elocute.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="objective.scope: the model writes no text; expected speech or all"):
        Trainer(make_recipe(folder, tmp_path / "run", *OFFLINE, f"model={tmp_path / 'model'}"))


# the cached reference


def test_the_cached_reference_is_the_live_one_and_is_computed_once(folder, tmp_path, monkeypatch):
    given = [
        *OFFLINE,
        f"data.dev={folder / 'dev.jsonl'}",
        "objective.scope=all",
        "objective.reference_cache=" + str(tmp_path),
    ]
    made = []
    reference = reference_cache.Reference
    monkeypatch.setattr(reference_cache, "Reference", lambda *args: made.append(args) or reference(*args))
    runs = {"live": [], "cached": ["objective.reference=cached"], "again": ["objective.reference=cached"]}
    runs["other"] = ["objective.reference=cached", "objective.scope=text", "objective.beta=0.5"]
    counts = []
    for run, overrides in runs.items():
        trainer = Trainer(make_recipe(folder, tmp_path / run, *given, *overrides))
        trainer.train()
        counts.append(len(made))
    assert counts == [0, 2, 2, 2]  # for data.train and data.dev
    live, cached, again = (metrics(tmp_path / run) for run in ("live", "cached", "again"))
    assert cached == again and len(live) == len(cached) == 5
    for one, two in zip(live, cached, strict=True):
        assert known(two) == pytest.approx(known(one), rel=1e-6, abs=1e-6)
    weights = [load_file(tmp_path / run / "checkpoints/step-4/model.safetensors") for run in ("live", "cached")]
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=1e-6), name
    for entry in tmp_path.glob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-9])  # damaged entries are made again
    Trainer(make_recipe(folder, tmp_path / "third", *given, "objective.reference=cached"))
    assert len(made) == 4


def test_the_cache_is_keyed_by_all_that_changes_a_log_prob(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", *OFFLINE, "objective.scope=all"))
    policy, maker = trainer.preference.policy, trainer.preference.maker
    pairs = [maker.of_row(example) for example in trainer.examples]

    def name(pairs=pairs, *overrides):
        return reference_cache.entry_name(make_recipe(folder, tmp_path / "other", *OFFLINE, *overrides), policy, pairs)

    first = pairs[0]
    other_end = replace(first.chosen, ids=torch.cat([first.chosen.ids[:-1], first.chosen.ids[-1:] - 1]))
    other = tmp_path / "model"
    shutil.copytree(folder / "model", other)
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    changed = {
        name([first._replace(chosen=other_end), *pairs[1:]]),
        name([first._replace(chosen=first.rejected, rejected=first.chosen), *pairs[1:]]),
        name([first._replace(prompt=first.prompt[:-1]), *pairs[1:]]),
        name(pairs[::-1]),
        name(pairs, f"model={other}"),
    }
    assert len(changed | {name()}) == 6
    same = ["objective.scope=text", "objective.beta=0.5", "objective.loss=ipo", "objective.text_weight=2", "seed=9"]
    assert name(pairs, *same) == name()


# the best step


def test_the_best_step_by_held_out_pairs_becomes_the_model(folder, tmp_path, monkeypatch):
    """The second measurement is the best; a later one of the same accuracy has a smaller margin."""
    given = [*OFFLINE, f"data.dev={folder / 'dev.jsonl'}", "steps=5", "checkpoint.every=1", "checkpoint.keep=1"]
    said = {1: (0.6, 0.3), 2: (0.8, 0.2), 3: (0.8, 0.1), 4: (0.4, 0.9), 5: (0.8, 0.2)}
    trainer = Trainer(make_recipe(folder, tmp_path / "run", *given))
    measure = trainer.preference.measure

    def measured(step):
        values = measure(step)
        if step:
            trainer.preference.note(step, *said[step])
        return values | {"dev/best_step": trainer.preference.best and trainer.preference.best["step"]}

    monkeypatch.setattr(trainer.preference, "measure", measured)
    trainer.train()
    assert [line["dev/best_step"] for line in metrics(tmp_path / "run")] == [None, 1, 2, 2, 2, 2]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-2", "step-5"]
    trainer.save_model()
    model = load_file(tmp_path / "run/model/model.safetensors")
    best, last = (load_file(tmp_path / f"run/checkpoints/step-{n}/model.safetensors") for n in (2, 5))
    names = [name.removeprefix("network.") for name in best]
    assert all(torch.equal(model[name], best[f"network.{name}"]) for name in names if name in model)
    assert any(not torch.equal(model[name], last[f"network.{name}"]) for name in names if name in model)


def test_held_out_pairs_are_measured_before_at_checkpoints_and_at_the_end(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run", f"data.dev={folder / 'dev.jsonl'}", *OFFLINE, "steps=5"))
    trainer.train()
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "dev/accuracy" in line] == [0, 2, 4, 5]
    assert (lines[0]["dev/accuracy"], lines[0]["dev/margin"]) == (0.5, 0.0)  # the policy is the reference
    assert set(lines[0]) == {"step", "dev/accuracy", "dev/margin", "dev/best_step", *LOGPS}
    dev = trainer.preference.held_out
    sums = trainer.preference._score(dev, lambda batch: trainer.raw_policy(batch)[0], "all")
    assert [lines[-1][name] for name in LOGPS] == pytest.approx(sums.mean(0).flatten().tolist(), rel=1e-6)
    assert lines[-1]["dev/logp/chosen_speech"] != lines[0]["dev/logp/chosen_speech"] < 0  # though its scope is text
    reference = torch.stack([pair.reference for pair in dev])
    rewards = 0.1 * (sums - reference)[..., 0].numpy()  # scope: text
    margin = rewards[:, 0] - rewards[:, 1]
    assert lines[-1]["dev/margin"] == pytest.approx(np.mean(margin), rel=1e-6)
    assert lines[-1]["dev/accuracy"] == pytest.approx(np.mean(margin > 0))


# resuming


@pytest.mark.parametrize("mode", ["offline", "online", "best_worst"])
def test_a_resumed_run_is_the_uninterrupted_run(folder, tmp_path, mode):
    given = [f"data.dev={folder / 'dev.jsonl'}"]
    given += [] if mode == "best_worst" else [*OFFLINE, f"objective.mode={mode}"]
    cut = Trainer(make_recipe(folder, tmp_path / "cut", *given))
    metrics_of(cut, steps=2)
    assert cut.step == 3 and (tmp_path / "cut/checkpoints/step-3").exists()  # between two others: not measured there
    resumed = Trainer(make_recipe(folder, tmp_path / "cut", *given), resume=True)
    whole = Trainer(make_recipe(folder, tmp_path / "whole", *given))
    for trainer in (resumed, whole):
        assert trainer.train()
        trainer.save_model()
    for name in ("checkpoints/step-4/model", "checkpoints/step-4/optimizer", "model/model"):
        one, two = (tmp_path / run / f"{name}.safetensors" for run in ("cut", "whole"))
        assert one.read_bytes() == two.read_bytes(), name
    states = [json.loads((tmp_path / run / "checkpoints/step-4/state.json").read_text()) for run in ("cut", "whole")]
    assert states[0] == states[1] and states[0]["best"]["step"] in (2, 4)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_several_updates_on_the_same_pairs(folder, tmp_path):
    runs = [make_recipe(folder, tmp_path / str(n), *OFFLINE, f"optim.updates_per_rollout={n}") for n in (1, 2)]
    trainers = [Trainer(recipe) for recipe in runs]
    lines = [metrics_of(trainer, steps=2) for trainer in trainers]
    assert lines[0][0]["loss/dpo"] == lines[1][0]["loss/dpo"]
    assert lines[0][1]["dpo/chosen_reward"] != lines[1][1]["dpo/chosen_reward"]
