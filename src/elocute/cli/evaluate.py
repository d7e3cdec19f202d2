"""`elocute eval`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elocute.cli.options import AsJson, Temperature
from elocute.errors import InputError

PACKAGED_EAR = "whisper-tiny.en"


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RECIPE_OR_RUN_OR_MODEL", help="A model folder, a run, a recipe.")],
    data: Annotated[
        Path, typer.Option(help="Rows with an `answer` column, or with texts to read (JSONL); or what the suite reads.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for eval.json, answers and WAVs.")],
    suite: Annotated[
        str | None,
        typer.Option(
            help="spoken-qa, reading (of TTS models), swuggy, sblimp, storycloze, salmon or continuation; "
            "default: spoken-qa or reading, by the model."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first n rows or prompts.")] = None,
    ear: Annotated[
        str | None, typer.Option(help="A Whisper or CTC folder, or whisper-tiny.en; default: PocketSphinx.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="All that PocketSphinx may hear (closed domains).")] = None,
    allow_trained: Annotated[
        bool,
        typer.Option("--allow-trained", help="Ear and judges may be those that decided the run; eval.json says so."),
    ] = False,
    normalisation: Annotated[
        str | None, typer.Option(help="Likelihood suites: mean (log-prob a token, the default) or sum.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Continuation: prompts are the first n seconds; default 3.")
    ] = None,
    judge: Annotated[Path | None, typer.Option(help="Continuation: a YAML file whose `rewards` judge.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Reading: a YAML file whose `rewards` hear labels.")] = None,
    text_lm: Annotated[
        str | None, typer.Option(help="Continuation: GenPPL by this causal LM's folder, or by smollm2.")
    ] = None,
    temperature: Temperature = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample of the k likeliest tokens; default: of all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=1e-6, max=1, help="Of the likeliest that make up p; default: of all.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; default: 256; reading: as elocute speak.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampling; default: 0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check model folder, data and options.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: on held-out spoken questions, a TTS model on texts it reads, a unit LM by suites of its own.

    Example: `elocute eval runs/quickstart --data starter/data/heldout.jsonl --vocabulary starter/answers.txt -o out`

    Example: `elocute eval runs/rlaif_spa --data test.jsonl --labels listeners.yaml -o out`; see docs/own-tts-model.md

    Example: `elocute eval runs/units --suite sblimp --data zerospeech2021 -o out`; see docs/evaluating-unit-lms.md
    """
    from elocute.evaluation.unit_suites import check_options

    suite = suite or _suite_of(target)
    own = {"--rows": rows, "--ear": ear, "--vocabulary": vocabulary, "--allow-trained": allow_trained or None}
    own |= {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p}
    own |= {"--max-new-tokens": max_new_tokens, "--seed": seed}
    own |= {"--normalisation": normalisation, "--seconds": seconds, "--judge": judge, "--text-lm": text_lm}
    own |= {"--labels": labels}
    check_options(suite, own)
    if suite != "spoken-qa":
        return _run_suite(_suite_job(suite, target, data, out, own), out, dry_run, as_json)
    from elocute.evaluation.evaluate import check_evaluation, evaluate_folder
    from elocute.progress import RunProgress
    from elocute.report.page import results_table

    listener = _ear(ear, vocabulary)
    model, examples = check_evaluation(target, data, out, rows=rows, ear=listener, allow_trained=allow_trained)
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
            sampling=_sampling(own, None),
            seed=seed or 0,
            progress=progress,
        )
    if as_json:
        print(json.dumps(values))
    else:
        Console().print(results_table(values))
        _say_trained_against(values)
        print(f"answers, WAVs and eval.json: {out}")


def _suite_of(target: Path) -> str:
    """What a model is evaluated by where nobody says; what is wrong with its folder is found later."""
    from elocute.evaluation.evaluate import model_of
    from elocute.models import reads_aloud

    try:
        return "reading" if reads_aloud(model_of(target)) else "spoken-qa"
    except InputError:
        return "spoken-qa"


def _suite_job(suite: str, target: Path, data: Path, out: Path, own: dict):
    from elocute.evaluation.read_aloud import reading_job
    from elocute.evaluation.unit_suites import Continuing, Listeners, continuation_job, likelihood_job

    if suite not in ("continuation", "reading"):
        return likelihood_job(target, suite, data, out, own["--normalisation"] or "mean")
    ear = _ear(own["--ear"], own["--vocabulary"])
    if suite == "reading":
        return reading_job(
            target,
            data,
            out,
            rows=own["--rows"],
            ear=ear,
            labels=own["--labels"],
            allow_trained=bool(own["--allow-trained"]),
            temperature=own["--temperature"],
            max_new_tokens=own["--max-new-tokens"],
            seed=own["--seed"] or 0,
        )
    listeners = Listeners(ear, own["--judge"], own["--text-lm"], bool(own["--allow-trained"]))
    how = Continuing(_sampling(own, 0.8), own["--seed"] or 0, own["--seconds"] or 3.0, own["--rows"])
    return continuation_job(target, data, out, listeners, how)


def _sampling(own: dict, temperature: float | None):
    from elocute.rollout import Sampling

    whole = own["--top-k"] or 0, own["--top-p"] or 1.0
    return Sampling(own["--max-new-tokens"] or 256, own["--temperature"] or temperature, *whole)


def _run_suite(job, out: Path, dry_run: bool, as_json: bool) -> None:
    from elocute.progress import RunProgress
    from elocute.report.results import results_table
    from elocute.report.suites import suite_table

    if dry_run:
        print(json.dumps(job.about) if as_json else "\n".join(f"{name}: {what}" for name, what in job.about.items()))
        return
    with RunProgress(quiet=as_json) as progress:
        values = job.run(progress)
    if as_json:
        print(json.dumps(values))
    else:
        Console().print((results_table if values["suite"] == "reading" else suite_table)(values))
        _say_trained_against(values)
        print(f"eval.json and all it was measured on: {out}")


def _say_trained_against(values: dict) -> None:
    for option, name in (values.get("trained_against") or {}).items():
        print(f"{option} decided the run (there: {name}): what it finds is what was trained for")


def _ear(name: str | None, vocabulary: Path | None):
    from elocute.recipe.ears import FasterWhisperSpec, PocketSphinxSpec, TransformersEarSpec

    if name is not None and vocabulary is not None:
        raise InputError("--vocabulary: only PocketSphinx takes one; leave out --ear or --vocabulary")
    if vocabulary is not None and not vocabulary.is_file():
        raise InputError(f"--vocabulary: no such file: {vocabulary}")
    if name is None:
        return PocketSphinxSpec(kind="pocketsphinx", vocabulary=vocabulary)
    if name == PACKAGED_EAR:
        return FasterWhisperSpec(kind="faster_whisper")
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"--ear: no such folder: {folder}")
    if (folder / "model.bin").is_file():  # CTranslate2's weights; transformers' are *.safetensors
        return FasterWhisperSpec(kind="faster_whisper", path=folder)
    return TransformersEarSpec(kind="transformers", path=folder)
