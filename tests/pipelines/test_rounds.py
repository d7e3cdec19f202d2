"""The loop on the starter model, cut short; what it needs; where it is killed, it goes on."""

import json

import pytest

from elocute.errors import InputError
from elocute.pipelines.alarms import alarms
from elocute.pipelines.rounds import Rounds, check_rounds, split_pairs
from elocute.recipe import load_recipe

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
