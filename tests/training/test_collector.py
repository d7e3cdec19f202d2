"""Sampling one step ahead of the judges: what runs beside what, a loop without threads as its twin, and resuming."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elocute.recipe import Recipe, load_recipe
from elocute.training import collector
from elocute.training.experience import Experience, agree, judge, sample, step_examples
from elocute.training.trainer import Trainer
from tests.training.run_metrics import metrics

REWARD = """
def fours(completions):
    texts = [completion[0]["content"].split() for completion in completions]
    return [text.count("four") / len(text) if text else 0.0 for text in texts]
"""
SOON = 60
"""Seconds after which what waits for another thread waits in vain."""


@pytest.fixture(scope="module")
def folder(speaking_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collector")
    speaking_lm.save(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    return folder


def make_recipe(folder: Path, run: Path, *overrides: str, name: str = "wavalign") -> Recipe:
    small = [f"model={folder / 'model'}", f"run_dir={run}", "data.eval=null", "report=false", "optim.lr=0.003"]
    small += [f"rewards=[{{kind: function, function: '{folder / 'reward.py'}:fours', low: 0, high: 1}}]"]
    small += ["steps=4", "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.max_new_tokens=30"]
    small += ["optim.warmup_steps=0", "rollout.off_policy_steps=1", "checkpoint.every=2"]
    return load_recipe(f"recipes/starter/{name}.yaml", [*small, *overrides])


def assert_same_end(run: Path, other: Path, step: int) -> None:
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, two = (folder / f"checkpoints/step-{step}" / name for folder in (run, other))
        assert one.read_bytes() == two.read_bytes(), name


def test_the_next_answers_are_sampled_while_these_are_judged(monkeypatch):
    """Judge t ends only once t + 1 is sampled, so that a loop that waits for it in between never ends."""
    done, sampled = [], [threading.Event() for _ in range(5)]
    sampled[4].set()  # there is no fifth step
    recipe = load_recipe("recipes/starter/wavalign.yaml", ["steps=4", "rollout.off_policy_steps=1"])

    def sample(policy, audio, examples, recipe, step, accelerator, *, group_size, served):
        done.append(f"sample {step}")
        sampled[step].set()
        return Experience([], [], None, torch.tensor([step]), torch.tensor([]), slice(0))

    def judge(experience, mixer):
        step = int(experience.rewards)
        assert threading.current_thread() is not threading.main_thread()
        assert sampled[step + 1].wait(SOON)
        done.append(f"judge {step}")
        return experience

    def agree(experience, mixer, accelerator):
        assert threading.current_thread() is threading.main_thread()
        return experience

    for one in (sample, judge, agree):
        monkeypatch.setattr(collector, one.__name__, one)
    experience_of = collector.Collector(None, None, [None], None, recipe, None)
    behind = []
    for step in range(4):
        experience = experience_of(step)
        assert int(experience.rewards) == step and experience.seconds["wait"] >= 0
        behind.append(experience.off_policy_steps)
        done.append(f"update {step}")
    assert done[:2] == ["sample 0", "sample 1"] and behind == [0, 1, 1, 1]
    for step in range(4):
        order = [done.index(f"{what} {step}") for what in ("sample", "judge", "update")]
        assert order == sorted(order)
        if step < 3:
            assert done.index(f"sample {step + 1}") < done.index(f"update {step}")
        if step < 2:
            assert done.index(f"update {step}") < done.index(f"sample {step + 2}")


def test_what_a_reward_raises_in_its_thread_is_raised_in_the_loop(monkeypatch):
    def judge(experience, mixer):
        raise LookupError("lost")

    empty = Experience([], [], None, torch.tensor([]), torch.tensor([]), slice(0))
    monkeypatch.setattr(collector, "sample", lambda *args, **options: empty)
    monkeypatch.setattr(collector, "judge", judge)
    recipe = load_recipe("recipes/starter/wavalign.yaml", ["rollout.off_policy_steps=1"])
    experience_of = collector.Collector(None, None, [None], None, recipe, None)
    with pytest.raises(LookupError, match="lost"):
        experience_of(0)


class Naive:
    """A step after the other in one thread, sampled by the weights before the last step's update."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.weights = trainer, []

    def __call__(self, step: int) -> Experience:
        trainer, parameters = self.trainer, list(self.trainer.raw_policy.parameters())
        self.weights.append([parameter.detach().clone() for parameter in parameters])

        def load(weights):
            with torch.no_grad():
                for parameter, value in zip(parameters, weights, strict=True):
                    parameter.copy_(value)

        load(self.weights[max(step - 1, 0)])
        examples = [trainer.examples[index] for index in step_examples(trainer.examples, trainer.recipe, step)]
        sampled = sample(
            trainer.raw_policy, trainer.audio, examples, trainer.recipe, step, trainer.accelerator, group_size=4
        )  # fmt: skip
        experience = agree(judge(sampled, trainer.mixer), trainer.mixer, trainer.accelerator)
        load(self.weights[step])
        return replace(experience, off_policy_steps=min(step, 1))

    def state(self) -> dict:
        return {}

    def settle(self) -> None:
        pass


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    Trainer(make_recipe(folder, run)).train()
    return run


