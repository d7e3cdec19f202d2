"""The command line: verbs, nothing else. Exit status 0, 1 (failed) or 2 (bad usage or input: one clear line)."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elocute.cli_pairs import SETTINGS, pairs
from elocute.cli_rounds import rounds
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
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; check its files.")]


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run_dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; check its files.")] = False,
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
        raise RunError(f"stopped; everything is saved. Go on with: {_resume_command()}")


def _resume_command() -> str:
    words = [*(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", f"--nproc_per_node={processes}", "-m", "elocute.cli"] if processes else ["elocute"]
    return shlex.join([*launcher, *words])


def _dry_run(recipe, resume: bool, as_json: bool) -> None:
    from elocute.data.rows import read_rows
    from elocute.evaluation.evaluate import read_eval_rows
    from elocute.models import check_model
    from elocute.recipe import dump_recipe
    from elocute.training.run_folder import RunFolder

    RunFolder(recipe.run_dir).check(recipe, resume=resume)
    examples = read_rows(recipe.data.train, recipe.data.prompt_seconds)
    rows = {"data.train": len(examples)}
    if recipe.data.dev:
        rows["data.dev"] = len(read_rows(recipe.data.dev, recipe.data.prompt_seconds))
    if recipe.data.eval:
        limit, ear = recipe.evaluation.rows, recipe.evaluation.ear
        rows["data.eval"] = len(read_eval_rows(recipe.data.eval, limit, ear, recipe.data.prompt_seconds))
    check_model(recipe.model)
    _check_rewards(recipe, examples)
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": rows}))
    else:
        print(dump_recipe(recipe), end="")
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
    target: Annotated[Path, typer.Argument(metavar="RECIPE_OR_RUN_OR_MODEL", help="A model folder, a run, a recipe.")],
    data: Annotated[Path, typer.Option(help="Rows with an `answer` column (JSONL); or what the suite reads.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for eval.json, answers and WAVs.")],
    suite: Annotated[
        str, typer.Option(help="spoken-qa, swuggy, sblimp, storycloze, salmon or continuation.")
    ] = "spoken-qa",
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first n rows or prompts.")] = None,
    ear: Annotated[
        Path | None, typer.Option(help="A Whisper or CTC folder that listens; default: PocketSphinx.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="All that PocketSphinx may hear (closed domains).")] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="Likelihood suites: mean (log-prob a token, the default) or sum.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Continuation: prompts are the first n seconds; default 3.")
    ] = None,
    judge: Annotated[Path | None, typer.Option(help="Continuation: a YAML file whose `rewards` judge.")] = None,
    text_lm: Annotated[
        str | None, typer.Option(help="Continuation: GenPPL by this causal LM's folder, or by smollm2.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=1e-6, help="Default: 0.7; continuation: 0.8.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check model folder, data and options.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: on held-out spoken questions, or a unit LM by likelihood suites and by its continuations.

    Example: `elocute eval runs/quickstart --data starter/data/heldout.jsonl --vocabulary starter/answers.txt -o out`

    Example: `elocute eval runs/units --suite sblimp --data zerospeech2021 -o out`; see docs/evaluating-unit-lms.md
    """
    from elocute.evaluation.unit_suites import check_options

    own = {"--rows": rows, "--ear": ear, "--vocabulary": vocabulary, "--temperature": temperature}
    own |= {"--normalisation": normalisation, "--seconds": seconds, "--judge": judge, "--text-lm": text_lm}
    check_options(suite, own)
    if suite != "spoken-qa":
        job = _suite_job(suite, target, data, out, own, max_new_tokens, seed)
        return _run_suite(job, out, dry_run, as_json)
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
            sampling=Sampling(max_new_tokens, temperature or 0.7),
            seed=seed,
            progress=progress,
        )
    if as_json:
        print(json.dumps(values))
    else:
        Console().print(results_table(values))
        print(f"answers, WAVs and eval.json: {out}")


