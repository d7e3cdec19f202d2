"""A whole run, with its evaluations; a finished run goes on with more steps and is evaluated anew."""

import json

import pytest

from elocute.data.digest import digest_folder
from elocute.errors import InputError
from elocute.recipe import load_recipe
from elocute.training.run import run


def recipe(model, folder, *overrides: str):
    small = ["rollout.group_size=2", "rollout.prompts_per_step=2", "rollout.max_new_tokens=24", "evaluation.rows=3"]
    return load_recipe(
        "recipes/starter/wavalign.yaml",
        [f"model={model}", f"run_dir={folder}", "optim.schedule=constant", "optim.lr=0.05", *small, *overrides],
    )


def stages(model, folder, *overrides: str, resume: bool = False) -> list[str]:
    """The stages that a run went through, each named once in a row."""
    seen: list[str] = []

    def progress(stage, done, of, values):
        if seen[-1:] != [stage]:
            seen.append(stage)

    assert run(recipe(model, folder, *overrides), resume=resume, progress=progress)
    return seen


def test_a_finished_run_goes_on_and_is_evaluated_anew(speaking_folder, tmp_path):
    folder = tmp_path / "run"
    assert stages(speaking_folder, folder, "steps=1") == ["evaluate before", "train", "evaluate after"]
    first, first_answers = (folder / "eval.json").read_bytes(), (folder / "samples/after.jsonl").read_bytes()
    assert json.loads(first)["step"] == {"before": 0, "after": 1}

    assert stages(speaking_folder, folder, "steps=1", resume=True) == []  # nothing is left to do
    assert (folder / "eval.json").read_bytes() == first

    assert stages(speaking_folder, folder, "steps=3", resume=True) == ["train", "evaluate after"]
    earlier, values = json.loads(first), json.loads((folder / "eval.json").read_text())
    assert values["step"] == {"before": 0, "after": 3}
    assert values["before"] == earlier["before"]
    digests = {"before": digest_folder(speaking_folder), "after": digest_folder(folder / "model")}
    assert values["model_digest"] == digests
    assert values["model_digest"]["after"] != earlier["model_digest"]["after"]
    assert values["max_new_tokens"] == 24 and values["temperature"] == 0.7
    assert (folder / "samples/after.jsonl").read_bytes() != first_answers

    whole = tmp_path / "whole"
    stages(speaking_folder, whole, "steps=3")
    assert json.loads((whole / "eval.json").read_text()) == values
    assert (whole / "samples/after.jsonl").read_bytes() == (folder / "samples/after.jsonl").read_bytes()


def test_what_the_evaluation_cannot_use_stops_the_run_before_it_starts(speaking_folder, tmp_path):
    rows = tmp_path / "heldout.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "four?"}]}\n')
    with pytest.raises(InputError, match="heldout.jsonl:1: answer: expected an accepted answer"):
        run(recipe(speaking_folder, tmp_path / "run", f"data.eval={rows}"))
    assert not (tmp_path / "run").exists()
