"""The loop: sample, judge, mix or pair, update, save. Phases in order, each in a file of its own."""

import contextlib
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import InitProcessGroupKwargs
from torch.distributed.fsdp import FSDPModule

from elocute.data.cache import EncodedAudio
from elocute.data.files import writing
from elocute.data.rows import check_rows, read_rows
from elocute.data.types import Example
from elocute.errors import RunError
from elocute.models.layout import Tokens
from elocute.objectives.advantages import group_advantages
from elocute.objectives.mixing import AdaptiveMixing, FixedMixing
from elocute.progress import Progress as Stages
from elocute.recipe import Recipe
from elocute.recipe.schema import Adaptive, Dpo
from elocute.rewards.combine import RewardMixer, build_mixer
from elocute.rollout import check_room, seed_of
from elocute.rollout.vllm import VllmSampler
from elocute.training.checkpoint import (
    latest_checkpoint,
    load_ahead,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from elocute.training.collector import Collector
from elocute.training.credit import blame, check_credit, credit_weights, unit_credit, unit_credits, word_credit
from elocute.training.experience import Experience, my_prompts, step_examples
from elocute.training.fitting import check_memory
from elocute.training.held_out import read_held_out
from elocute.training.metrics import experience_metrics, flat, lambda_metrics, loss_metrics
from elocute.training.policy import Reference, load_policy
from elocute.training.preference import Preference
from elocute.training.pulse import Pulse
from elocute.training.run_folder import RunFolder
from elocute.training.samples import write_step_samples
from elocute.training.schedule import learning_rate
from elocute.training.share import at_rest, check_launch, descend, disband, make_accelerator, share, sharing
from elocute.training.update import Rows, Update
from elocute.training.watch import Watch
from elocute.training.zero import ZeroOptimizer

Progress = Callable[[int, dict], None]


log = logging.getLogger(__name__)


class Trainer:
    """One run, from a checked recipe to a model on disk. progress: of what takes long before the first step."""

    def __init__(self, recipe: Recipe, *, resume: bool = False, progress: Stages = lambda *_: None):
        # 1. the folder and the rows, before anything heavy
        check_launch(served=recipe.rollout.vllm is not None)
        self.recipe, self.folder = recipe, RunFolder(recipe.run_dir)
        self.accelerator = make_accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=list(recipe.trackers) or None,
            project_dir=str(self.folder.path),
            mixed_precision="no",
            # One process evaluates while the others wait; the default of ten minutes would end a long evaluation.
            # Who waits for one that is gone is ended by the pulse.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
        self.pulse = Pulse(self.accelerator.process_index, self.accelerator.num_processes)
        self.folder.check(recipe, resume=resume)
        self.held_out = read_held_out(recipe)
        self.examples = read_rows(recipe.data.train, recipe.data.prompt_seconds)
        dev = read_rows(recipe.data.dev, recipe.data.prompt_seconds) if recipe.data.dev else []
        my_prompts(self.accelerator, recipe.rollout.prompts_per_step)
        self.mixer: RewardMixer | None = None
        if recipe.objective.judges:
            self.mixer = build_mixer(recipe.rewards, recipe.reward_mix, recipe.listen)
            self.mixer.check(self.examples)
        check_memory(recipe, self.examples)
        self.served: VllmSampler | None = None
        if recipe.rollout.vllm and recipe.objective.samples:
            self.served = VllmSampler(recipe.rollout.vllm, recipe.model, self.folder.path / "weights")
        # 2. the model, its reference, the optimiser
        policy = load_policy(recipe)
        self.lm = policy.lm
        check_credit(recipe, self.lm)
        self.audio = EncodedAudio(self.lm.codec, recipe.data.cache)
        self.targets: dict[str, Tokens] = {}
        self.lengths: dict[str, int] = {}  # of prompts that are sampled from, by the row's place
        self.preference: Preference | None = None
        if isinstance(recipe.objective, Dpo):
            self.preference = Preference(recipe, self.examples, dev, policy, self.audio, self.accelerator)
        else:
            check_rows(self.examples, self._encode)
            check_room(self.lm, self.lengths, recipe.rollout.max_new_tokens)
        policy.to(self.accelerator.device)
        reference = Reference(recipe, policy) if recipe.objective.uses_reference else None
        if self.preference is not None:
            self.preference.prepare(reference, progress)
        self.raw_policy, self.policy = policy, share(policy, self.accelerator)
        if reference is not None and reference.policy is not policy:
            share(reference.policy, self.accelerator)
        optim = recipe.optim
        with at_rest(self.policy):
            parameters = [p for p in policy.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(
                parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
            )
        if (way := sharing()).startswith("zero"):
            self.optimizer = ZeroOptimizer(policy, self.optimizer, optim.clip_norm, layers=way == "zero3")
            self.policy = self.optimizer.engine
        if self.preference is not None:
            self.preference.share(self.policy)
        else:
            self.update = Update(recipe, self.policy, reference, self.accelerator)
            self.mixing = _make_mixing(recipe, self.mixer)
        self.collector: Collector | None = None
        if self.mixer is not None:
            self.collector = Collector(
                policy, self.audio, self.examples, self.mixer, recipe, self.accelerator, self.served
            )
        # 3. where we are
        self.step, self.interrupted, self.stopping, self.saving_seconds = 0, False, False, 0.0
        self.watch = Watch()
        self.accelerator.wait_for_everyone()  # all have checked the folder before one writes into it
        if self.accelerator.is_main_process:
            self.folder.create(recipe)
        if resume:
            self._restore()
        if recipe.trackers:
            self.accelerator.init_trackers("elocute", config=flat(recipe.model_dump(mode="json")))

    def train(self, progress: Progress = lambda step, metrics: None) -> bool:
        """Run to the last step. Returns False when Ctrl-C stopped it early (the state is saved)."""
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            if self.recipe.data.dev and self.step == 0:
                self._measure_start()
            while self.step < self.recipe.steps and not self.stopping:
                metrics = self._one_step()
                progress(self.step, metrics)
            if self.collector is not None:
                self.collector.settle()
            if self.served is not None and self.accelerator.is_main_process:
                self.served.clear()
        finally:
            signal.signal(signal.SIGINT, previous)
            if self.mixer is not None:
                self.mixer.close()
        self.accelerator.wait_for_everyone()
        return not self.stopping

    def save_model(self) -> Path:
        """Write the trained model to the run's model/ folder: with data.dev the best step's, else the last one's."""
        if self.accelerator.is_main_process:
            best = self.preference.best if self.preference else None
            checkpoint = self.folder.checkpoints / f"step-{best['step'] if best else self.step}"
            if isinstance(self.policy, FSDPModule) or sharing() == "zero3":  # which save nothing but parts
                whole_policy = load_policy(self.recipe).to(self.accelerator.device)
                load_weights(checkpoint, whole_policy)
                self.lm = whole_policy.lm
            elif best is not None:
                load_weights(checkpoint, self.raw_policy)
            with writing(self.folder.model):
                partial = self.folder.model.with_name("model.partial")
                self.lm.save(partial)
                shutil.rmtree(self.folder.model, ignore_errors=True)
                partial.rename(self.folder.model)
        self.accelerator.wait_for_everyone()
        return self.folder.model

    def close(self) -> None:
        disband()
        self.accelerator.end_training()

    # one step

    def _one_step(self) -> dict:
        started = time.perf_counter()
        torch.manual_seed(seed_of(self.recipe.seed, "step", self.step))
        examples = [self.examples[index] for index in step_examples(self.examples, self.recipe, self.step)]
        experience = self._experience(examples)
        updating = time.perf_counter()
        metrics = self._learn(experience, examples)
        self.step += 1
        measuring = time.perf_counter()
        due = self.step == self.recipe.steps or self.step % self.recipe.checkpoint.every == 0
        if due and self.recipe.data.dev:
            metrics |= self.preference.measure(self.step)
        # The line is written before the checkpoint: a kill in between makes the step again, none is ever missing.
        # What saving took is therefore known one line later.
        seconds = dict(experience.seconds) if experience else {}
        seconds |= {"update": measuring - updating, "checkpoint": self.saving_seconds}
        if due and self.recipe.data.dev:
            seconds["dev"] = time.perf_counter() - measuring
        seconds["total"] = time.perf_counter() - started
        metrics = self._log(metrics, experience, seconds)
        saving = time.perf_counter()
        if experience is not None and self.accelerator.is_main_process:
            if self.step == 1 or self.step % self.recipe.samples_every == 0:
                write_step_samples(self.folder.samples, self.step, experience, self.recipe.rollout.group_size)
        self.stopping = self._any_process(self.interrupted)  # all stop after the same step, or none would answer
        if self.stopping or due:
            self._save()
        self.saving_seconds = time.perf_counter() - saving
        return metrics

    def _experience(self, examples: list[Example]) -> Experience | None:
        """The step's rollouts, if its objective has any."""
        if self.collector is not None:
            return self.collector(self.step)
        if self.preference is not None:
            return self.preference.experience(examples, self.step, self.served)
        return None

    def _learn(self, experience: Experience | None, examples: list[Example]) -> dict:
        """One or more optimiser steps on this experience; returns what to log, of the first of them."""
        gradient = (self._mix if self.preference is None else self._prefer)(experience, examples)
        metrics: dict = {}
        for _ in range(self.recipe.optim.updates_per_rollout):
            values = gradient()
            values |= {"grad_norm": self._descend(), "lr": learning_rate(self.recipe, self.step)}
            metrics = metrics or values
        return metrics

    def _prefer(self, experience: Experience | None, examples: list[Example]) -> Callable[[], dict]:
        """What accumulates the gradient of the step's pairs and says what to log."""
        found = self.preference.pairs(examples, experience)
        return lambda: self.preference.gradient(*found)

    def _mix(self, experience: Experience | None, examples: list[Example]) -> Callable[[], dict]:
        """What accumulates the gradient of SFT, policy gradient and KL, mixed by λ, and says what to log."""
        targets = self.target_rows(examples) if self.targets else None
        rollouts, raw = None, None
        if experience is not None:
            rollouts = self.rollout_rows(experience)
            if isinstance(self.mixing, AdaptiveMixing):
                raw = self.mixing.raw(experience.rewards, experience.available)
            if self.recipe.optim.updates_per_rollout > 1:
                self.update.score_before(rollouts)

        def gradient() -> dict:
            lam = self.mixing.update(None if raw is None else raw.value)
            metrics = loss_metrics(self.update(rollouts, targets, lam).gathered(self.accelerator)) | {"lambda": lam}
            return metrics if raw is None else metrics | lambda_metrics(raw)

        return gradient

    def _descend(self) -> float:
        """Step along the gradient in the parameters; returns its norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        norm = descend(self.policy, self.optimizer, self.recipe.optim.clip_norm)
        if not math.isfinite(norm):
            raise RunError(f"step {self.step + 1}: the gradient is {norm}; the last checkpoint is whole")
        return norm

    def target_rows(self, examples: list[Example]) -> Rows:
        """This rank's share of the step's examples with their supervised targets."""
        mine = my_prompts(self.accelerator, len(examples))
        return Rows.of(
            [self.lm.encode_prompt(example, self.audio) for example in examples[mine]],
            [self.targets[example.id] for example in examples[mine]],
        )

    def rollout_rows(self, experience: Experience) -> Rows:
        """This rank's rollouts with their advantages."""
        spec = self.recipe.objective.policy_gradient
        advantages = group_advantages(
            experience.rewards, experience.available, baseline=spec.baseline, scale=spec.scale
        )
        rows = Rows.of([r.prompt for r in experience.rollouts], [r.tokens for r in experience.rollouts])
        rows.leave_out(experience.available[experience.mine].reshape(-1))
        rows.advantage = advantages[experience.mine].reshape(-1).float()
        parts = []
        if weights := credit_weights(self.recipe):
            parts.append(word_credit(experience, weights, self.lm, spec))
        if credits := unit_credits(self.recipe):
            parts.append(unit_credit(experience, credits, self.lm, spec))
        if spec.blame is not None:
            parts.append(blame(experience, rows.advantage, spec.blame, self.lm))
        rows.credit = sum(parts) if parts else None
        rows.sampler_logp = torch.nn.utils.rnn.pad_sequence([r.logprob for r in experience.rollouts], batch_first=True)
        return rows

    # rows, state

    def _encode(self, example: Example) -> None:
        """Question and supervised answer, before the first step: audio goes into the cache, what is bad comes out."""
        prompt = self.lm.encode_prompt(example, self.audio)
        if self.recipe.objective.samples:
            self.lengths[example.where] = len(prompt)
        mixing = self.recipe.objective.mixing
        if isinstance(mixing, Adaptive) or mixing.value < 1:
            target = self.targets[example.id] = self.lm.encode_target(example, self.audio)
            self.lm.check_fits(f"{example.where}: sft_target", prompt, target)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        ahead = self.collector.state() if self.collector else {}
        best, main = self.preference.best if self.preference else None, self.accelerator.is_main_process
        state = {"step": self.step} | ({"best": best} if self.preference else {"mixing": self.mixing.state_dict()})
        folder = self.folder.checkpoints / f"step-{self.step}"
        with at_rest(self.policy):
            save_checkpoint(folder, self.raw_policy, self.optimizer, state, ahead, write=main)
        if main:
            prune_checkpoints(self.folder.checkpoints, self.recipe.checkpoint.keep, best and best["step"])

    def _restore(self) -> None:
        found = latest_checkpoint(self.folder.checkpoints)
        if found is not None:
            with at_rest(self.policy):
                state = load_checkpoint(found, self.raw_policy, self.optimizer)
            self.step = state["step"]
            if self.collector is not None and self.step < self.recipe.steps:
                self.collector.restore(self.step, load_ahead(found))
            if self.preference is not None:
                self.preference.best = state["best"]
            else:
                self.mixing.load_state_dict(state["mixing"])
        if self.accelerator.is_main_process:
            self.folder.cut_metrics(self.step)
            self.watch.replay(self.folder.metrics)

    def _on_interrupt(self, signum, frame) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once a machine
            with contextlib.suppress(RuntimeError):  # the signal came while this process was writing to stderr
                log.warning(_stopping())

    def _any_process(self, flag: bool) -> bool:
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.accelerator.device), "sum"))

    def _measure_start(self) -> None:
        """The held-out pairs before the first step, as line 0 of the metrics, once."""
        metrics = self.folder.metrics
        there = self.accelerator.is_main_process and metrics.exists() and metrics.stat().st_size > 0
        if not self._any_process(there):
            self._log(self.preference.measure(0), None, {})

    def _log(self, metrics: dict, experience: Experience | None, seconds: dict) -> dict:
        values = {"step": self.step} | metrics
        if experience is not None:
            values |= experience_metrics(experience, self.accelerator)
            values["rollout/tokens_per_s"] = values.pop("rollout/tokens") / seconds["rollout"]
            if self.recipe.rollout.off_policy_steps:
                values["rollout/off_policy_steps"] = experience.off_policy_steps
        values |= {f"seconds/{name}": value for name, value in seconds.items()}
        if self.accelerator.is_main_process:
            values |= self.watch(values)
            self.folder.append_metrics(values)
        if self.recipe.trackers:
            self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=self.step)
        return values


def _stopping() -> str:
    """What is said at the first Ctrl-C. accelerate starts processes by torchrun's parts."""
    variable = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    killed = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get(variable, "30") == "30"
    return "stopping after this step" + (f"; torchrun waits 30 s for it, then kills it ({variable})" if killed else "")


def _make_mixing(recipe: Recipe, mixer: RewardMixer | None) -> AdaptiveMixing | FixedMixing:
    mixing = recipe.objective.mixing
    if isinstance(mixing, Adaptive):
        return AdaptiveMixing(mixing.lambda_max, mixing.ema, mixing.sharpness, mixer.low, mixer.high)
    return FixedMixing(mixing.value)
