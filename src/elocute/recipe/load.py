"""Reading a recipe: YAML, `key=value` overrides, one line for each thing that is wrong."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from elocute.errors import InputError
from elocute.recipe.judges import Judges
from elocute.recipe.rewards import RewardSpec
from elocute.recipe.schema import Recipe

T = TypeVar("T", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `optim.lr=1e-4`. InputError has one line for each mistake."""
    return _recipe(Path(path), _overridden(Path(path), overrides))


def load_judges(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | Judges:
    """A recipe, or a file of `rewards` without a model: one that says nothing of `model`, `steps` and `optim`."""
    path, values = Path(path), _overridden(Path(path), overrides)
    return _recipe(path, values) if values.keys() & {"model", "steps", "optim"} else _validated(Judges, path, values)


def load_rewards(path: str | Path) -> list[RewardSpec]:
    """The `rewards` of a YAML file: a recipe, of which nothing else is read, or a file with nothing else."""
    path = Path(path)
    rewards = _validated(_Rewards, path, read_yaml(path)).rewards
    if not rewards:
        raise InputError(f"{path}: rewards: expected at least one")
    return rewards


class _Rewards(BaseModel):
    rewards: list[RewardSpec]


def _overridden(path: Path, overrides: Sequence[str]) -> dict:
    values = read_yaml(path)
    for override in overrides:
        _apply(values, override)
    return values


def _recipe(path: Path, values: dict) -> Recipe:
    recipe = _validated(Recipe, path, values)
    _check_files(path, recipe)
    _check_trackers(path, recipe)
    return recipe


def _validated(schema: type[T], path: Path, values: dict) -> T:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_lines(path, values, error))) from error


def dump_recipe(recipe: Recipe | Judges) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path, what: str = "the recipe") -> dict:
    """The keys and values of a YAML file. InputError, naming file and line, when it holds nothing of the kind."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a date such as 2026-13-45
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML, in which a key that comes twice is a mistake, not the last one's turn."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} comes twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: expected key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    here = values
    try:
        for parent in parents:
            here = _inside(here, parent)
        # Lists, sections, quotes and null are YAML; what a plain word is, the schema knows: 1e-4 or the path 2026.
        _set(here, last, yaml.safe_load(text) if text in ("", "~", "null") or text[0] in "[{'\"" else text)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: the value is not YAML") from error
    except _NoSuchPlace as error:
        raise InputError(f"{override!r}: {error}") from error


class _NoSuchPlace(Exception):
    """An override names no place of the recipe."""


def _inside(here: dict | list, part: str) -> dict | list:
    """The section or list called `part`, made when it is missing; rewards.0 is the first reward."""
    if isinstance(here, dict) and here.get(part) is None:
        here[part] = {}
    found = here[_place(here, part)]
    if not isinstance(found, dict | list):
        raise _NoSuchPlace(f"{part} is no section of the recipe")
    return found


def _set(here: dict | list, part: str, value) -> None:
    here[_place(here, part)] = value


def _place(here: dict | list, part: str) -> str | int:
    if isinstance(here, dict):
        return part
    if part.isdecimal() and int(part) < len(here):
        return int(part)
    raise _NoSuchPlace(f"{part} is no place in a list of {len(here)}")


def _lines(path: Path, values: dict, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        place = ".".join(_keys(values, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        elif problem["type"] == "union_tag_invalid":
            message = f"kind: expected {problem['ctx']['expected_tags']}, got {problem['ctx']['tag']!r}"
        elif problem["type"] == "union_tag_not_found":
            message = "kind: missing"
        elif problem["type"] != "value_error" and not isinstance(problem["input"], dict):
            message += f", got {problem['input']!r}"
        lines.append(f"{path}: {place + ': ' if place else ''}{message[0].lower() + message[1:]}")
    return lines


def _keys(values, location: Sequence[str | int]) -> list[str]:
    """The keys on the way to a mistake, without the `kind` that pydantic puts between them."""
    keys, here, chosen = [], values, False
    for part in location:
        if not chosen and isinstance(here, dict) and here.get("kind", "hybrid") == part:
            chosen = True  # the next one is a key, even of the same name (function)
            continue
        keys.append(str(part))
        try:
            here, chosen = here[part], False
        except (LookupError, TypeError):  # what is missing has no value
            here = None
    return keys


def _check_files(path: Path, recipe: Recipe) -> None:
    for key, file, kind in [
        ("model", recipe.model, "folder"),
        ("data.train", recipe.data.train, "file"),
        ("data.eval", recipe.data.eval, "file"),
        ("data.dev", recipe.data.dev, "file"),
    ]:
        if file is not None and not (file.is_dir() if kind == "folder" else file.is_file()):
            raise InputError(f"{path}: {key}: no such {kind}: {file}")


def _check_trackers(path: Path, recipe: Recipe) -> None:
    for name in recipe.trackers:
        try:  # accelerate would leave a tracker out that is not installed, and say nothing
            version(name)
        except PackageNotFoundError:
            raise InputError(f"{path}: trackers: {name} is not installed; pip install -e '.[trackers]'") from None
