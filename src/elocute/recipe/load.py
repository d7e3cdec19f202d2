"""Reading a recipe: YAML, `key=value` overrides, one line for each thing that is wrong."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from pydantic import ValidationError

from elocute.errors import InputError
from elocute.recipe.schema import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `optim.lr=1e-4`. InputError has one line for each mistake."""
    path = Path(path)
    values = _read_yaml(path)
    for override in overrides:
        _apply(values, override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_lines(path, error))) from error
    _check_files(path, recipe)
    _check_trackers(path, recipe)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: expected key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    here = values
    for parent in parents:
        if here.get(parent) is None:
            here[parent] = {}
        here = here[parent]
        if not isinstance(here, dict):
            raise InputError(f"{override!r}: {parent} is no section of the recipe")
    try:
        here[last] = _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: the value is not YAML") from error


def _number(value):
    """YAML reads 1e-4 as text; users mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _lines(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        elif problem["type"] != "value_error" and not isinstance(problem["input"], dict):
            message += f", got {problem['input']!r}"
        lines.append(f"{path}: {place + ': ' if place else ''}{message[0].lower() + message[1:]}")
    return lines


def _check_files(path: Path, recipe: Recipe) -> None:
    for key, file, kind in [
        ("model", recipe.model, "folder"),
        ("data.train", recipe.data.train, "file"),
        ("data.eval", recipe.data.eval, "file"),
        ("evaluation.vocabulary", recipe.evaluation.vocabulary, "file"),
    ]:
        if file is not None and not (file.is_dir() if kind == "folder" else file.is_file()):
            raise InputError(f"{path}: {key}: no such {kind}: {file}")


def _check_trackers(path: Path, recipe: Recipe) -> None:
    for name in recipe.trackers:
        try:  # accelerate would leave a tracker out that is not installed, and say nothing
            version(name)
        except PackageNotFoundError:
            raise InputError(f"{path}: trackers: {name} is not installed; pip install 'elocute[trackers]'") from None
