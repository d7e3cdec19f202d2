"""`elocute train` and `elocute report`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elocute.cli.options import AsJson, DryRun, Overrides, RecipeFile, Resume, resume_command
from elocute.errors import RunError


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Post-train a speech LM: online RL, hybrid, SFT or DPO, as the recipe says.

    Example: `elocute train recipes/starter/wavalign.yaml run_dir=runs/a steps=20 seed=3 checkpoint.every=5`
    """
    from elocute.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    if dry_run:
        return _dry_run(checked, resume, as_json)
    from elocute.evaluation.evaluate import read_eval
    from elocute.progress import RunProgress
    from elocute.training.run import run

    main = os.environ.get("RANK", "0") == "0"
    with RunProgress(quiet=as_json or not main) as progress:
        finished = run(checked, resume=resume, progress=progress)
    if not main:
        return
    page = _report(checked.run_dir) if checked.report and (checked.run_dir / "metrics.jsonl").exists() else None
    values = read_eval(checked.run_dir / "eval.json")
    if as_json:
        print(json.dumps({"run_dir": str(checked.run_dir), "finished": finished, "eval": values}))
    else:
        _show(values, page)
    if not finished:
        raise RunError(f"stopped; everything is saved. Go on with: {resume_command()}")


def _dry_run(recipe, resume: bool, as_json: bool) -> None:
    from elocute.data.rows import check_rows, read_rows
    from elocute.models import check_model, check_one_vocabulary
    from elocute.recipe import dump_recipe
    from elocute.recipe.schema import Dpo
    from elocute.training.fitting import check_memory
    from elocute.training.held_out import read_held_out
    from elocute.training.machine import Machine
    from elocute.training.pairs import check_answers
    from elocute.training.run_folder import RunFolder
    from elocute.training.share import check_launch

    check_launch(served=recipe.rollout.vllm is not None)
    RunFolder(recipe.run_dir).check(recipe, resume=resume)
    examples = read_rows(recipe.data.train, recipe.data.prompt_seconds)
    dev = read_rows(recipe.data.dev, recipe.data.prompt_seconds) if recipe.data.dev else []
    rows = {"data.train": len(examples)} | ({"data.dev": len(dev)} if dev else {})
    if evaluated := read_held_out(recipe):
        rows["data.eval"] = len(evaluated)
    if isinstance(recipe.objective, Dpo):
        check_rows(examples, lambda example: check_answers(example, recipe.objective.mode))
        check_rows(dev, lambda example: check_answers(example, "offline"))
    check_model(recipe.model, examples)
    machine = Machine.here()
    need = check_memory(recipe, examples, machine)
    if recipe.rollout.vllm and recipe.objective.samples:
        check_one_vocabulary(recipe.model, "rollout.vllm")
    if recipe.objective.judges:
        _check_rewards(recipe, examples)
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        memory = {"needed": need and need.bytes, "free": machine.bytes}
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": rows, "memory": memory}))
    else:
        print(dump_recipe(recipe), end="")
        if need is not None and machine.bytes is not None:
            print(f"# memory: a process needs {need}, it has {machine}")
        print("# checked: " + ", ".join(f"{name} has {count} rows" for name, count in rows.items()))


def _check_rewards(recipe, examples) -> None:
    from elocute.rewards.combine import build_mixer

    if recipe.rewards:
        mixer = build_mixer(recipe.rewards, recipe.reward_mix, recipe.listen)
        try:
            mixer.check(examples)
        finally:
            mixer.close()


def _report(run_dir: Path) -> Path:
    from elocute.report.page import write_report

    return write_report(run_dir)


def _show(values: dict, page: Path | None) -> None:
    from elocute.report.page import results_table

    if "before" in values or "after" in values:
        Console().print(results_table(values))
    if page is not None:
        print(f"report: {page}")


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for example runs/quickstart")],
    as_json: AsJson = False,
) -> None:
    """Write the run as one HTML page with curves, tables and players.

    Example: `elocute report runs/quickstart`
    """
    from elocute.evaluation.evaluate import read_eval

    page = _report(run_dir)
    if as_json:
        print(json.dumps({"report": str(page)}))
    else:
        _show(read_eval(run_dir / "eval.json"), page)
