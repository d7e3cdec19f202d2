"""Training whose answers a server samples: it has each step's weights, and a run that lost it goes on as if it had not.

The server is a naive one of vLLM's protocol; tests/rollout/test_vllm_server.py does the same with vLLM itself.
"""

import json
from pathlib import Path

import pytest

from elocute.errors import InputError, RunError
from elocute.pipelines.sample import CandidateSampler
from elocute.recipe import load_recipe
from elocute.training.trainer import Trainer
from tests.rollout.vllm_stand_in import standing_in
from tests.training.run_metrics import metrics

HELDOUT = Path("starter/data/heldout.jsonl")


@pytest.fixture
def server(speaking_folder):
    with standing_in(speaking_folder) as server:
        yield server


def recipe(model: Path, run: Path, url: str | None, *overrides: str):
    served = [f"rollout.vllm.url={url}", "rollout.vllm.timeout=120", "rollout.vllm.max_drift=1e-4"] if url else []
    return load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={model}",
            f"run_dir={run}",
            "data.eval=null",
            "steps=3",
            "rollout.group_size=2",
            "rollout.prompts_per_step=2",
            "rollout.max_new_tokens=12",
            "optim.warmup_steps=0",
            "optim.schedule=constant",
            "optim.lr=1e-2",
            "checkpoint.every=1",
            "report=false",
            *served,
            *overrides,
        ],
    )


@pytest.mark.parametrize("more", [(), ("lora.rank=4",)], ids=["full", "lora"])
def test_each_step_is_sampled_with_its_own_weights(server, speaking_folder, tmp_path, more):
    run = tmp_path / "run"
    trainer = Trainer(recipe(speaking_folder, run, server.url, *more))
    trainer.train()
    trainer.save_model()  # merges the adapter, as the server had it
    assert server.loads == [str(run / f"weights/step-{step}") for step in range(3)]
    assert all(line["sampler/drift"] < 1e-5 and line["entropy/text"] > 0 for line in metrics(run))
    assert not (run / "weights").exists()


@pytest.mark.parametrize("ahead", [0, 1])
def test_weights_are_changed_while_no_process_draws(server, speaking_folder, tmp_path, monkeypatch, ahead):
    """Of several processes one may be done with its answers long before another."""
    trainer = Trainer(recipe(speaking_folder, tmp_path / "run", server.url, f"rollout.off_policy_steps={ahead}"))
    order, wait, follow = [], trainer.accelerator.wait_for_everyone, trainer.served.follow
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", lambda: order.append("wait") or wait())
    monkeypatch.setattr(trainer.served, "follow", lambda *args: order.append("follow") or follow(*args))
    grow = trainer.served._grow_all
    monkeypatch.setattr(trainer.served, "_grow_all", lambda *args: order.append("draw") or grow(*args))
    trainer.train()
    places = [place for place, what in enumerate(order) if what == "follow"]
    assert len(places) == 3
    assert all(order[place - 1 : place + 3] == ["wait", "follow", "wait", "draw"] for place in places)


def test_a_server_that_is_not_given_the_weights_stops_the_run(server, speaking_folder, tmp_path):
    """Version and all are right, and yet these are the weights of the first step."""
    server.ruin = lambda path, body: (200, {}) if path == "/collective_rpc" and server.loads else None
    with pytest.raises(RunError, match=r"nats a token from the model's own, more than .*max_drift \(0.0001\)"):
        Trainer(recipe(speaking_folder, tmp_path / "run", server.url)).train()
    assert len(metrics(tmp_path / "run")) == 1


def test_a_run_that_lost_its_server_goes_on_where_it_was(server, speaking_folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(recipe(speaking_folder, whole, server.url)).train()

    def die(step, _values):
        if step == 2:
            server.ruin, trainer.served.server.timeout = lambda path, body: (503, {}), 0.5

    trainer = Trainer(recipe(speaking_folder, cut, server.url))
    with pytest.raises(RunError, match="was not back within 0.5 s"):
        trainer.train(progress=die)
    assert len(metrics(cut)) == 2 and (cut / "checkpoints/step-2/state.json").exists()
    server.ruin = lambda path, body: None
    resumed = Trainer(recipe(speaking_folder, cut, server.url.replace("127.0.0.1", "localhost")), resume=True)
    assert resumed.step == 2
    resumed.train()
    assert metrics(cut) == metrics(whole)
    with pytest.raises(InputError, match="rollout.vllm: the run was started with True, the recipe now says False"):
        Trainer(recipe(speaking_folder, cut, None), resume=True)


def test_a_run_ahead_that_was_killed_measures_the_drift_of_the_answers_that_waited(server, speaking_folder, tmp_path):
    ahead, whole, cut = "rollout.off_policy_steps=1", tmp_path / "whole", tmp_path / "cut"
    Trainer(recipe(speaking_folder, whole, server.url, ahead)).train()

    def kill(step, _values):
        raise SystemExit

    with pytest.raises(SystemExit):
        Trainer(recipe(speaking_folder, cut, server.url, ahead)).train(kill)
    Trainer(recipe(speaking_folder, cut, server.url, ahead), resume=True).train()
    assert metrics(cut) == metrics(whole)
    assert all(line["sampler/drift"] < 1e-5 for line in metrics(whole))


def test_candidates_by_a_server(server, speaking_folder, tmp_path):
    def sampler(url, **more):
        given = {"n": 2, "shard": "1/430"} | more
        return CandidateSampler(recipe(speaking_folder, tmp_path / "run", url), HELDOUT, tmp_path / "out", **given)

    done = sampler(server.url).run()
    assert (done["prompts"], done["answers"]) == (3, 6) and server.loads == [str(speaking_folder)]
    lines = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    asked = {len(one["output-tokens"]) for line in lines for one in line["output"].values()}
    assert len(lines) == 3 and 0 not in asked
    with pytest.raises(InputError, match="rollout: the work was started with .*'by': 'vllm'"):
        sampler(None).run(resume=True)
    with pytest.raises(InputError, match="--engine ray: expected without rollout.vllm"):
        sampler(server.url, workers=2).check(resume=True)
