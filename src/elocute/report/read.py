"""A run folder, read and checked. What is there must be well-formed; what a run writes late may be missing."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elocute.errors import InputError


@dataclass(frozen=True)
class Metrics:
    """`steps` [T], strictly rising, and columns [T] of finite numbers, None where nothing was recorded.

    not_finite: the columns that held NaN or infinity, with the first such step (those values are None in `columns`).
    """

    steps: list[int]
    columns: dict[str, list[float | None]]
    not_finite: dict[str, int]

    def has(self, name: str) -> bool:
        return any(value is not None for value in self.columns.get(name, ()))


@dataclass(frozen=True)
class Run:
    """`evaluation`, `environment`, `before`, `after`, `combinations` (before, after) and `rollouts` (by step) are empty
    while not written."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: Metrics
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    combinations: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    rollouts: dict[int, list[dict[str, Any]]]


def read_run(folder: Path) -> Run:
    """Raises InputError, naming file and line, when the folder is no run or something in it is malformed."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    recipe_text = _text(folder / "recipe.yaml")
    return Run(
        folder=folder,
        recipe=_recipe(folder / "recipe.yaml", recipe_text),
        recipe_text=recipe_text,
        environment=_optional_object(folder / "environment.json"),
        evaluation=_optional_object(folder / "eval.json"),
        metrics=read_metrics(folder / "metrics.jsonl"),
        before=_answers(folder / "samples" / "before.jsonl"),
        after=_answers(folder / "samples" / "after.jsonl"),
        combinations=(
            _answers(folder / "samples" / "combinations-before.jsonl"),
            _answers(folder / "samples" / "combinations-after.jsonl"),
        ),
        rollouts=_rollouts(folder / "samples"),
    )


def read_metrics(path: Path) -> Metrics:
    """`metrics.jsonl`: one flat object a step. InputError on a broken line, a non-number or a step out of order."""
    steps: list[int] = []
    columns: dict[str, list[float | None]] = {}
    not_finite: dict[str, int] = {}
    for where, row in _json_lines(path):
        step = row.pop("step", None)
        if type(step) is not int or (steps and step <= steps[-1]):
            expected = f"a whole number above {steps[-1]}" if steps else "a whole number"
            raise InputError(f"{where}: step: expected {expected}, got {step!r}")
        for name, value in row.items():
            if value is not None and type(value) not in (int, float):
                raise InputError(f"{where}: {name}: expected a number or null, got {value!r}")
            if value is not None and not math.isfinite(value):
                not_finite.setdefault(name, step)
                value = None
            columns.setdefault(name, [None] * len(steps)).append(value)
        steps.append(step)
        for column in columns.values():
            column.extend([None] * (len(steps) - len(column)))
    if not steps:
        raise InputError(f"{path}: no metrics yet, expected one JSON object a step")
    return Metrics(steps, columns, not_finite)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _recipe(path: Path, text: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1 if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 1
        raise InputError(f"{path}, line {line}: not valid YAML") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected a mapping of keys")
    return recipe


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _optional_object(path: Path) -> dict[str, Any]:
    return _object(_text(path), str(path)) if path.exists() else {}


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) for every line that is not blank."""
    # Not str.splitlines: it also splits at U+2028, which JSON strings may hold.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _object(line, f"{path}, line {number}")


def _samples(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for where, row in _json_lines(path):
        if not isinstance(row.get("id"), str | int):
            raise InputError(f"{where}: id: expected a string, got {row.get('id')!r}")
        for field in ("audio", "question_audio"):
            if not isinstance(row.get(field), str | None):
                raise InputError(f"{where}: {field}: expected a path or null, got {row[field]!r}")
        for field in ("rewards", "labels", "labels_heard", "unjudged"):
            if not isinstance(row.get(field, {}), dict):
                raise InputError(f"{where}: {field}: expected an object of name and value, got {row[field]!r}")
        if "labels_heard" in row and not all(type(row.get(field)) is int for field in ("errors", "words")):
            raise InputError(f"{where}: errors, words: expected whole numbers beside labels_heard")
        rows.append(row)
    return rows


def _answers(path: Path) -> list[dict[str, Any]]:
    """Sample rows that each answer another question, so that before and after can be paired by id."""
    rows = _samples(path)
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise InputError(f"{path}: id: {row['id']!r} stands on more than one line")
        seen.add(row["id"])
    return rows


def _rollouts(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of every `step-N.jsonl`, in order of N."""
    found = {
        int(match[1]): path
        for path in folder.glob("step-*.jsonl")
        if (match := re.fullmatch(r"step-(\d+)\.jsonl", path.name))
    }
    return {step: _samples(found[step]) for step in sorted(found)}
