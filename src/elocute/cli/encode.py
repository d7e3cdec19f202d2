"""`elocute encode`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from elocute.cli.options import (
    AsJson,
    DryRun,
    Engine,
    Overrides,
    RecipeFile,
    Workers,
    print_checked,
    workers_of,
)


def encode(
    recipe: RecipeFile,
    data: Annotated[Path, typer.Option(help="Rows whose audio is encoded (JSONL).")],
    overrides: Overrides = None,
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Encode the audio of rows into the cache (data.cache), where train, sample and eval find it. What is there stays.

    Example: `elocute encode recipes/starter/wavalign.yaml --data starter/data/train.jsonl`
    """
    from elocute.pipelines.encode import AudioEncoder
    from elocute.progress import RunProgress
    from elocute.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    job = AudioEncoder(checked, data, workers=workers_of(engine, workers))
    if dry_run:
        return print_checked(checked, data, job.check(), as_json)
    with RunProgress(quiet=as_json) as progress:
        done = job.run(progress=progress)
    form = "{rows} rows: {encoded} files encoded, {in_cache} found in the cache"
    print(json.dumps(done) if as_json else form.format(**done))
