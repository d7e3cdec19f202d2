"""A model on rows with right answers, into a folder: eval.json, every answer, and the sound of the first ones."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.files import write_atomically
from elocute.data.rows import check_rows, read_rows
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.evaluation.independent import check_independent, trained_against
from elocute.evaluation.listening import write_answers
from elocute.evaluation.spoken_qa import answer_all, by_column, judge_all, summarise
from elocute.evaluation.statistics import Estimate
from elocute.models import SpeechLM, check_answers_questions, check_model, load_speaker
from elocute.progress import Progress
from elocute.recipe import load_recipe
from elocute.recipe.ears import EarSpec, FasterWhisperSpec, PocketSphinxSpec
from elocute.rewards.build import build_ear
from elocute.rewards.identity import digests
from elocute.rewards.rule import right_answers
from elocute.rollout import Sampling

PACKAGES = ("elocute", "torch", "transformers", "pocketsphinx", "jiwer")
SOUNDS = 24
"""Answers whose WAVs are kept."""


def read_eval_rows(path: Path, limit: int | None, ear: EarSpec, prompt_seconds: float | None = None) -> list[Example]:
    """The (first `limit`) rows of a file, checked for their right answers; the ear is known to work."""
    check_ear(ear)
    rows = read_rows(path, prompt_seconds)[:limit]
    check_rows(rows, lambda row: right_answers(row, "answer"))
    return rows


def check_ear(ear: EarSpec) -> None:
    """InputError for an ear that cannot be opened: no such folder or package, a vocabulary that cannot be heard."""
    build_ear(ear).close()


def read_eval(path: Path) -> dict:
    """What eval.json holds so far; empty when there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_eval(path: Path, values: dict) -> None:
    """Write eval.json, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def evaluate(
    lm: SpeechLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    name: str,
    *,
    earlier: dict,
    model: Path,
    data: Path,
    samples: Path,
    ear: EarSpec,
    sampling: Sampling,
    seed: int,
    batch: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Answer, hear, judge. Returns eval.json's content: `earlier` and, under `name`, the metrics.

    model, data: where `lm` and `examples` came from, for their digests. `samples/name.jsonl` gets every answer.
    """
    if sampling.temperature is None:  # written down as what it was
        sampling = replace(sampling, temperature=lm.temperature)
    with closing(build_ear(ear)) as listener:  # opened first: it is known to work before the long part
        utterances = answer_all(lm, audio, examples, sampling, seed=seed, batch=batch, progress=progress)
        rows = judge_all(examples, utterances, listener.transcribe)
    write_answers(samples, name, rows, audio, sounds=SOUNDS)
    inputs = {"data_digest": digest_rows(data, examples)}
    values = record(earlier, name, summarise(rows), model=model, ear=ear, seed=seed) | asdict(sampling) | inputs
    for column in ("difficulty", "category"):
        if all(column in example.columns for example in examples):
            parts = by_column(rows, column)
            found = {part: to_json(of) for part, of in parts.items()}
            values[f"by_{column}"] = values.get(f"by_{column}", {}) | {name: found}
    return values


def record(earlier: dict, name: str, metrics: dict[str, Estimate], *, model: Path, ear: EarSpec, seed: int) -> dict:
    """eval.json's content: `earlier`, under `name` the metrics, and what every evaluation says of how it was done."""
    return earlier | {
        "normalisation": "elocute.data.normalise: case, punctuation, numbers as words",
        "ear": describe_ear(ear),
        "ear_digests": digests(ear),
        "seed": seed,
        "versions": earlier.get("versions", {}) | {name: versions(ear)},
        "model_digest": earlier.get("model_digest", {}) | {name: digest_folder(model)},
        name: to_json(metrics),
    }


def digest_rows(path: Path, examples: Sequence[Example]) -> str:
    """Over the contents of a file of rows and of the recordings that `examples`, its rows, are asked with."""
    recordings = dict.fromkeys(ref.path for example in examples for ref in example.audios)
    return hashlib.sha256("\n".join(map(digest_file, (path, *recordings))).encode()).hexdigest()


def versions(ear: EarSpec | None = None) -> dict[str, str]:
    """Of the packages that measure, and of those that only this ear needs."""
    listening = ("faster-whisper", "ctranslate2") if isinstance(ear, FasterWhisperSpec) else ()
    return {package: version(package) for package in (*PACKAGES, *listening)}


def describe_ear(ear: EarSpec) -> str:
    """Who listened, for people."""
    if isinstance(ear, PocketSphinxSpec):
        return f"PocketSphinx, bundled en-us model, {'closed' if ear.vocabulary else 'open'} vocabulary"
    if isinstance(ear, FasterWhisperSpec):
        return f"faster-whisper: {ear.path or 'tiny.en'}"
    return f"transformers: {ear.path}"


def ear_option(ear: EarSpec) -> dict[str, dict]:
    """The ear among the evaluators of `check_independent`."""
    return {"--ear": ear.model_dump(mode="json")}


def to_json(metrics: dict[str, Estimate]) -> dict:
    """Metrics as eval.json has them."""
    return {name: estimate.to_json() for name, estimate in metrics.items()}


def check_evaluation(
    target: Path, data: Path, out: Path, *, rows: int | None, ear: EarSpec, allow_trained: bool = False
) -> tuple[Path, list[Example]]:
    """What `elocute eval` needs, before a model is loaded: (model folder of a model or run, rows).

    allow_trained: `ear` may have decided the run.
    """
    model = check_target(target, out)
    check_independent(model, ear_option(ear), allowed=allow_trained)
    check_answers_questions(model)
    return model, read_eval_rows(data, rows, ear)


def check_target(target: Path, out: Path) -> Path:
    """The folder of the model to evaluate: a model's own, a run's, or the one that a recipe file starts from.

    InputError unless `out` is free and the model loads but for its weights.
    """
    model = model_of(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"-o {out}: expected a new folder or an empty one")
    check_model(model)
    return model


def model_of(target: Path) -> Path:
    """The model folder that a model, a run or a recipe file stands for."""
    if target.is_file():
        return load_recipe(target).model
    return target / "model" if (target / "recipe.yaml").exists() else target


def evaluate_folder(
    model: Path,
    data: Path,
    examples: Sequence[Example],
    out: Path,
    *,
    ear: EarSpec,
    sampling: Sampling,
    seed: int,
    progress: Progress,
) -> dict:
    """`elocute eval`: a model folder on checked rows into `out`, the metrics under "result"; returns eval.json."""
    lm = load_speaker(model)
    values = evaluate(
        lm,
        EncodedAudio(lm.codec),
        examples,
        "result",
        earlier={},
        model=model,
        data=data,
        samples=out,
        ear=ear,
        sampling=sampling,
        seed=seed,
        progress=lambda done: progress("evaluate", done, len(examples), {}),
    )
    values |= {"trained_against": trained_against(model, ear_option(ear))}
    write_eval(out / "eval.json", values)
    return values
