"""`elocute rounds`."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from elocute.cli.options import AsJson, DryRun, Overrides, RecipeFile, Resume, resume_command
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
    if dry_run:
        Rounds(checked).check(resume=resume)
        print(json.dumps({"recipe": checked.model_dump(mode="json")}) if as_json else dump_recipe(checked), end="")
        return
    try:
        with RunProgress(quiet=as_json) as progress:
            records, finished = Rounds(checked, progress).run(resume=resume)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        raise RunError(f"stopped; what is done is kept. Go on with: {resume_command()}")
    pages = _reports(checked) if checked.report else []
    if as_json:
        print(json.dumps({"run_dir": str(checked.run_dir), "rounds": records, "reports": pages}))
    else:
        _show(records, checked.run_dir)
        print("\n".join(f"report: {page}" for page in pages))


def _reports(recipe) -> list[str]:
    """A page for each round's training."""
    from elocute.report.page import write_report

    runs = sorted(recipe.run_dir.glob("round-*/train/metrics.jsonl"))
    return [str(write_report(run.parent)) for run in runs]


def _show(records: list[dict], run_dir: Path) -> None:
    table = Table(title=f"{run_dir}: what each round starts from says; pairs; the model's accuracy on held-out pairs")
    for name in ("round", "score", "broken", "empty", "auto-BLEU", "seconds", "pairs", "dev accuracy", "best step"):
        table.add_column(name, justify="right")
    for record in records:
        dev = record.get("dev")
        accuracy = f"{dev['accuracy']:.3f} ({dev['ci95'][0]:.2f}–{dev['ci95'][1]:.2f})" if dev else "–"
        row = [str(record["pairs"]["written"]), accuracy, str(dev["step"]) if dev else "–"]
        table.add_row(str(record["round"]), *_cells(record["continuations"]), *row)
    if told := records[-1].get("told"):
        table.add_row("the model", *_cells(told["continuations"]), "–", "–", "–")
    Console().print(table)
    for record in records:
        name = f"round {record['round']}"
        for alarm in record["alarms"]:
            print(f"{name}: alarm: {alarm}")
        if "dev" not in record:
            print(f"{name}: the loop ends: {record['pairs']['why']}")
        elif not record["dev"]["raised"]:
            print(f"{name}: its held-out pairs are told apart no better than by chance: not used")
        elif record["dev"]["ci95"][0] <= 0.5:
            print(f"{name}: {record['pairs']['dev']} held-out pairs are too few to tell its accuracy from chance")
    for alarm in told["alarms"] if told else []:
        print(f"the model: alarm: {alarm}")


def _cells(found: dict) -> list[str]:
    values = [found.get(name) for name in ("score", "broken", "empty", "auto_bleu", "seconds")]
    return ["–" if value is None else f"{value:.3g}" for value in values]
