"""A run on a tiny random model: it trains, a used folder is refused, it resumes byte for byte."""

import json
from pathlib import Path

import pytest

from elocute.errors import InputError
from elocute.recipe import load_recipe
from elocute.training.trainer import Trainer


def recipe(model: Path, run: Path, *overrides: str):
    return load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={model}",
            f"run_dir={run}",
            "data.eval=null",
            "steps=4",
            "rollout.group_size=3",
            "rollout.prompts_per_step=2",
            "rollout.max_new_tokens=12",
            "checkpoint.every=2",
            "report=false",
            *overrides,
        ],
    )


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "_per_s" not in k} for line in lines]


def test_defect_10_a_resumed_run_is_the_uninterrupted_run(tiny_folder, tmp_path):
    Trainer(recipe(tiny_folder, tmp_path / "cut", "steps=2", "optim.schedule=constant")).train()
    resumed = Trainer(recipe(tiny_folder, tmp_path / "cut", "optim.schedule=constant"), resume=True)
    assert resumed.step == 2
    resumed.train()
    constant = Trainer(recipe(tiny_folder, tmp_path / "constant", "optim.schedule=constant"))
    constant.train()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, two = (tmp_path / run / "checkpoints/step-4" / name for run in ("cut", "constant"))
        assert one.read_bytes() == two.read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "constant")


def test_micro_batches_do_not_change_the_result(tiny_folder, tmp_path):
    losses = []
    for size in (1, 32):
        run = tmp_path / str(size)
        Trainer(recipe(tiny_folder, run, f"optim.micro_batch={size}", "steps=2")).train()
        losses.append([line["loss/total"] for line in metrics(run)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_that_did_not_fit_goes_on_in_smaller_passes(tiny_folder, tmp_path):
    """By what memory_check advises; of the result only rounding changes."""
    for run, smaller in (("whole", []), ("cut", ["optim.micro_batch=1", "gradient_checkpointing=true"])):
        started = recipe(tiny_folder, tmp_path / run, "steps=2", "optim.schedule=constant")
        Trainer(started).train()
        Trainer(recipe(tiny_folder, tmp_path / run, "optim.schedule=constant", *smaller), resume=True).train()
    whole, cut = ([line["loss/total"] for line in metrics(tmp_path / run)] for run in ("whole", "cut"))
    assert len(whole) == 4 and cut == pytest.approx(whole, rel=1e-4)


def test_a_used_folder_is_refused(tiny_folder, tmp_path):
    (tmp_path / "something").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        Trainer(recipe(tiny_folder, tmp_path))


def test_lora_trains_its_adapter_only(tiny_folder, tmp_path):
    trainer = Trainer(recipe(tiny_folder, tmp_path / "lora", "lora.rank=4", "steps=1"))
    before = trainer.lm.core().get_input_embeddings().weight.clone()
    trainer.train()
    assert trainer.lm.core().get_input_embeddings().weight.equal(before)
    folder = trainer.save_model()
    assert (folder / "elocute.json").exists()
