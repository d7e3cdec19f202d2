"""A run on a tiny random model: it trains, a used folder is refused, it resumes byte for byte."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from elocute.errors import InputError, RunError
from elocute.recipe import load_recipe
from elocute.training.trainer import Trainer
from tests.training.disk import full_disk
from tests.training.run_metrics import metrics


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


def test_a_model_for_which_there_is_no_room_is_one_line_and_the_run_goes_on_when_there_is(tiny_folder, tmp_path):
    trainer = Trainer(recipe(tiny_folder, tmp_path / "run", "steps=1"))
    trainer.train()
    with full_disk(10_000), pytest.raises(RunError, match="^.*/run/model: cannot be written .*File too large"):
        trainer.save_model()
    resumed = Trainer(recipe(tiny_folder, tmp_path / "run", "steps=1"), resume=True)
    assert resumed.step == 1 and (resumed.save_model() / "elocute.json").exists()


PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ["stopping after this step"]),
        (
            {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0"},
            [f"stopping after this step; torchrun waits 30 s for it, then kills it ({PATIENCE})"],
        ),
        ({"TORCHELASTIC_RUN_ID": "none", PATIENCE: "600"}, ["stopping after this step"]),
        ({"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "1"}, []),
    ],
)
def test_the_first_ctrl_c_says_how_long_a_launcher_waits_and_the_second_stops(monkeypatch, caplog, environment, said):
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", PATIENCE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = SimpleNamespace(interrupted=False)
    Trainer._on_interrupt(run, signal.SIGINT, None)
    assert run.interrupted and caplog.messages == said
    with pytest.raises(KeyboardInterrupt):
        Trainer._on_interrupt(run, signal.SIGINT, None)


def test_lora_trains_its_adapter_only(tiny_folder, tmp_path):
    trainer = Trainer(recipe(tiny_folder, tmp_path / "lora", "lora.rank=4", "steps=1"))
    before = trainer.lm.core().get_input_embeddings().weight.clone()
    trainer.train()
    assert trainer.lm.core().get_input_embeddings().weight.equal(before)
    folder = trainer.save_model()
    assert (folder / "elocute.json").exists()
