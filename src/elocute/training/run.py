"""A whole run: evaluate, train, save the model, evaluate again. Continues wherever it was stopped."""

import contextlib
from collections.abc import Sequence

from elocute.data.types import Example
from elocute.evaluation.evaluate import evaluate, read_eval, write_eval
from elocute.evaluation.read_aloud import evaluate_aloud
from elocute.models import reads_aloud
from elocute.progress import Progress
from elocute.recipe import Recipe
from elocute.rollout import Sampling
from elocute.training import pulse
from elocute.training.share import disband, whole_weights
from elocute.training.trainer import Trainer


def run(recipe: Recipe, *, resume: bool = False, progress: Progress = lambda *_: None) -> bool:
    """Do the whole run in `recipe.run_dir`. Returns False when Ctrl-C stopped it early (its state is saved)."""
    with pulse.reporting_loss(), contextlib.ExitStack() as ending:
        ending.callback(disband)
        trainer = Trainer(recipe, resume=resume, progress=progress)
        ending.callback(trainer.close)
        if trainer.held_out:
            with whole_weights(trainer.raw_policy):
                evaluate_once(trainer, trainer.held_out, "before", progress)
        finished = trainer.train(lambda step, values: progress("train", step, recipe.steps, values))
        if finished:
            trainer.save_model()
            if trainer.held_out:
                evaluate_once(trainer, trainer.held_out, "after", progress)
        trainer.pulse.leave()
    return finished


def evaluate_once(trainer: Trainer, examples: Sequence[Example], moment: str, progress: Progress) -> None:
    """The run's model into eval.json and samples/, unless this moment of this step is there already."""
    recipe, folder = trainer.recipe, trainer.folder
    earlier = read_eval(folder.evaluation)
    step = 0 if moment == "before" else trainer.step  # a run that goes on past its end has a new "after"
    if trainer.accelerator.is_main_process and earlier.get("step", {}).get(moment) != step:
        how, longest = recipe.evaluation, recipe.rollout.max_new_tokens
        shared = {"earlier": earlier, "data": recipe.data.eval, "samples": folder.samples, "seed": recipe.seed}
        shared |= {"model": recipe.model if moment == "before" else folder.model, "ear": how.ear, "batch": how.batch}
        if reads_aloud(recipe.model, examples):
            values = evaluate_aloud(
                trainer.lm,
                examples,
                moment,
                **shared,
                labels=how.labels,
                temperature=how.temperature,
                max_new_tokens=longest,
                combine=True,
                progress=lambda stage, done, of, values: progress(f"{stage} {moment}", done, of, values),
            )
        else:
            values = evaluate(
                trainer.lm,
                trainer.audio,
                examples,
                moment,
                **shared,
                sampling=Sampling(longest, how.temperature),
                progress=lambda done: progress(f"evaluate {moment}", done, len(examples), {}),
            )
        write_eval(folder.evaluation, values | {"step": earlier.get("step", {}) | {moment: step}})
    trainer.accelerator.wait_for_everyone()
