"""Candidates: a row and its sampled answers, one JSON line a prompt.

    {… the row's fields, "units_codec": "9f…",
     "output": {"0": {"output-text": "four", "output-audio": "audio/q1-0.wav", "output-units": [1030, 7, …],
                      "output-tokens": [52, 1310, …], "seed": 7, "broken": null, "seconds": 0.8}, "1": …}}

Units of several codebooks stand in frames, [[17, 3, …], …]; tokens are all that was sampled, in the model's own ids.
An answer that was stopped at the longest length allowed and is whole all the same has `"cut": true` beside `broken`.

`score` adds to each candidate what the recipe's rewards say:

    {…, "score": 0.9, "outcome": {"kind": "scored"}, "scores": {"right": 1.0, "clear": null},
     "outcomes": {"right": {"kind": "scored"}, "clear": {"kind": "unavailable", "reason": "HTTP 500"}},
     "gemini_score": {"semantic_score": 4, "paralinguistic_score": 3}, "measures": {"auto_bleu": 0.02}}

A relative path leads from the folder of the file that the line stands in.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from elocute.data.audio import load_audio
from elocute.data.types import Example, Utterance
from elocute.data.units import misfit
from elocute.errors import InputError
from elocute.rewards.outcome import Invalid, Outcome, Scored, Unavailable

Fields = dict[str, Any]
Row = tuple[Fields, Example]
_STORE = ".safetensors#"
_LONGEST_NAME = 200  # of at most 255 bytes that file systems allow


def audio_name(example_id: str, number: int) -> str:
    """The WAV of candidate `number`, for any id that a row may have; different ids have different names."""
    name = quote(example_id, safe="")
    if len(name) > _LONGEST_NAME:
        name = hashlib.sha256(example_id.encode()).hexdigest()
    return f"audio/{name}-{number}.wav"


def moved(fields: Mapping[str, Any], source: Path, target: Path) -> Fields:
    """A row that stood in folder `source`, for a file in folder `target`: its relative paths lead to the same audio."""
    if os.path.realpath(source) == os.path.realpath(target):
        return dict(fields)
    row = dict(fields)
    if row.get("audios"):
        row["audios"] = [_moved_path(reference, source, target) for reference in row["audios"]]
    for name in ("sft_target_audio", "rejected_audio"):
        if row.get(name):
            row[name] = _moved_path(row[name], source, target)
    if "output" in row:
        row["output"] = {key: dict(candidate) for key, candidate in row["output"].items()}
        for candidate in row["output"].values():
            if candidate.get("output-audio"):
                candidate["output-audio"] = _moved_path(candidate["output-audio"], source, target)
    return row


def _moved_path(reference: str, source: Path, target: Path) -> str:
    if os.path.isabs(reference):
        return reference
    name, store, key = reference.partition(_STORE)
    return os.path.relpath(os.path.join(os.path.realpath(source), name), os.path.realpath(target)) + store + key


def portions(rows: Iterable[Row], cost: Callable[[Row], int], budget: int, most: int = 1024) -> Iterator[list[Row]]:
    """Rows in order, as many together as cost `budget` in all, `most` at most; a row that costs more stands alone."""
    portion: list[Row] = []
    spent = 0
    for row in rows:
        needed = cost(row)
        if portion and (spent + needed > budget or len(portion) == most):
            yield portion
            portion, spent = [], 0
        portion.append(row)
        spent += needed
    if portion:
        yield portion


def check_candidates(row: Row) -> None:
    """InputError for a row whose `output` does not hold candidates as `sample`, or WavAlign's data, has them."""
    fields, example = row
    output = fields.get("output")
    if not isinstance(output, dict) or not output:
        raise InputError(f"{example.where}: output: expected an object of candidates, as elocute sample writes it")
    folder = Path(example.file).parent
    for key, candidate in output.items():
        if problem := _problem(candidate, folder):
            raise InputError(f"{example.where}: output.{key}{problem}")


def _problem(candidate: Any, folder: Path) -> str | None:
    if not isinstance(candidate, dict):
        return ": expected an object with output-text and output-audio"
    for name in ("output-text", "output-audio", "broken"):
        if not isinstance(candidate.get(name), str | None):
            return f".{name}: expected a string or null"
    if not isinstance(candidate.get("cut"), bool | None):
        return ".cut: expected true or false"
    for name in ("output-units", "output-tokens"):
        values = candidate.get(name)
        if values is not None and not (isinstance(values, list) and misfit(values) is None):
            return f".{name}: expected a list of integers, at least 0, or of frames of them, all as wide"
    if not any(candidate.get(name) for name in ("output-text", "output-audio", "broken")):
        return ": expected output-text or output-audio, or why it is `broken`"
    path = candidate.get("output-audio")
    if path and not os.path.isfile(folder / path):
        return f".output-audio: audio file not found: {folder / path}"
    return None


def utterance_of(example: Example, key: str, candidate: Mapping[str, Any]) -> Utterance:
    """A candidate as rewards judge it: the text as it was written, the sound as the WAV has it."""
    text, path = candidate.get("output-text") or "", candidate.get("output-audio")
    waveform, rate = np.zeros(0, dtype=np.float32), 16_000
    if path:
        try:
            waveform, rate = load_audio(Path(example.file).parent / path, max_seconds=math.inf, silent=True)
        except InputError as error:
            raise InputError(f"{example.where}: output.{key}.output-audio: {error}") from None
    return Utterance(text, waveform, rate, candidate.get("broken") or None)


def outcome_to_json(outcome: Outcome) -> Fields:
    """Without its value, which stands under `scores`."""
    if isinstance(outcome, Scored):
        return {"kind": "scored"} | ({"detail": dict(outcome.detail)} if outcome.detail else {})
    return {"kind": type(outcome).__name__.lower(), "reason": outcome.reason}


def outcome_from_json(value: float | None, record: Mapping[str, Any]) -> Outcome:
    """What `outcome_to_json` wrote."""
    if record["kind"] == "scored":
        return Scored(value, record.get("detail", {}))
    return {"invalid": Invalid, "unavailable": Unavailable}[record["kind"]](record["reason"])
