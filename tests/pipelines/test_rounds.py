"""The loop on the starter model, cut short; what it needs; where it is killed, it goes on."""

import base64
import io
import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import each_row
from elocute.errors import InputError
from elocute.models import load_model
from elocute.pipelines import rounds
from elocute.pipelines.alarms import alarms, measure_candidates
from elocute.pipelines.rounds import Rounds, check_rounds, split_pairs
from elocute.recipe import dump_recipe, load_recipe
from elocute.rollout import Sampling, sample_groups
from tests.models.unit_folders import ending
from tests.rewards.chat_server import serving, verdict
from tests.speech.unit_models import speech, unit_codec

RECIPE = "recipes/starter/wavalign.yaml"
LOOP = [
    "objective={kind: dpo, mode: offline}", "data.eval=null", "steps=2", "checkpoint.every=1", "optim.lr=1e-4",
    "rounds={count: 2, candidates: 3, thresholds: [[1, 0], [1, 0]], max_auto_bleu: 1, dev_share: 0.4}",
    "rewards=[{kind: rule, column: answer, match: exact}]", "rollout.prompts_per_step=2",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    lines = open("starter/data/train.jsonl").read().splitlines()[:30]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["audios"] = [f"{__file__.rsplit('/tests/', 1)[0]}/starter/data/{audio}" for audio in row["audios"]]
        row.pop("sft_target_audio"), row.pop("sft_target_text")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(*more: str, run: str = "run"):
        return load_recipe(RECIPE, [*LOOP, f"run_dir={tmp_path / run}", f"data.train={tmp_path}/rows.jsonl", *more])

    return load


@pytest.fixture
def textless(tmp_path):
    """The loop on a tiny textless model with LoRA; a judge at an endpoint that likes short answers."""
    torch.manual_seed(3)
    model = ending(tmp_path / "model", unit_codec(tmp_path / "codec"))
    rows = []
    for i in range(12):
        save_wav(tmp_path / f"{i}.wav", speech(0.6, seed=i), 16000)
        rows.append({"id": f"p{i}", "messages": [{"role": "user", "content": "<|audio|>"}], "audios": [f"{i}.wav"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": model, "data.train": tmp_path / "rows.jsonl", "data.cache": tmp_path / "cache"}
    given |= {"run_dir": tmp_path / "run", "rollout.max_new_tokens": 8, "rollout.prompts_per_step": 4, "steps": 6}
    words = [f"{key}={value}" for key, value in given.items()]
    words += ["rewards=[{kind: judge, name: judge, model: m}]", "objective={kind: dpo, mode: offline, scope: speech}"]
    words += ["rounds={count: 2, candidates: 6, thresholds: [[3, 2], [4, 3]], pairs_per_prompt: 4, dev_share: 0.4}"]
    words += ["lora={rank: 4, alpha: 8, targets: [q_proj, v_proj]}", "optim={lr: 0.02, schedule: constant}"]
    return load_recipe(RECIPE, [*words, "data.eval=null", "checkpoint.every=3", "report=false"])


SHORT = """
def short(waveforms, sample_rates, completions, **columns):
    return [max(1.0, min(5.0, round(5.5 - len(wave) / rate / 0.12))) for wave, rate in zip(waveforms, sample_rates)]
"""


@pytest.fixture
def local(textless, tmp_path):
    """The same loop with that judge as a function; `load` takes overrides."""
    (tmp_path / "short.py").write_text(SHORT)
    rewards = f"rewards=[{{kind: function, name: short, function: {tmp_path}/short.py:short, low: 1, high: 5}}]"
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(textless))
    return lambda run, *more: load_recipe(file, [rewards, f"run_dir={tmp_path / run}", *more])


class Stop(BaseException):
    pass


def stop_at(wanted):
    def progress(stage, done, of, values):
        if stage == wanted:
            raise Stop

    return progress


def contents(run):
    """What a loop leaves, but for times and places."""
    names = ("candidates.jsonl", "scored.jsonl", "pairs.jsonl", "train.jsonl", "dev.jsonl", "model.safetensors")
    files = sorted(path for name in names for path in run.rglob(name) if "checkpoints" not in path.parts)
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_stopped_at_any_stage_it_ends_the_same(local, tmp_path):
    stages = []
    records, finished = Rounds(local("whole"), lambda stage, *_: stages.append(stage)).run()
    assert finished and [record["round"] for record in records] == [1, 2] and records[1]["dev"]["raised"]
    whole = contents(tmp_path / "whole")
    assert {"round-2/train/model/model.safetensors", "model/model.safetensors"} < set(whole)
    assert whole["model/model.safetensors"] == whole["round-2/train/model/model.safetensors"]
    order = list(dict.fromkeys(stages))
    assert len(order) >= 8
    resume = False
    for stage in order:  # one run, stopped at each of its stages
        with pytest.raises(Stop):
            Rounds(local("stopped"), stop_at(stage)).run(resume=resume)
        resume = True
    again, finished = Rounds(local("stopped")).run(resume=True)
    assert finished and contents(tmp_path / "stopped") == whole
    for one, other in zip(records, again, strict=True):
        assert {name: one[name] for name in ("dev", "alarms", "continuations")} == {
            name: other[name] for name in ("dev", "alarms", "continuations")
        }
    low, high = records[0]["dev"]["ci95"]
    assert 0 <= low <= records[0]["dev"]["accuracy"] <= high <= 1
    assert records[1]["told"]["continuations"]["n"] == 12  # what the model that is handed out says, an answer a prompt
    assert "told" not in records[0]  # the second round's candidates say it


def test_thresholds_that_leave_no_pair_are_an_error_with_counts(local, tmp_path):
    with pytest.raises(InputError) as error:
        Rounds(local("run", "rounds.thresholds=[[90, 1], [90, 1]]")).run()
    assert str(error.value).startswith(f"{tmp_path}/run/round-1/scored.jsonl: no pair is left of 12 rows: ")
    assert "no candidate to choose" in str(error.value) and not (tmp_path / "run/model").exists()


def test_a_bar_above_the_policy_ends_the_loop_with_the_model_before(local, tmp_path):
    records, finished = Rounds(local("run", "rounds.thresholds=[[3, 2], [90, 1]]")).run()
    assert finished and len(records) == 2 and "dev" not in records[1]
    assert records[1]["pairs"]["written"] == 0 and "no pair is left of 12 rows" in records[1]["pairs"]["why"]
    files = [tmp_path / "run" / place / "model.safetensors" for place in ("model", "round-1/train/model")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_round_that_does_not_raise_the_accuracy_is_not_used(local, tmp_path, monkeypatch):
    best = rounds._Round._best
    worse = {"accuracy": 0.5, "raised": False}
    monkeypatch.setattr(rounds._Round, "_best", lambda self: best(self) | (worse if self.number == 2 else {}))
    records, finished = Rounds(local("run")).run()
    assert finished and len(records) == 2 and "told" not in records[1]
    files = [tmp_path / "run" / place / "model.safetensors" for place in ("model", "round-1/train/model")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("objective.scope=text", "objective.scope: the model writes no text; expected speech or all"),
        ("lora.targets=[nope]", "lora.targets: "),
        ("objective.pair_weight=nope", "objective.pair_weight: expected weight, score_gap, chosen_score or one of"),
    ],
)
def test_what_training_would_refuse_is_found_before_the_sampling(local, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        Rounds(local("run", more)).run()
    assert not (tmp_path / "run").exists()


def hears(server, handler, body, n):
    """5 for the shortest answer that there may be, a point less for each 120 ms."""
    sound = body["messages"][1]["content"][-1]["input_audio"]["data"]
    seconds = soundfile.info(io.BytesIO(base64.b64decode(sound))).duration
    server.say(handler, verdict(max(1, round(5.5 - seconds / 0.12))))


def test_defect_align_1_sampling_feedback_curriculum_and_lora_are_one_loop(textless, tmp_path, monkeypatch):
    with serving(hears) as server:
        for name, value in {"API_BASE": server.url, "API_KEY": "any", "MODEL": "m"}.items():
            monkeypatch.setenv(f"WAVALIGN_REWARD_{name}", value)
        records, finished = Rounds(textless).run()
    assert finished and [record["round"] for record in records] == [1, 2]
    assert len(server.bodies) > 12  # the same request is made once
    for number, (least, most) in enumerate(textless.rounds.thresholds, start=1):  # the bar is raised
        pairs = (tmp_path / f"run/round-{number}/pairs.jsonl").read_text().splitlines()
        assert pairs and all(json.loads(pair)["chosen_score"] >= least for pair in pairs)
        assert all(json.loads(pair)["rejected_score"] <= most for pair in pairs)
    policy = tmp_path / "run/round-1/train/model"
    assert_sampled_from(policy, textless, tmp_path / "run/round-2")
    with pytest.raises(AssertionError):
        assert_sampled_from(textless.model, textless, tmp_path / "run/round-2")
    base, trained = (load_model(folder).model.state_dict() for folder in (textless.model, policy))
    moved = {name for name in base if not base[name].equal(trained[name])}
    assert moved and all("q_proj" in name or "v_proj" in name for name in moved)
    trained_from = yaml.safe_load((tmp_path / "run/round-2/train/recipe.yaml").read_text())["model"]
    assert Path(trained_from).samefile(policy)  # its base is the round's reference


def assert_sampled_from(model, recipe, folder):
    """Every candidate in the folder is what this model says with the candidate's seed."""
    lm, sampling = load_model(model), Sampling(recipe.rollout.max_new_tokens)
    audio = EncodedAudio(lm.codec, recipe.data.cache)
    for fields, example in each_row(folder / "candidates.jsonl"):
        told = list(fields["output"].values())
        [group] = sample_groups(lm, [lm.encode_prompt(example, audio)], [[one["seed"] for one in told]], sampling)
        assert [lm.layout.read(one.tokens.ids).units for one in group] == [one["output-units"] for one in told]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("rounds=null", "rounds: expected in the recipe"),
        ("objective={kind: dpo, mode: auto}", "objective: expected {kind: dpo, mode: offline}"),
        ("rewards=[]", "rewards: expected at least one"),
        ("data.dev=starter/data/train.jsonl", "data.dev: each round holds out"),
    ],
)
def test_what_the_loop_needs(recipe, more, message):
    with pytest.raises(InputError, match=message.replace("{", r"\{")):
        check_rounds(recipe(more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("rounds.count=3", "rounds: thresholds: expected one pair a round, 3, got 2"),
        ("rounds.thresholds=[[1, 1], [2, 1]]", "rounds: thresholds: expected the chosen's above the rejected's"),
    ],
)
def test_thresholds_must_make_sense(recipe, more, message):
    with pytest.raises(InputError, match=message):
        recipe(more)


def test_all_pairs_of_a_prompt_are_on_one_side(tmp_path):
    def row(question, rejected):
        messages = [{"role": "user", "content": question}]
        return {"messages": messages, "sft_target_text": "good", "rejected_text": rejected}

    rows = [row(f"q{i}\u2028", f"bad {k}") for i in range(200) for k in range(2)]  # no end of a line
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines)
    assert sum(split_pairs(tmp_path / "pairs.jsonl", 0.2).values()) == 400
    sides = {}
    for name in ("train", "dev"):
        for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines():
            sides.setdefault(json.loads(line)["messages"][0]["content"], set()).add(name)
    assert all(len(side) == 1 for side in sides.values())
    assert 20 <= sum(side == {"dev"} for side in sides.values()) <= 60


def test_alarms_name_what_left_the_base():
    base = {"auto_bleu": 0.05, "seconds": 3.0, "distinct_2": 0.6, "broken": 0.0, "empty": 0.1}
    assert alarms(base, base) == []
    assert alarms(base | {"auto_bleu": 0.069}, base) == []
    found = alarms({"auto_bleu": 0.2, "seconds": 1.5, "distinct_2": 0.3, "broken": 0.1, "empty": 0.3}, base)
    assert [line.split(":")[0] for line in found] == ["repetition", "silence", "silence", "length", "diversity"]
    voice = base | {"measured/guard/pitch_range": 8.0, "measured/guard/silence_share": 0.1}
    flat = alarms(voice | {"measured/guard/pitch_range": 3.0}, voice)
    assert flat == ["guard: the voice became flat (pitch_range), from 8 to 3"]


def test_silence_is_counted_and_no_merit(tmp_path):
    def said(text, bleu, broken=None):
        scored = {"output-text": text, "score": 2.0, "scores": {"judge": 2.0}, "measures": {"auto_bleu": bleu}}
        return scored | {"broken": broken, "seconds": 1.0, "outcomes": {}}

    row = {"output": {"0": said("on and on and on", 0.5), "1": said("", 0.0), "2": said("", 0.0, "no end")}}
    (tmp_path / "scored.jsonl").write_text(json.dumps(row) + "\n")
    found = measure_candidates(tmp_path / "scored.jsonl")
    assert (found["n"], found["auto_bleu"], found["score/judge"]) == (3, 0.5, 2.0)
    assert (found["broken"], found["empty"]) == pytest.approx((1 / 3, 2 / 3))


def test_what_rewards_measured_of_the_voice_is_averaged(tmp_path):
    def candidate(pitch_range):
        detail = {"pitch_range": pitch_range, "energy": -20.0, "broken": ["pitch_range"]}
        outcomes = {"guard": {"kind": "scored", "detail": detail}, "rule": {"kind": "invalid", "reason": "no end"}}
        rest = {"output-text": "a", "broken": None, "score": 1.0, "seconds": 1.0, "measures": {}, "scores": {}}
        return rest | {"outcomes": outcomes}

    line = {"output": {str(i): candidate(value) for i, value in enumerate([4.0, 8.0, None])}}
    (tmp_path / "scored.jsonl").write_text(json.dumps(line) + "\n")
    measured = measure_candidates(tmp_path / "scored.jsonl")
    assert {k: v for k, v in measured.items() if k.startswith("measured/")} == {"measured/guard/pitch_range": 6.0}
