"""`elocute rounds`."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from elocute.cli.options import AsJson, DryRun, Overrides, RecipeFile, Resume
from elocute.errors import RunError


def rounds(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Sample, score, pair, DPO; then again from the newest policy with the bar raised (Align-SLM).

    Example: `elocute rounds recipes/starter/align_slm.yaml run_dir=runs/rounds rounds.candidates=8`
    """
    from elocute.pipelines.rounds import Rounds
    from elocute.progress import RunProgress
    from elocute.recipe import dump_recipe, load_recipe

    checked = load_recipe(recipe, overrides or [])
    with RunProgress(quiet=as_json) as progress:
        loop = Rounds(checked, progress)
        if dry_run:
            loop.check(resume=resume)
        else:
            records, finished = loop.run(resume=resume)
    if dry_run:
        print(json.dumps({"recipe": checked.model_dump(mode="json")}) if as_json else dump_recipe(checked), end="")
        return
    if as_json:
        print(json.dumps({"run_dir": str(checked.run_dir), "finished": finished, "rounds": records}))
    else:
        _show(records, checked.run_dir)
    if not finished:
        raise RunError(f"stopped; everything is saved. Go on with the same command and --resume: {checked.run_dir}")


def _show(records: list[dict], run_dir: Path) -> None:
    table = Table(title=f"{run_dir}: candidates of each round are its starting policy's")
    for name in ("round", "score", "broken", "auto-BLEU", "seconds", "pairs", "dev accuracy", "best step"):
        table.add_column(name, justify="right")
    for record in records:
        found, dev = record["continuations"], record.get("dev", {})
        cells = [found.get("score"), found["broken"], found["auto_bleu"], found.get("seconds")]
        shown = ["–" if value is None else f"{value:.3g}" for value in cells]
        accuracy = f"{dev['accuracy']:.3f}" if dev else "–"
        pairs = str(record["pairs"]["written"])
        table.add_row(str(record["round"]), *shown, pairs, accuracy, str(dev.get("step", "–")))
    Console().print(table)
    for record in records:
        for alarm in record["alarms"]:
            print(f"round {record['round']}: alarm: {alarm}")
        if not record.get("dev", {"raised": True})["raised"]:
            print(f"round {record['round']}: its held-out pairs are told apart no better than by chance: not used")
