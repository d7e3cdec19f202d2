"""`elocute label`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from elocute.cli.options import AsJson, Engine, Resume, Workers, to_the_end, workers_of
from elocute.errors import InputError

ATTEMPTS = 4


def label(
    input: Annotated[Path, typer.Option("--input", help="Rows or texts (JSONL), or RLAIF-SPA's JSON.")],
    output: Annotated[Path, typer.Option("--output", help="The same rows with labels (JSONL).")],
    sources: Annotated[
        list[str],
        typer.Option("--from", metavar="rule|audio|llm|rlaif-spa", help="Who decides; may be given several times."),
    ],
    schema: Annotated[
        str | None, typer.Option(help="paper, rlaif_spa or a YAML file. Default: paper; rlaif_spa for its JSON.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For llm; default: OPENAI_MODEL.")] = None,
    cache: Annotated[Path | None, typer.Option(help="For llm: a folder of replies, so nothing is asked twice.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="For llm: requests in flight.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="For llm: seconds for one try.")] = 60.0,
    own_temperature: Annotated[
        bool, typer.Option("--own-temperature", help="For llm: the endpoint's own temperature instead of 0.")
    ] = False,
    max_unavailable: Annotated[
        float, typer.Option(min=0, max=1, help="For llm: a larger share of failures stops the run.")
    ] = 0.5,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Leave out given labels that the schema does not have; count them.")
    ] = False,
    engine: Engine = "local",
    workers: Workers = None,
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check rows, schema and options; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label how rows are to be spoken: structure, emotion, speed, tone, or what your schema has. Labels they have stay.

    Example: `elocute label --input texts.jsonl --output labelled.jsonl --from rule --from llm --cache replies`

    Example: `elocute label --input published.json --output rows.jsonl --from rlaif-spa --drop-unknown`

    See docs/labels.md.
    """
    from elocute.pipelines.label.run import Labeller
    from elocute.pipelines.label.summary import summary_lines
    from elocute.prosody.schema import load_schema

    if "llm" not in sources and (model or cache or own_temperature):
        raise InputError("--model, --cache, --own-temperature: only used with --from llm")
    checked = load_schema(schema or ("rlaif_spa" if "rlaif-spa" in sources else "paper"))
    reader = None
    if "llm" in sources:
        reader = _reader(model, concurrency, timeout, cache, None if own_temperature else 0.0)
    job = Labeller(
        input,
        output,
        checked,
        sources,
        reader=reader,
        drop_unknown=drop_unknown,
        max_unavailable=max_unavailable,
        workers=workers_of(engine, workers),
    )
    if dry_run:
        count = job.check(resume=resume)
        found = {"rows": count, "dimensions": {name: list(one.labels) for name, one in checked.dimensions.items()}}
        print(json.dumps(found) if as_json else f"# checked: {count} rows of {input}; {', '.join(checked.dimensions)}")
        return
    done = to_the_end(lambda progress: job.run(resume=resume, progress=progress), as_json)
    if done:
        print("\n".join([*summary_lines(done), f"summary: {job.summary_file}"]))


def _reader(model: str | None, concurrency: int, timeout: float, cache: Path | None, temperature: float | None):
    from elocute.pipelines.label.run import ROUNDS
    from elocute.pipelines.label.sources import Reader
    from elocute.rewards.chat import ChatEndpoint, credentials

    endpoint = ChatEndpoint(
        credentials(model, who="--from llm"),
        concurrency=concurrency,
        timeout=timeout,
        attempts=ATTEMPTS,
        deadline=ATTEMPTS * ROUNDS * timeout,
    )
    return Reader(endpoint, temperature=temperature, cache=cache)