def _suite_job(suite: str, target: Path, data: Path, out: Path, own: dict, max_new_tokens: int, seed: int):
    from elocute.evaluation.unit_suites import Continuing, Listeners, continuation_job, likelihood_job
    from elocute.rollout import Sampling

    if suite != "continuation":
        return likelihood_job(target, suite, data, out, own["--normalisation"] or "mean")
    listeners = Listeners(_ear(own["--ear"], own["--vocabulary"]), own["--judge"], own["--text-lm"])
    sampling = Sampling(max_new_tokens, own["--temperature"] or 0.8)
    return continuation_job(
        target, data, out, listeners, Continuing(sampling, seed, own["--seconds"] or 3.0, own["--rows"])
    )


def _run_suite(job, out: Path, dry_run: bool, as_json: bool) -> None:
    from elocute.progress import RunProgress
    from elocute.report.suites import suite_table

    if dry_run:
        print(json.dumps(job.about) if as_json else "\n".join(f"{name}: {what}" for name, what in job.about.items()))
        return
    with RunProgress(quiet=as_json) as progress:
        values = job.run(progress)
    if as_json:
        print(json.dumps(values))
    else:
        Console().print(suite_table(values))
        print(f"eval.json and all it was measured on: {out}")


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
def sample(
    recipe: RecipeFile,
    data: Annotated[Path, typer.Option(help="Rows whose prompts are answered (JSONL).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for candidates.jsonl and the WAVs.")],
    overrides: Overrides = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Answers a prompt; default: rollout.group_size.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N equal shares of the rows.")] = "1/1",
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
    job = CandidateSampler(checked, data, out, n=n, shard=shard)
    if dry_run:
        return _checked(checked, data, job.check(resume=resume), as_json)
    done = _to_the_end(lambda progress: job.run(resume=resume, progress=progress), as_json)
    if done:
        print("{candidates}: {prompts} prompts, {answers} answers, {broken} broken".format(**done))


@app.command()
def score(
    recipe: RecipeFile,
    candidates: Annotated[Path, typer.Option(help="What `elocute sample` wrote, or data of its form (JSONL).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The same lines with scores (JSONL).")],
    overrides: Overrides = None,
    resume: Resume = False,
    retry: Annotated[
        bool, typer.Option("--retry-unavailable", help="Go on, then ask again for what was unavailable.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Judge candidates by the recipe's rewards.

    Example: `elocute score recipes/starter/wavalign.yaml --candidates candidates/candidates.jsonl -o scored.jsonl`
    """
    from elocute.pipelines.score import CandidateScorer
    from elocute.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    with CandidateScorer(checked, candidates, out) as job:
        if dry_run:
            return _checked(checked, candidates, job.check(resume=resume or retry), as_json)
        done = _to_the_end(lambda progress: job.run(resume=resume, retry=retry, progress=progress), as_json)
    if done:
        outcomes = ", ".join(f"{count} {kind}" for kind, count in done["outcomes"].items())
        print(f"{done['scored']}: {done['prompts']} prompts, {done['answers']} answers: {outcomes}")
        for name, found in done["values"].items():
            print(f"  {name}: {found['mean']:.3f} ± {found['std']:.3f} ({found['n']})")


def _checked(recipe, file: Path, count: int, as_json: bool) -> None:
    from elocute.recipe import dump_recipe

    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "prompts": count}))
    else:
        print(dump_recipe(recipe) + f"# checked: {count} prompts of {file}")


def _to_the_end(work, as_json: bool) -> dict | None:
    """The work's summary, or None when it is printed already."""
    from elocute.progress import RunProgress

    try:
        with RunProgress(quiet=as_json) as progress:
            done = work(progress)
    except KeyboardInterrupt:
        raise RunError(f"stopped; what is done is kept. Go on with: {_resume_command()}") from None
    return print(json.dumps(done)) if as_json else done


app.command(context_settings=SETTINGS)(pairs)
app.command()(rounds)


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

    A textless model continues the recording instead.

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
        if utterance.text:  # a textless model writes none
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
