"""`elocute eval`: a model folder or a run, on rows with right answers."""

import json
from collections.abc import Callable
from pathlib import Path

from elocute.data.cache import EncodedAudio
from elocute.data.digest import digest_file, digest_folder
from elocute.data.files import write_atomically
from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.evaluation.listening import write_answers
from elocute.evaluation.spoken_qa import answer_all, judge_all, right_answers, summarise
from elocute.models import load_model
from elocute.rewards.asr import PocketSphinxEar
from elocute.rollout import Sampling


def evaluate_folder(
    target: Path,
    data: Path,
    out: Path,
    *,
    rows: int | None,
    vocabulary: Path | None,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str, int, int, dict], None],
) -> dict:
    """Write `out/eval.json` = {"result": metrics, …}, the answers and the first WAVs; returns eval.json."""
    model = target / "model" if (target / "recipe.yaml").exists() else target
    if vocabulary is not None and not vocabulary.is_file():
        raise InputError(f"--vocabulary: no such file: {vocabulary}")
    examples = read_rows(data)[:rows]
    for example in examples:
        right_answers(example)
    lm = load_model(model)
    audio = EncodedAudio(lm.codec)
    ear = PocketSphinxEar(words=vocabulary.read_text().splitlines() if vocabulary else None)
    utterances = answer_all(
        lm,
        audio,
        examples,
        Sampling(max_new_tokens, temperature),
        seed=seed,
        batch=64,
        progress=lambda done: progress("evaluate", done, len(examples), {}),
    )
    judged = judge_all(examples, utterances, ear.transcribe)
    write_answers(out, "answers", judged, audio, sounds=24)
    values = {
        "result": {name: estimate.to_json() for name, estimate in summarise(judged).items()},
        "normalisation": "elocute.data.normalise: case, punctuation, numbers as words",
        "seed": seed,
        "temperature": temperature,
        "model": str(model),
        "model_digest": digest_folder(model),
        "data_digest": digest_file(data),
    }
    write_atomically(out / "eval.json", (json.dumps(values, indent=2) + "\n").encode())
    return values
