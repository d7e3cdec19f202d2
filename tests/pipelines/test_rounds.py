"""The loop on the starter model, cut short; what it needs; where it is killed, it goes on."""

import base64
import io
import json
from pathlib import Path

import pytest
import soundfile
import yaml

from elocute.data.audio import save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.rows import each_row
from elocute.errors import InputError
from elocute.models import load_model
from elocute.pipelines.alarms import alarms, measure_candidates
from elocute.pipelines.rounds import Rounds, check_rounds, split_pairs
from elocute.recipe import load_recipe
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


def test_two_rounds_and_a_stopped_loop_give_the_same(recipe, tmp_path):
    records, finished = Rounds(recipe()).run()
    assert finished and [record["round"] for record in records] in ([1], [1, 2])
    first = tmp_path / "run/round-1"
    pairs = first.joinpath("pairs.jsonl").read_text().splitlines()
    assert sorted(pairs) == sorted(
        first.joinpath("train.jsonl").read_text().splitlines() + first.joinpath("dev.jsonl").read_text().splitlines()
    )
    assert (tmp_path / "run/model").exists() == records[0]["dev"]["raised"]

    class Stop(Exception):
        pass

    def stop(stage, done, of, values):
        if stage == "round 1: train":
            raise Stop

    with pytest.raises(Stop):
        Rounds(recipe(run="again"), stop).run()
    assert json.loads((tmp_path / "again/round-1/round.json").read_text())["pairs"] == records[0]["pairs"]
    assert Rounds(recipe(run="again")).run(resume=True)[0][0]["dev"] == records[0]["dev"]


@pytest.fixture
def textless(tmp_path):
    """The loop on a tiny textless model with LoRA; a judge at an endpoint that likes short answers."""
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

    rows = [row(f"q{i}", f"bad {k}") for i in range(200) for k in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sum(split_pairs(tmp_path / "pairs.jsonl", 0.2).values()) == 400
    sides = {}
    for name in ("train", "dev"):
        for line in (tmp_path / f"{name}.jsonl").read_text().splitlines():
            sides.setdefault(json.loads(line)["messages"][0]["content"], set()).add(name)
    assert all(len(side) == 1 for side in sides.values())
    assert 20 <= sum(side == {"dev"} for side in sides.values()) <= 60


def test_alarms_name_what_left_the_base():
    base = {"auto_bleu": 0.05, "seconds": 3.0, "distinct_2": 0.6}
    assert alarms(base, base) == []
    assert alarms(base | {"auto_bleu": 0.069}, base) == []
    found = alarms({"auto_bleu": 0.2, "seconds": 1.5, "distinct_2": 0.3}, base)
    assert [line.split(":")[0] for line in found] == ["repetition", "length", "diversity"]
    voice = base | {"measured/guard/pitch_range": 8.0, "measured/guard/silence_share": 0.1}
    flat = alarms(voice | {"measured/guard/pitch_range": 3.0}, voice)
    assert flat == ["guard: the voice became flat (pitch_range), from 8 to 3"]


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
