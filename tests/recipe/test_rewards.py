import pytest
from pydantic import TypeAdapter, ValidationError

from elocute.errors import InputError
from elocute.recipe.rewards import AsrSpec, FunctionSpec, JudgeSpec, RewardSpec, RuleSpec
from elocute.rewards.build import build_reward

specs = TypeAdapter(RewardSpec)


def test_kind_chooses_and_names():
    assert specs.validate_python({"kind": "rule", "column": "answer"}) == RuleSpec(
        kind="rule", name="rule", column="answer", weight=1.0, match="exact", gate=None
    )
    judge = specs.validate_python({"kind": "judge", "name": "voice", "rubric": "acoustic", "weight": 0.3})
    assert isinstance(judge, JudgeSpec) and judge.name == "voice"
    assert specs.validate_json(judge.model_dump_json()) == judge


@pytest.mark.parametrize(
    ("values", "place", "message"),
    [
        ({"kind": "rules", "column": "a"}, (), "does not match any of the expected tags"),
        ({"kind": "rule"}, ("rule", "column"), "Field required"),
        ({"kind": "rule", "column": "a", "colour": 1}, ("rule", "colour"), "Extra inputs"),
        ({"kind": "rule", "column": "a", "weight": -1}, ("rule", "weight"), "greater than or equal to 0"),
        ({"kind": "rule", "column": "a", "name": "Mean reward"}, ("rule", "name"), "match pattern"),
        ({"kind": "rule", "column": "a", "name": "mean"}, ("rule", "name"), "already names a statistic"),
        ({"kind": "rule", "column": "a", "gate": {"reward": "b"}}, ("rule", "gate", "at_least"), "Field required"),
        ({"kind": "embedding", "column": "a", "path": "no/such"}, ("embedding", "path"), "not point to a directory"),
        ({"kind": "function", "function": "m:f", "low": 1, "high": 1}, ("function",), "low must be below high"),
        ({"kind": "function", "function": "m:f", "low": 1, "high": float("inf")}, ("function", "high"), "finite"),
        ({"kind": "guard", "limits": {"seconds": [5, 1]}}, ("guard",), "limits: seconds: expected its least"),
        ({"kind": "prosody", "dimensions": []}, ("prosody", "dimensions"), "at least 1 item"),
        ({"kind": "judge", "rubric": "nice"}, ("judge", "rubric"), "holistic"),
        ({"kind": "judge", "api_key": "x"}, ("judge", "api_key"), "Extra inputs"),
    ],
)
def test_what_is_wrong_is_said(values, place, message):
    with pytest.raises(ValidationError) as error:
        specs.validate_python(values)
    (problem,) = error.value.errors()
    assert problem["loc"] == place and message in problem["msg"]


def test_an_ear_from_a_vocabulary_file(tmp_path):
    file = tmp_path / "answers.txt"
    file.write_text("thirty seven\nIt's cold.\n\n21\n")
    ear = {"kind": "pocketsphinx", "vocabulary": str(file), "workers": 2}
    spec = specs.validate_python({"kind": "asr", "ear": ear})
    assert isinstance(spec, AsrSpec)
    reward = build_reward(spec)
    assert (reward.name, reward.low, reward.high, reward.ear.workers) == ("asr", 0, 1, 2)
    file.write_text("zzyzzx\n")
    with pytest.raises(InputError, match=r"answers.txt: words: .* lacks zzyzzx"):
        build_reward(spec)
    assert build_reward(specs.validate_python({"kind": "asr"})).ear.workers == 1


def test_a_judge_needs_its_environment(monkeypatch):
    for name in ("WAVALIGN_REWARD_API_KEY", "WAVALIGN_REWARD_API_BASE", "WAVALIGN_REWARD_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    spec = specs.validate_python({"kind": "judge", "concurrency": 3, "rubric": "semantic"})
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        build_reward(spec)
    monkeypatch.setenv("WAVALIGN_REWARD_API_KEY", "k")
    monkeypatch.setenv("WAVALIGN_REWARD_MODEL", "hears-all")
    judge = build_reward(spec)
    assert judge.endpoint.entry.model == "hears-all" and judge.endpoint.concurrency == 3


def test_a_function(tmp_path):
    (tmp_path / "f.py").write_text("def f(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    reward = build_reward(FunctionSpec(kind="function", function=f"{tmp_path}/f.py:f", low=0, high=1))
    assert (reward.name, reward.low, reward.high) == ("function", 0, 1)
