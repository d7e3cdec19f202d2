"""A whole run: evaluate, train, save the model, evaluate again. Continues wherever it was stopped."""

import json
from collections.abc import Callable
from pathlib import Path

from elocute.data.files import write_atomically
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.evaluation.listening import write_answers
from elocute.evaluation.spoken_qa import answer_all, by_column, judge_all, right_answers, summarise
from elocute.recipe import Recipe
from elocute.rewards.asr import PocketSphinxEar
from elocute.rollout import Sampling
from elocute.training.trainer import Trainer

SOUNDS = 24
"""Answers whose WAVs are kept, before and after."""

Progress = Callable[[str, int, int, dict], None]
"""Called with (stage, done, of, values)."""


def read_eval_rows(recipe: Recipe) -> list[Example]:
    """The held-out rows that are evaluated, checked for their right answers."""
    rows = read_rows(recipe.data.eval)[: recipe.evaluation.rows]
    for row in rows:
        right_answers(row)
    return rows


def run(recipe: Recipe, *, resume: bool = False, progress: Progress = lambda *_: None) -> bool:
    """Do the whole run in `recipe.run_dir`. Returns False when Ctrl-C stopped it early (its state is saved)."""
    held_out = read_eval_rows(recipe) if recipe.data.eval else []
    trainer = Trainer(recipe, resume=resume)
    try:
        evaluator = Evaluator(trainer, held_out, progress) if held_out else None
        if evaluator:
            evaluator("before")
        finished = trainer.train(lambda step, values: progress("train", step, recipe.steps, values))
        if finished:
            trainer.save_model()
            if evaluator:
                evaluator("after")
    finally:
        trainer.close()
    return finished


class Evaluator:
    """Evaluates the run's model into eval.json and samples/, each moment once."""

    def __init__(self, trainer: Trainer, examples: list[Example], progress: Progress):
        self.trainer, self.examples, self.progress = trainer, examples, progress

    def __call__(self, moment: str) -> None:
        trainer, recipe = self.trainer, self.trainer.recipe
        if trainer.accelerator.is_main_process and moment not in read_eval(trainer.folder.evaluation):
            sampling = Sampling(recipe.rollout.max_new_tokens, recipe.evaluation.temperature)
            of = len(self.examples)
            utterances = answer_all(
                trainer.lm,
                trainer.audio,
                self.examples,
                sampling,
                seed=recipe.seed,
                batch=recipe.evaluation.batch,
                progress=lambda done: self.progress(f"evaluate {moment}", done, of, {}),
            )
            rows = judge_all(self.examples, utterances, make_ear(recipe).transcribe)
            write_answers(trainer.folder.samples, moment, rows, trainer.audio, sounds=SOUNDS)
            self._write(moment, rows)
        trainer.accelerator.wait_for_everyone()

    def _write(self, moment: str, rows) -> None:
        recipe = self.trainer.recipe
        values = read_eval(self.trainer.folder.evaluation)
        vocabulary = "closed" if recipe.evaluation.vocabulary else "open"
        values |= {
            "normalisation": "elocute.data.normalise: case, punctuation, numbers as words",
            "ear": f"PocketSphinx, bundled en-us model, {vocabulary} vocabulary",
            "seed": recipe.seed,
            "temperature": recipe.evaluation.temperature,
            moment: {name: estimate.to_json() for name, estimate in summarise(rows).items()},
        }
        for column in ("difficulty", "category"):
            if all(column in row.example.columns for row in rows):
                parts = by_column(rows, column)
                values.setdefault(f"by_{column}", {})[moment] = {
                    part: {name: estimate.to_json() for name, estimate in metrics.items()}
                    for part, metrics in parts.items()
                }
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_atomically(self.trainer.folder.evaluation, text.encode())


def make_ear(recipe: Recipe) -> PocketSphinxEar:
    """The evaluation's recogniser."""
    file = recipe.evaluation.vocabulary
    return PocketSphinxEar(words=file.read_text().splitlines() if file else None)


def read_eval(path: Path) -> dict:
    """What eval.json holds so far; empty when there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
