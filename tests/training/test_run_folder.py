"""When a folder may be used, and what a continued run must have in common with the one that was started."""

import json
import os
from pathlib import Path

import pytest
import yaml

from elocute.data.digest import digest_file, digest_folder
from elocute.errors import InputError, RunError
from elocute.recipe import load_recipe
from elocute.training.run_folder import FREE_TO_CHANGE, RunFolder
from tests.training.disk import full_disk


@pytest.fixture
def inputs(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("weights")
    (tmp_path / "train.jsonl").write_text("train")
    (tmp_path / "eval.jsonl").write_text("eval")
    return tmp_path


def recipe(inputs: Path, *overrides: str):
    given = {"model": "model", "data.train": "train.jsonl", "data.eval": "eval.jsonl", "run_dir": "run"}
    given = [f"{key}={inputs / name}" for key, name in given.items()]
    return load_recipe("recipes/starter/wavalign.yaml", [*given, *overrides])


@pytest.fixture
def started(inputs) -> RunFolder:
    folder = RunFolder(inputs / "run")
    folder.create(recipe(inputs))
    folder.write_environment(recipe(inputs))
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_absent_or_empty_takes_a_new_run(inputs, resume):
    folder = RunFolder(inputs / "run")
    folder.check(recipe(inputs), resume=resume)
    assert not folder.path.exists()  # checking makes nothing
    folder.path.mkdir()
    folder.check(recipe(inputs), resume=resume)


def test_a_folder_with_something_in_it_is_refused(inputs, started):
    with pytest.raises(InputError, match="run_dir: not empty; --resume continues it"):
        started.check(recipe(inputs), resume=False)
    started.recipe.unlink()
    with pytest.raises(InputError, match="not empty and no run of elocute"):
        started.check(recipe(inputs), resume=True)


@pytest.mark.parametrize("place", ["model", "model/run", "model/runs/deep"])
def test_a_run_inside_its_model_is_refused_at_once(inputs, place):
    """The trained model is a copy of all that lies in that folder: the run would be in it."""
    with pytest.raises(InputError, match=f"{place}: run_dir: expected a folder outside of .*/model: a model is saved"):
        RunFolder(inputs / place).check(recipe(inputs), resume=False)
    RunFolder(inputs / "model-run").check(recipe(inputs), resume=False)


@pytest.mark.parametrize(
    "override",
    [
        "steps=7",
        "checkpoint.every=3",
        "report=false",
        "samples_every=2",
        "trackers=[tensorboard]",
        "memory_check=false",
        "optim.micro_batch=1",
        "gradient_checkpointing=true",
        "evaluation.batch=1",
    ],
)
def test_what_does_not_make_it_another_run_may_change(inputs, started, override):
    started.check(recipe(inputs, override), resume=True)


def test_the_page_names_what_may_change():
    page = Path("docs/recipe.md").read_text().split("\n## Resuming\n")[1].split("\n## ")[0]
    assert [key for key in FREE_TO_CHANGE if f"`{key}`" not in page] == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=1e-3", r"optim.lr: the run was started with 0.0003, the recipe now says 0.001"),
        ("evaluation.rows=7", r"evaluation.rows: the run was started with 300, the recipe now says 7"),
        ("evaluation.temperature=0.5", r"evaluation.temperature: the run was started with 0.7, .* now says 0.5"),
        ("data.eval=null", r"data.eval: the run was started with '.*/eval.jsonl', the recipe now says None"),
        ("rewards.0.weight=2", r"rewards: the run was started with "),
        ("seed=9", r"seed: the run was started with 1, the recipe now says 9"),
    ],
)
def test_what_makes_it_another_run_may_not(inputs, started, override, said):
    with pytest.raises(InputError, match=f"run/recipe.yaml: {said}"):
        started.check(recipe(inputs, override), resume=True)


