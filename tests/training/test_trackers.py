"""Trackers get the same numbers as metrics.jsonl; one that is not installed is said, not left out."""

import json
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elocute.errors import InputError
from elocute.recipe import Recipe, load_recipe
from elocute.training.trainer import Trainer

NAMES = get_args(get_args(Recipe.model_fields["trackers"].annotation)[0])
RECIPE = "recipes/starter/wavalign.yaml"


def test_tensorboard_gets_what_metrics_jsonl_gets(tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "model")
    overrides = [f"model={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", "data.eval=null", "steps=2"]
    overrides += ["rollout.group_size=2", "rollout.prompts_per_step=2", "rollout.max_new_tokens=8"]
    trainer = Trainer(load_recipe(RECIPE, [*overrides, "trackers=[tensorboard]"]))
    trainer.train()
    trainer.close()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    [folder] = {file.parent for file in (tmp_path / "run/elocute").glob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss/total", "loss/sft", "lambda", "reward/mean", "seconds/total", "lr"):
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        assert scalars == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines], name


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_is_one_line_with_a_hint(name, monkeypatch):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("elocute.recipe.load.version", version)
    with pytest.raises(InputError) as caught:
        load_recipe(RECIPE, [f"trackers=[{name}]", "model=src"])
    assert str(caught.value) == f"{RECIPE}: trackers: {name} is not installed; pip install -e '.[trackers]'"


def test_the_extra_of_the_hint_brings_every_tracker():
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {Requirement(line).name for line in extras["trackers"]} == set(NAMES)
