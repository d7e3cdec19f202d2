"""`elocute rounds`: Align-SLM's loop (arXiv 2411.01834). Prompts → continuations → scores → pairs → DPO, then again.

    run_dir/round-1/{candidates.jsonl, audio/, scored.jsonl, pairs.jsonl, train.jsonl, dev.jsonl, train/, round.json}
    run_dir/round-2/…, run_dir/model/   the newest model that was used; round-N/told/: what the last one says

Each round starts from the newest policy, which is also its reference, and raises the thresholds. Every part is the verb
of its name, and goes on where it was stopped; round.json says which parts are done and what came out.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elocute.data.files import write_atomically
from elocute.data.rows import each_row, read_rows
from elocute.errors import InputError
from elocute.evaluation.statistics import wilson
from elocute.models import check_model
from elocute.pipelines.alarms import alarms, measure_candidates
from elocute.pipelines.pairs.build import build_pairs
from elocute.pipelines.pairs.card import reasons
from elocute.pipelines.pairs.merge import NoPairLeft
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.sample import CandidateSampler
from elocute.pipelines.score import CandidateScorer
from elocute.progress import Progress
from elocute.recipe import Recipe
from elocute.recipe.schema import Dpo
from elocute.rewards.combine import build_mixer
from elocute.rollout import seed_of
from elocute.training.policy import load_policy
from elocute.training.run import run
from elocute.training.run_folder import RunFolder

PAIR_WEIGHTS = ("weight", "score_gap", "chosen_score")
"""Columns of every pair that may weigh it."""


def check_rounds(recipe: Recipe) -> None:
    """InputError unless the recipe says all that the loop needs."""
    if recipe.rounds is None:
        raise InputError("rounds: expected in the recipe; elocute train makes a single round")
    if not (isinstance(recipe.objective, Dpo) and recipe.objective.mode == "offline"):
        raise InputError("objective: expected {kind: dpo, mode: offline}, which learns from a round's pairs")
    if not recipe.rewards:
        raise InputError("rewards: expected at least one, to score the continuations")
    if recipe.data.dev is not None:
        raise InputError("data.dev: each round holds out pairs of its own (rounds.dev_share)")


class Rounds:
    """The whole loop in `recipe.run_dir`."""

    def __init__(self, recipe: Recipe, progress: Progress = lambda *_: None):
        check_rounds(recipe)
        self.recipe, self.progress = recipe, progress
        self.folder = RunFolder(recipe.run_dir)

    def check(self, *, resume: bool) -> None:
        """InputError unless folder, model, rows and rewards are fit for the loop."""
        self.folder.check(self.recipe, resume=resume)
        check_model(self.recipe.model)
        rows = read_rows(self.recipe.data.train, self.recipe.data.prompt_seconds)
        weight = self.recipe.objective.pair_weight
        if weight and weight not in PAIR_WEIGHTS and any(weight not in row.columns for row in rows):
            raise InputError(f"objective.pair_weight: expected {', '.join(PAIR_WEIGHTS)} or one of data.train")
        mixer = build_mixer(self.recipe.rewards, self.recipe.reward_mix, self.recipe.listen)
        try:
            mixer.check(rows)
        finally:
            mixer.close()

    def run(self, *, resume: bool = False) -> tuple[list[dict[str, Any]], bool]:
        """Each round's record, and whether all was done: False when Ctrl-C stopped a training (its state is saved)."""
        self.check(resume=resume)
        if not resume:
            load_policy(self.recipe)  # what training would refuse of model, scope or adapters is found beforehand
        self.folder.begin(self.recipe)
        records: list[dict[str, Any]] = []
        model = self.recipe.model
        for number in range(1, self.recipe.rounds.count + 1):
            done = _Round(self.recipe, number, model, self.progress)
            if not done.run(records):
                return records + [done.record], False
            records.append(done.record)
            if not done.used:
                return records, True
            model = done.folder / "train" / "model"
            done.part("published", lambda model=model: self._publish(model))
        done.part("told", lambda: done.tell(model, records[0]["continuations"]))
        return records, True

    def _publish(self, model: Path) -> str:
        partial = self.folder.model.with_name("model.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial)
        shutil.rmtree(self.folder.model, ignore_errors=True)
        partial.rename(self.folder.model)
        return str(self.folder.model)


class _Round:
    """One round: `record` is what round.json holds."""

    def __init__(self, recipe: Recipe, number: int, model: Path, progress: Progress):
        self.recipe, self.number, self.model = recipe, number, model
        self.folder = recipe.run_dir / f"round-{number}"
        self._progress = progress
        file = self.folder / "round.json"
        self.record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"round": number}

    def run(self, earlier: list[dict[str, Any]]) -> bool:
        """What is not done yet. False when training was stopped."""
        self.part("sampled", lambda: self._sample(self.folder, self.model, self.recipe.rounds.candidates))
        self.part("scored", lambda: self._score(self.folder))
        self.part("continuations", lambda: measure_candidates(self.folder / "scored.jsonl"))
        measured = self.record["continuations"]
        base = earlier[0]["continuations"] if earlier else measured
        self.part("alarms", lambda: alarms(measured, base))
        self.part("pairs", self._pair)
        if self.record["pairs"]["written"] and "dev" not in self.record:
            if not self._train():
                return False
            self.part("dev", self._best)
        return True

    @property
    def used(self) -> bool:
        """Whether the round's model tells its held-out pairs apart better than by chance."""
        return "dev" in self.record and self.record["dev"]["raised"]

    def tell(self, model: Path, base: dict[str, Any]) -> dict[str, Any]:
        """What the trained model says, an answer a prompt, measured and compared as candidates are: no round follows
        that would."""
        folder = self.folder / "told"
        self._sample(folder, model, 1)
        self._score(folder)
        measured = measure_candidates(folder / "scored.jsonl")
        return {"continuations": measured, "alarms": alarms(measured, base)}

    def part(self, name: str, work: Callable[[], Any]) -> None:
        if name in self.record:
            return
        self.record[name] = work()
        write_atomically(self.folder / "round.json", (json.dumps(self.record, indent=2) + "\n").encode())

    def _sample(self, folder: Path, model: Path, n: int) -> dict[str, Any]:
        seed = seed_of(self.recipe.seed, "round", self.number, folder.name)
        recipe = self.recipe.model_copy(update={"model": model, "seed": seed})
        sampler = CandidateSampler(recipe, recipe.data.train, folder, n=n)
        return sampler.run(resume=True, progress=self._stage) | {"candidates": "candidates.jsonl"}

    def _score(self, folder: Path) -> dict[str, Any]:
        with CandidateScorer(self.recipe, folder / "candidates.jsonl", folder / "scored.jsonl") as scorer:
            return scorer.run(resume=True, progress=self._stage) | {"scored": "scored.jsonl"}

    def _pair(self) -> dict[str, Any]:
        """InputError when no pair is left; in a later round that is the loop's end: the bar is above the policy."""
        try:
            return self._pairs()
        except NoPairLeft as error:
            if self.number == 1:
                raise
            return {"written": 0, "why": str(error)}

    def _pairs(self) -> dict[str, Any]:
        rounds = self.recipe.rounds
        bar = {}
        if rounds.rule == "threshold":
            chosen, rejected = rounds.thresholds[self.number - 1]
            bar = {"chosen_min_score": chosen, "rejected_max_score": rejected}
        options = PairOptions(
            input=str(self.folder / "scored.jsonl"),
            output=str(self.folder / "pairs.jsonl"),
            score_mode="reward",
            rule=rounds.rule,
            differ_in="any",
            pairs_per_prompt=rounds.pairs_per_prompt,
            max_auto_bleu=rounds.max_auto_bleu,
            **bar,
        )
        card = build_pairs(options, progress=self._stage)
        counts = split_pairs(self.folder / "pairs.jsonl", rounds.dev_share)
        dropped = {why: found["rows"] for why, found in card["rows"]["dropped"].items()}
        for name, count in counts.items():
            if not count:
                raise NoPairLeft(
                    f"{self.folder / 'pairs.jsonl'}: no pair is left for {name}: {card['pairs']['written']} pairs of "
                    f"{card['rows']['read']} prompts ({reasons(dropped) or 'none dropped'}); more prompts, more "
                    "candidates or another rounds.rule give more"
                )
        return {"written": card["pairs"]["written"], "prompts": card["rows"]["read"], "dropped": dropped, **counts}

    def _train(self) -> bool:
        data = {"train": self.folder / "train.jsonl", "dev": self.folder / "dev.jsonl"}
        changes = {
            "run_dir": self.folder / "train",
            "model": self.model,
            "data": self.recipe.data.model_copy(update=data),
            "rounds": None,
        }
        started = (self.folder / "train" / "recipe.yaml").exists()
        return run(self.recipe.model_copy(update=changes), resume=started, progress=self._stage)

    def _best(self) -> dict[str, Any]:
        """Reward accuracy on the held-out pairs: at the start, and of the best step."""
        lines = (self.folder / "train" / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(line) for line in lines if "dev/best_step" in line][-1]
        best = next(json.loads(line) for line in lines if json.loads(line)["step"] == last["dev/best_step"])
        pairs = self.record["pairs"]["dev"]
        # At the start policy and reference are one: every margin is 0, and a tie is half right.
        return {
            "step": best["step"],
            "accuracy": best["dev/accuracy"],
            "ci95": list(wilson(round(best["dev/accuracy"] * pairs), pairs)),
            "margin": best["dev/margin"],
            "raised": best["dev/accuracy"] > 0.5,
        }

    def _stage(self, name: str, done: int, of: int, values: dict) -> None:
        self._progress(f"round {self.number}: {name}", done, of, values)


def split_pairs(pairs: Path, dev_share: float) -> dict[str, int]:
    """train.jsonl and dev.jsonl beside the pairs, all pairs of a prompt on one side, which its question decides."""
    lines: dict[str, list[bytes]] = {"train": [], "dev": []}
    source = pairs.read_bytes().splitlines(keepends=True)  # a text's own lines end at U+2028, too
    for line, (fields, _) in zip(source, each_row(pairs), strict=True):
        asked = json.dumps([fields["messages"], fields.get("audios")])
        place = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8]) / 2**64
        lines["dev" if place < dev_share else "train"].append(line)
    for name, own in lines.items():
        write_atomically(pairs.with_name(f"{name}.jsonl"), b"".join(own))
    return {name: len(own) for name, own in lines.items()}
