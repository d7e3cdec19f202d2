"""What decided a run does not evaluate it, however the run, its model and the judge are named."""

from pathlib import Path

import pytest
import yaml

from elocute.errors import InputError
from elocute.evaluation.independent import check_independent, trained_against
from elocute.evaluation.unit_suites import Listeners
from elocute.recipe.ears import PocketSphinxSpec, TransformersEarSpec

PERPLEXITY = {"kind": "perplexity", "path": None}
JUDGE = {"kind": "judge", "model": "a", "rubric": "semantic", "temperature": 0}
LISTENS = {"kind": "audio_judge", "listener": {"kind": "endpoint", "model": "today's"}}
FUNCTION = {"kind": "function", "function": "j.py:f", "low": 0}


SPEED = {"kind": "prosody", "labels": "paper"}


def run_of(folder: Path, *rewards: dict, listen: dict | None = None) -> Path:
    """A run's model folder."""
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"rewards": list(rewards), "listen": listen}))
    return folder / "model"


def found(model: Path, *evaluators: dict) -> list[str]:
    return list((trained_against(model, {str(i): one for i, one in enumerate(evaluators)}) or {}).values())


def test_the_recipe_is_found_beside_the_model(tmp_path, monkeypatch):
    plain, of_round = run_of(tmp_path / "run", PERPLEXITY), run_of(tmp_path / "loop/round-2/train", PERPLEXITY)
    (tmp_path / "best").symlink_to(plain)
    for model in (plain, of_round, tmp_path / "best"):
        assert found(model, PERPLEXITY) == ["perplexity"]
    monkeypatch.chdir(plain)
    assert found(Path("."), PERPLEXITY) == ["perplexity"]
    (tmp_path / "alone/model").mkdir(parents=True)
    assert trained_against(tmp_path / "alone/model", {"--ear": PERPLEXITY}) is None


def test_what_decides_is_what_counts_gates_or_listens(tmp_path):
    sphinx = {"kind": "pocketsphinx", "vocabulary": "words.txt", "workers": 2}
    asr = {"kind": "asr", "name": "clear", "ear": sphinx, "weight": 0}
    rule = {"kind": "rule", "column": "answer", "gate": {"reward": "clear", "at_least": 1}}
    ear = PocketSphinxSpec(kind="pocketsphinx").model_dump(mode="json")
    assert found(run_of(tmp_path / "counts", asr | {"weight": 1}), ear) == ["clear"]
    assert found(run_of(tmp_path / "only-measured", asr), ear) == []
    assert found(run_of(tmp_path / "gates", asr, rule), ear) == ["clear"]
    assert found(run_of(tmp_path / "listens", listen=sphinx), ear) == ["listen"]
    assert found(run_of(tmp_path / "another", listen=sphinx), {"kind": "transformers", "path": "/"}) == []
    whisper = {"kind": "faster_whisper", "path": None, "workers": 2}
    heard_by = run_of(tmp_path / "whisper", {"kind": "asr", "ear": whisper})
    assert found(heard_by, ear) == [] and found(heard_by, whisper | {"workers": 1}) == ["asr"]
    assert found(run_of(tmp_path / "judge", listen=sphinx), {"kind": "asr", "ear": ear}) == ["listen"]


@pytest.mark.parametrize(
    ("trained", "evaluates", "same"),
    [
        (PERPLEXITY, PERPLEXITY | {"path": "/lm"}, False),
        (PERPLEXITY | {"path": "lm/../lm"}, PERPLEXITY | {"path": "lm"}, True),
        (PERPLEXITY, PERPLEXITY | {"kind": "coherence"}, False),
        (JUDGE, JUDGE | {"model": "b"}, False),
        (JUDGE, JUDGE | {"rubric": "acoustic"}, False),
        (JUDGE, JUDGE | {"temperature": 1}, True),
        (JUDGE | {"model": None}, JUDGE | {"model": "today's"}, True),
        (JUDGE | {"model": None}, JUDGE, False),
        (SPEED, SPEED | {"credit": "match", "labels": "rlaif_spa"}, True),
        (SPEED, SPEED | {"measures": {"speed": ["phones_per_second"]}}, True),  # speed, counted otherwise
        (SPEED, SPEED | {"measures": {"speed": ["energy"]}}, False),
        (SPEED, SPEED | {"measures": {"speed": ["energy"], "emotion": ["syllables_per_second"]}}, False),
        (SPEED, SPEED | {"measures": {"speed": ["energy", "phones_per_second"]}}, True),
        (LISTENS | {"listener": {"kind": "endpoint", "model": None}}, LISTENS, True),
        (LISTENS | {"listener": {"kind": "endpoint", "model": "a"}}, LISTENS, False),
        (FUNCTION, FUNCTION | {"function": "./j.py:f", "low": 1}, True),
        (FUNCTION, FUNCTION | {"function": "j.py:g"}, False),
        (FUNCTION, FUNCTION | {"function": "j:f"}, False),
    ],
)
def test_one_judge_under_two_names(tmp_path, monkeypatch, trained, evaluates, same):
    monkeypatch.setenv("WAVALIGN_REWARD_API_KEY", "x")
    monkeypatch.setenv("WAVALIGN_REWARD_MODEL", "today's")
    model = run_of(tmp_path, trained | {"name": "taught"})
    assert found(model, evaluates | {"name": "other"}) == ["taught"] * same


def test_judges_and_text_lm_are_evaluators_too(tmp_path):
    judges, lm = tmp_path / "judge.yaml", tmp_path / "lm"
    lm.mkdir()
    judges.write_text("rewards: [{kind: relatedness}, {kind: perplexity, name: likely}]\n")
    packaged = Listeners(PocketSphinxSpec(kind="pocketsphinx"), judges, "smollm2").evaluators()
    other = Listeners(TransformersEarSpec(kind="transformers", path=lm), text_lm=str(lm)).evaluators()
    model = run_of(tmp_path / "run", PERPLEXITY, {"kind": "relatedness", "path": None, "weight": 0})
    assert trained_against(model, packaged) == {"--judge likely": "perplexity", "--text-lm": "perplexity"}
    assert trained_against(model, other) == {}
    with pytest.raises(InputError) as caught:
        check_independent(model, packaged, allowed=False)
    same = "'perplexity' decided the run and --judge likely is the same; choose another, or say --allow-trained"
    assert str(caught.value) == f"{tmp_path}/run/recipe.yaml: {same}"
    check_independent(model, packaged, allowed=True)
    check_independent(model, other, allowed=False)
