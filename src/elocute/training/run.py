"""A whole run: evaluate, train, save the model, evaluate again. Continues wherever it was stopped."""

from collections.abc import Callable, Sequence

from elocute.data.types import Example
from elocute.evaluation.evaluate import evaluate, read_eval, read_eval_rows, write_eval
from elocute.models import check_answers_questions
from elocute.recipe import Recipe
from elocute.rollout import Sampling
from elocute.training.trainer import Trainer

Progress = Callable[[str, int, int, dict], None]
"""Called with (stage, done, of, values)."""


def run(recipe: Recipe, *, resume: bool = False, progress: Progress = lambda *_: None) -> bool:
    """Do the whole run in `recipe.run_dir`. Returns False when Ctrl-C stopped it early (its state is saved)."""
    held_out = []
    if recipe.data.eval:
        check_answers_questions(recipe.model)
        limit, ear = recipe.evaluation.rows, recipe.evaluation.ear
        held_out = read_eval_rows(recipe.data.eval, limit, ear, recipe.data.prompt_seconds)
    trainer = Trainer(recipe, resume=resume, progress=progress)
    try:
        if held_out:
            evaluate_once(trainer, held_out, "before", progress)
        finished = trainer.train(lambda step, values: progress("train", step, recipe.steps, values))
        if finished:
            trainer.save_model()
            if held_out:
                evaluate_once(trainer, held_out, "after", progress)
    finally:
        trainer.close()
    return finished


def evaluate_once(trainer: Trainer, examples: Sequence[Example], moment: str, progress: Progress) -> None:
    """The run's model into eval.json and samples/, unless this moment of this step is there already."""
    recipe, folder = trainer.recipe, trainer.folder
    earlier = read_eval(folder.evaluation)
    step = 0 if moment == "before" else trainer.step  # a run that goes on past its end has a new "after"
    if trainer.accelerator.is_main_process and earlier.get("step", {}).get(moment) != step:
        values = evaluate(
            trainer.lm,
            trainer.audio,
            examples,
            moment,
            earlier=earlier,
            model=recipe.model if moment == "before" else folder.model,
            data=recipe.data.eval,
            samples=folder.samples,
            ear=recipe.evaluation.ear,
            sampling=Sampling(recipe.rollout.max_new_tokens, recipe.evaluation.temperature),
            seed=recipe.seed,
            batch=recipe.evaluation.batch,
            progress=lambda done: progress(f"evaluate {moment}", done, len(examples), {}),
        )
        write_eval(folder.evaluation, values | {"step": earlier.get("step", {}) | {moment: step}})
    trainer.accelerator.wait_for_everyone()
