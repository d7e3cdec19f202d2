"""What verbs share: their usual options, and how long work ends."""

import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from elocute.errors import InputError, RunError

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="For example recipes/starter/wavalign.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example optim.lr=1e-4")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; check its files.")]


def _temperature(text: str) -> float | tuple[float, ...]:
    try:
        each = tuple(map(float, text.split(",")))
    except ValueError:
        each = ()
    if not each or not all(0 < one < math.inf for one in each):
        raise typer.BadParameter(f"expected a number above 0, or one for each of the model's heads, a,b,…: {text!r}")
    return each[0] if len(each) == 1 else each


Temperature = Annotated[
    float | None,
    typer.Option(
        parser=_temperature, metavar="T[,T…]", show_default=False,
        help="One, or one for each of the model's heads; default: the model's own, mostly 0.7.",
    ),
]  # fmt: skip

Engine = Annotated[
    Literal["local", "ray"], typer.Option(metavar="local|ray", help="ray: workers, here or on a cluster (RAY_ADDRESS).")
]
Workers = Annotated[int | None, typer.Option(min=1, help="For ray: processes that each hold the model or the judges.")]


def workers_of(engine: str, workers: int | None) -> int:
    """How many workers on Ray; 0: none."""
    if (engine == "ray") != (workers is not None):
        raise InputError("--engine ray needs --workers N, and --workers needs --engine ray")
    return workers or 0


def resume_command() -> str:
    """What goes on with what was interrupted: words to paste; of a launcher that has more to say, which is not known
    here, that it is to be said again."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    divided = any(os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true" for way in ("FSDP", "DEEPSPEED"))
    if divided or os.environ.get("WORLD_SIZE") != processes:
        return "the same command" + ("" if "--resume" in sys.argv else " with --resume at its end")
    words = [*(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    launcher = ["torchrun", f"--nproc_per_node={processes}", "-m", "elocute.cli"] if processes else ["elocute"]
    return shlex.join([*launcher, *words])


def print_checked(recipe, file: Path, count: int, as_json: bool) -> None:
    from elocute.recipe import dump_recipe

    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "prompts": count}))
    else:
        print(dump_recipe(recipe) + f"# checked: {count} prompts of {file}")


def to_the_end(work, as_json: bool) -> dict | None:
    """The work's summary, or None when it is printed already."""
    from elocute.progress import RunProgress

    try:
        with RunProgress(quiet=as_json) as progress:
            done = work(progress)
    except KeyboardInterrupt:
        raise RunError(f"stopped; what is done is kept. Go on with: {resume_command()}") from None
    return print(json.dumps(done)) if as_json else done
