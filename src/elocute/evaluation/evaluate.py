"""A model on rows with right answers, into a folder: eval.json, every answer, and the sound of the first ones."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.files import write_atomically
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.evaluation.listening import write_answers
from elocute.evaluation.spoken_qa import answer_all, by_column, judge_all, right_answers, summarise
from elocute.evaluation.statistics import Estimate
from elocute.models import InterleavedLM, load_model
from elocute.rewards.asr import PocketSphinxEar
from elocute.rollout import Sampling

SOUNDS = 24
"""Answers whose WAVs are kept."""


def read_eval_rows(path: Path, limit: int | None) -> list[Example]:
    """The (first `limit`) rows of a file, checked for their right answers."""
    rows = read_rows(path)[:limit]
    for row in rows:
        right_answers(row)
    return rows


def read_eval(path: Path) -> dict:
    """What eval.json holds so far; empty when there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_eval(path: Path, values: dict) -> None:
    """Write eval.json, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def evaluate(
    lm: InterleavedLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    name: str,
    *,
    earlier: dict,
    samples: Path,
    vocabulary: Path | None,
    sampling: Sampling,
    seed: int,
    batch: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Answer, hear, judge. Returns eval.json's content: `earlier` and, under `name`, the metrics.

    `samples/name.jsonl` gets every answer; `vocabulary` is a file with the words that the ear may hear.
    """
    ear = PocketSphinxEar(words=vocabulary.read_text().splitlines() if vocabulary else None)
    utterances = answer_all(lm, audio, examples, sampling, seed=seed, batch=batch, progress=progress)
    rows = judge_all(examples, utterances, ear.transcribe)
    write_answers(samples, name, rows, audio, sounds=SOUNDS)
    values = earlier | {
        "normalisation": "elocute.data.normalise: case, punctuation, numbers as words",
        "ear": f"PocketSphinx, bundled en-us model, {'closed' if vocabulary else 'open'} vocabulary",
        "seed": seed,
        "temperature": sampling.temperature,
        name: _to_json(summarise(rows)),
    }
    for column in ("difficulty", "category"):
        if all(column in example.columns for example in examples):
            parts = by_column(rows, column)
            found = {part: _to_json(of) for part, of in parts.items()}
            values[f"by_{column}"] = values.get(f"by_{column}", {}) | {name: found}
    return values


def _to_json(metrics: dict[str, Estimate]) -> dict:
    return {name: estimate.to_json() for name, estimate in metrics.items()}


def evaluate_folder(
    target: Path,
    data: Path,
    out: Path,
    *,
    rows: int | None,
    vocabulary: Path | None,
    sampling: Sampling,
    seed: int,
    progress: Callable[[str, int, int, dict], None],
) -> dict:
    """`elocute eval`: a model folder or a run into `out`, the metrics under "result"; returns eval.json."""
    model = target / "model" if (target / "recipe.yaml").exists() else target
    if vocabulary is not None and not vocabulary.is_file():
        raise InputError(f"--vocabulary: no such file: {vocabulary}")
    if (out / "recipe.yaml").exists():
        raise InputError(f"-o {out}: expected a folder of its own, not a run's: its eval.json is the run's")
    examples = read_eval_rows(data, rows)
    lm = load_model(model)
    values = evaluate(
        lm,
        EncodedAudio(lm.codec),
        examples,
        "result",
        earlier={},
        samples=out,
        vocabulary=vocabulary,
        sampling=sampling,
        seed=seed,
        progress=lambda done: progress("evaluate", done, len(examples), {}),
    )
    values |= {"model": str(model), "model_digest": digest_folder(model), "data_digest": digest_file(data)}
    write_eval(out / "eval.json", values)
    return values