def test_a_run_ahead_is_the_naive_one(folder, whole, tmp_path):
    naive = Trainer(make_recipe(folder, tmp_path / "naive"))
    naive.collector = Naive(naive)
    naive.train()
    assert_same_end(whole, tmp_path / "naive", 4)
    assert metrics(whole) == metrics(tmp_path / "naive")
    lines = metrics(whole)
    assert [line["rollout/off_policy_steps"] for line in lines] == [0, 1, 1, 1]
    assert lines[0]["sampler/mismatch"] < 1e-5 < 1e-3 < min(line["sampler/mismatch"] for line in lines[1:])


def stopped_in_step_2(trainer: Trainer) -> Trainer:
    """Ctrl-C comes while that step learns."""
    learn = trainer._learn

    def interrupted(*args):
        if trainer.step == 1:
            trainer._on_interrupt(None, None)
        return learn(*args)

    trainer._learn = interrupted
    return trainer


def test_a_run_ahead_that_is_stopped_and_killed_is_the_run_that_nothing_stopped(folder, whole, tmp_path):
    """Ctrl-C in step 2, where no checkpoint is due; then a kill after step 3, which goes back to step 2."""
    cut = make_recipe(folder, tmp_path / "cut", "checkpoint.every=10")
    assert not stopped_in_step_2(Trainer(cut)).train()
    assert (tmp_path / "cut/checkpoints/step-2/rollouts.safetensors").exists()

    def kill(step, _):
        raise SystemExit

    with pytest.raises(SystemExit):
        Trainer(cut, resume=True).train(kill)
    assert len(metrics(tmp_path / "cut")) == 3
    last = Trainer(cut, resume=True)
    assert last.step == 2
    last.train()
    assert_same_end(whole, tmp_path / "cut", 4)
    assert metrics(whole) == metrics(tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoints/step-4/rollouts.safetensors").exists()


def test_the_drift_of_answers_that_wait_is_all_ranks_own_however_many_go_on(folder, tmp_path):
    trainer = Trainer(make_recipe(folder, tmp_path / "run"))
    trainer.collector(0)
    trainer.collector.settle()
    assert "drift" not in trainer.collector.state()  # no server sampled
    trainer.collector._ahead.drift = torch.tensor([0.5, 8.0], dtype=torch.float64)
    state = trainer.collector.state()
    assert state["drift"].tolist() == [[0.5, 8.0]]

    def restored(processes: int, drift: list[list[float]]) -> list[list[float]]:
        found = []
        for rank in range(processes):
            accelerator = SimpleNamespace(process_index=rank, num_processes=processes)
            own = collector.Collector(
                trainer.raw_policy, trainer.audio, trainer.examples, trainer.mixer, trainer.recipe, accelerator
            )
            own.restore(1, state | {"drift": torch.tensor(drift, dtype=torch.float64)})
            found.append(own._ahead.drift.tolist())
        return found

    assert restored(2, [[0.5, 8.0]]) == [[0.5, 8.0], [0.0, 0.0]]
    assert restored(2, [[0.5, 8.0], [0.25, 4.0]]) == [[0.5, 8.0], [0.25, 4.0]]
    assert restored(1, [[0.5, 8.0], [0.25, 4.0]]) == [[0.75, 12.0]]


def test_best_against_worst_ahead_resumes_too(folder, tmp_path):
    given = ["steps=3", "objective.min_gap=0", "objective.scope=all"]
    Trainer(make_recipe(folder, tmp_path / "whole", *given, name="dpo")).train()
    assert not stopped_in_step_2(Trainer(make_recipe(folder, tmp_path / "cut", *given, name="dpo"))).train()
    Trainer(make_recipe(folder, tmp_path / "cut", *given, name="dpo"), resume=True).train()
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 3)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert [line["rollout/off_policy_steps"] for line in metrics(tmp_path / "cut")] == [0, 1, 1]
