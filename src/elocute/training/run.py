"""A whole run: evaluate, train, save the model, evaluate again. Continues wherever it was stopped."""

from collections.abc import Sequence

from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.evaluation.evaluate import evaluate, read_eval, read_eval_rows, write_eval
from elocute.evaluation.independent import check_label_listeners
from elocute.evaluation.read_aloud import evaluate_aloud, read_rows_to_read
from elocute.models import reads_aloud
from elocute.progress import Progress
from elocute.recipe import Recipe
from elocute.rollout import Sampling
from elocute.training import pulse
from elocute.training.share import whole_weights
from elocute.training.trainer import Trainer


def run(recipe: Recipe, *, resume: bool = False, progress: Progress = lambda *_: None) -> bool:
    """Do the whole run in `recipe.run_dir`. Returns False when Ctrl-C stopped it early (its state is saved)."""
    held_out = read_held_out(recipe)
    with pulse.reporting_loss():
        trainer = Trainer(recipe, resume=resume, progress=progress)
        try:
            if held_out:
                with whole_weights(trainer.raw_policy):
                    evaluate_once(trainer, held_out, "before", progress)
            finished = trainer.train(lambda step, values: progress("train", step, recipe.steps, values))
            if finished:
                trainer.save_model()
                if held_out:
                    evaluate_once(trainer, held_out, "after", progress)
            trainer.pulse.leave()
        finally:
            trainer.close()
    return finished


def read_held_out(recipe: Recipe) -> list[Example]:
    """The rows of data.eval, checked: what the recipe's kind of model is evaluated on; none without data.eval."""
    data, how = recipe.data.eval, recipe.evaluation
    reads = reads_aloud(recipe.model, read_rows(data) if data else ())
    if how.labels and not (data and reads):
        raise InputError("evaluation.labels: expected only for a model that reads data.eval aloud")
    if data is None:
        return []
    if not reads:
        return read_eval_rows(data, how.rows, how.ear, recipe.data.prompt_seconds)
    check_label_listeners(recipe)
    return read_rows_to_read(data, how.rows, recipe.model, how.ear, how.labels, "evaluation.labels")


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
