"""`elocute sample` and `elocute score`."""

from pathlib import Path
from typing import Annotated

import typer

from elocute.cli.options import (
    AsJson,
    DryRun,
    Engine,
    Overrides,
    RecipeFile,
    Resume,
    Workers,
    print_checked,
    to_the_end,
    workers_of,
)


def sample(
    recipe: RecipeFile,
    data: Annotated[Path, typer.Option(help="Rows whose prompts are answered (JSONL).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for candidates.jsonl and the WAVs.")],
    overrides: Overrides = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Answers a prompt; default: rollout.group_size.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N equal shares of the rows.")] = "1/1",
    engine: Engine = "local",
    workers: Workers = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Answer every prompt n times with the recipe's model and rollout settings: candidates.jsonl and WAVs.

    Example: `elocute sample recipes/starter/wavalign.yaml --data starter/data/heldout.jsonl -n 8 -o candidates`
    """
    from elocute.pipelines.sample import CandidateSampler
    from elocute.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    job = CandidateSampler(checked, data, out, n=n, shard=shard, workers=workers_of(engine, workers))
    if dry_run:
        return print_checked(checked, data, job.check(resume=resume), as_json)
    done = to_the_end(lambda progress: job.run(resume=resume, progress=progress), as_json)
    if done:
        print("{candidates}: {prompts} prompts, {answers} answers, {broken} broken".format(**done))


def score(
    recipe: RecipeFile,
    candidates: Annotated[Path, typer.Option(help="What `elocute sample` wrote, or data of its form (JSONL).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The same lines with scores (JSONL).")],
    overrides: Overrides = None,
    engine: Engine = "local",
    workers: Workers = None,
    resume: Resume = False,
    retry: Annotated[
        bool, typer.Option("--retry-unavailable", help="Go on, then ask again for what was unavailable.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Judge candidates by the recipe's rewards. RECIPE may be a file that holds `rewards` and nothing else.

    Example: `elocute score recipes/starter/wavalign.yaml --candidates candidates/candidates.jsonl -o scored.jsonl`
    """
    from elocute.pipelines.score import CandidateScorer
    from elocute.recipe import load_judges

    checked, hired = load_judges(recipe, overrides or []), workers_of(engine, workers)
    with CandidateScorer(checked, candidates, out, workers=0 if dry_run else hired) as job:
        if dry_run:
            return print_checked(checked, candidates, job.check(resume=resume or retry), as_json)
        done = to_the_end(lambda progress: job.run(resume=resume, retry=retry, progress=progress), as_json)
    if done:
        outcomes = ", ".join(f"{count} {kind}" for kind, count in done["outcomes"].items())
        print(f"{done['scored']}: {done['prompts']} prompts, {done['answers']} answers: {outcomes}")
        for name, found in done["values"].items():
            print(f"  {name}: {found['mean']:.3f} ± {found['std']:.3f} ({found['n']})")