@pytest.mark.parametrize("name", ["model/weights", "train.jsonl", "eval.jsonl", "model/added"])
def test_a_run_goes_on_with_the_files_it_was_started_with(inputs, started, name):
    started.check(recipe(inputs), resume=True)
    (inputs / name).write_text("changed")
    with pytest.raises(InputError) as caught:
        started.check(recipe(inputs), resume=True)
    changed = inputs / name.split("/")[0]
    assert str(caught.value) == f"{changed}: not what it was when the run was started; start another run"


def test_the_environment_holds_the_digests(inputs, started):
    digests = json.loads(started.environment.read_text())["digests"]
    files = {str(inputs / name): digest_file(inputs / name) for name in ("train.jsonl", "eval.jsonl")}
    assert digests == files | {str(inputs / "model"): digest_folder(inputs / "model")}
    other = RunFolder(inputs / "other")
    other.write_environment(recipe(inputs, "data.eval=null"))
    assert len(json.loads(other.environment.read_text())["digests"]) == 2


def test_the_command_can_be_pasted(inputs, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/elocute", "train", "a recipe.yaml", "freeze=[embed, 'a b']"])
    folder = RunFolder(inputs / "run")
    folder.write_environment(recipe(inputs))
    command = json.loads(folder.environment.read_text())["command"]
    assert command == """elocute train 'a recipe.yaml' 'freeze=[embed, '"'"'a b'"'"']'"""


def test_a_run_killed_at_any_point_of_its_creation_can_be_resumed(inputs):
    folder = RunFolder(inputs / "run")
    folder.path.mkdir()
    folder.samples.write_text("in the way")  # creation stops at the first folder after the recipe
    with pytest.raises(FileExistsError):
        folder.create(recipe(inputs))
    folder.samples.unlink()
    assert sorted(path.name for path in folder.path.iterdir()) == ["environment.json", "recipe.yaml"]
    folder.check(recipe(inputs), resume=True)
    folder.create(recipe(inputs, "steps=9"))
    assert folder.samples.is_dir() and folder.checkpoints.is_dir()
    assert load_recipe(folder.recipe).steps == 9


def test_the_recipe_is_there_whole_or_not_at_all(inputs, started, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    was = started.recipe.read_bytes()
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(RunError, match="recipe.yaml: cannot be written"):
        started.create(recipe(inputs, "steps=9"))
    assert started.recipe.read_bytes() == was
    new = RunFolder(inputs / "new")
    with pytest.raises(RunError):
        new.create(recipe(inputs))
    assert list(new.path.iterdir()) == []
    new.check(recipe(inputs), resume=False)


def test_metrics_after_the_checkpoint_and_a_torn_line_go(inputs, started):
    for step in range(1, 5):
        started.append_metrics({"step": step})
    with started.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    started.cut_metrics(3)
    assert [json.loads(line) for line in started.metrics.read_text().splitlines()] == [{"step": s} for s in (1, 2, 3)]


def test_a_line_that_a_full_disk_cut_is_one_line_of_error_and_goes(started):
    started.append_metrics({"step": 1})
    with full_disk(started.metrics.stat().st_size + 5), pytest.raises(RunError) as caught:
        started.append_metrics({"step": 2})
    assert str(caught.value) == f"{started.metrics}: cannot be written (File too large)"
    assert started.metrics.read_text().splitlines()[1:] == ['{"ste']
    started.cut_metrics(2)
    assert json.loads(started.metrics.read_text()) == {"step": 1}


def test_keys_that_came_into_the_schema_since_have_their_defaults(inputs, started):
    values = yaml.safe_load(started.recipe.read_text())
    del values["objective"]["kind"], values["data"]["dev"], values["listen"]
    started.recipe.write_text(yaml.safe_dump(values))
    started.check(recipe(inputs), resume=True)
    with pytest.raises(InputError, match="objective.kind: the run was started with 'hybrid'"):
        started.check(recipe(inputs, "objective={kind: dpo}"), resume=True)
