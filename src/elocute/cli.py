"""The command line: verbs, nothing else. Exit status 0, 1 (failed) or 2 (bad usage or input: one clear line)."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elocute.errors import InputError, RunError

app = typer.Typer(
    name="elocute",
    help="Reinforcement learning and preference optimisation from AI feedback for language models that speak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="For example recipes/starter/wavalign.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example optim.lr=1e-4")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run_dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; check its files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Post-train a speech LM: online RL, hybrid or SFT, as the recipe says.

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
        raise RunError(f"stopped; everything is saved. Go on with: {_resume_command()}")


def _resume_command() -> str:
    words = [*(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", f"--nproc_per_node={processes}", "-m", "elocute.cli"] if processes else ["elocute"]
    return shlex.join([*launcher, *words])


def _dry_run(recipe, resume: bool, as_json: bool) -> None:
    from elocute.data.rows import read_rows
    from elocute.evaluation.evaluate import read_eval_rows
    from elocute.models.interleaved import load_vocabulary
    from elocute.recipe import dump_recipe
    from elocute.training.run_folder import RunFolder

    RunFolder(recipe.run_dir).check(recipe, resume=resume)
    examples = read_rows(recipe.data.train)
    rows = {"data.train": len(examples)}
    if recipe.data.eval:
        rows["data.eval"] = len(read_eval_rows(recipe.data.eval, recipe.evaluation.rows, recipe.evaluation.ear))
    load_vocabulary(recipe.model)
    _check_rewards(recipe, examples)
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": rows}))
    else:
        print(dump_recipe(recipe), end="")
        print("# checked: " + ", ".join(f"{name} has {count} rows" for name, count in rows.items()))


def _check_rewards(recipe, examples) -> None:
    from elocute.rewards.combine import build_mixer

    if recipe.rewards:
        mixer = build_mixer(recipe.rewards, recipe.reward_mix)
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


@app.command()
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


@app.command("eval")
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="A model folder, or a run.")],
    data: Annotated[Path, typer.Option(help="Rows with an `answer` column (JSONL).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for eval.json, answers and WAVs.")],
    suite: Annotated[str, typer.Option(help="What to measure: spoken-qa.")] = "spoken-qa",
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first n rows.")] = None,
    ear: Annotated[
        Path | None, typer.Option(help="A Whisper or CTC folder that listens; default: PocketSphinx.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="All that PocketSphinx may hear (closed domains).")] = None,
    temperature: Annotated[float, typer.Option(min=1e-6)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check model folder, rows and options.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on held-out spoken questions: is it right as written, as heard, and is its speech whole.

    Example: `elocute eval runs/quickstart --data starter/data/heldout.jsonl --vocabulary starter/answers.txt -o out`
    """
    if suite != "spoken-qa":
        raise InputError(f"--suite {suite}: expected spoken-qa")
    from elocute.evaluation.evaluate import check_evaluation, evaluate_folder
    from elocute.progress import RunProgress
    from elocute.report.page import results_table
    from elocute.rollout import Sampling

    listener = _ear(ear, vocabulary)
    model, examples = check_evaluation(target, data, out, rows=rows, ear=listener)
    if dry_run:
        print(json.dumps({"model": str(model), "rows": len(examples)}) if as_json else f"{model}: {len(examples)} rows")
        return
    with RunProgress(quiet=as_json) as progress:
        values = evaluate_folder(
            model,
            data,
            examples,
            out,
            ear=listener,
            sampling=Sampling(max_new_tokens, temperature),
            seed=seed,
            progress=progress,
        )
    if as_json:
        print(json.dumps(values))
    else:
        Console().print(results_table(values))
        print(f"answers, WAVs and eval.json: {out}")


def _ear(folder: Path | None, vocabulary: Path | None):
    from elocute.recipe.rewards import PocketSphinxSpec, TransformersEarSpec

    if folder is not None and vocabulary is not None:
        raise InputError("--vocabulary: only PocketSphinx takes one; leave out --ear or --vocabulary")
    for option, path, there in (("--ear", folder, Path.is_dir), ("--vocabulary", vocabulary, Path.is_file)):
        if path is not None and not there(path):
            raise InputError(f"{option}: no such {'folder' if option == '--ear' else 'file'}: {path}")
    if folder is not None:
        return TransformersEarSpec(kind="transformers", path=folder)
    return PocketSphinxSpec(kind="pocketsphinx", vocabulary=vocabulary)


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, for example runs/quickstart/model")],
    audio: Annotated[Path | None, typer.Option(help="The spoken question: any sound file.")] = None,
    text: Annotated[str | None, typer.Option(help="A written question instead.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the spoken answer goes.")] = Path("answer.wav"),
    temperature: Annotated[float, typer.Option(min=1e-6)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """One turn: ask by voice or in writing, get the answer's text printed and its sound as a WAV.

    Example: `elocute chat starter/model --audio starter/audio/heldout-sum-0000.question.wav -o answer.wav`
    """
    if (audio is None) == (text is None):
        raise InputError("chat: expected either --audio or --text")
    from elocute.chat import one_turn
    from elocute.data.audio import save_wav

    utterance = one_turn(
        model, audio=audio, text=text, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    if utterance.broken:
        raise RunError(f"the answer is broken ({utterance.broken}); what it wrote: {utterance.text!r}")
    save_wav(out, utterance.waveform, utterance.sample_rate)
    if as_json:
        print(json.dumps({"text": utterance.text, "audio": str(out), "seconds": utterance.seconds}))
    else:
        print(utterance.text)
        print(f"{out} ({utterance.seconds:.2f} s)", file=sys.stderr)


def main() -> None:
    """Run the command line; user errors are one line on stderr."""
    # The model is small talk to these libraries: no progress bars or advice between ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
