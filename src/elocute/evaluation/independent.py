"""Who evaluates a run has not decided it: a policy learns what its own judge and its own ear let pass."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elocute.errors import InputError
from elocute.prosody.schema import load_schema
from elocute.recipe import Recipe
from elocute.recipe.load import read_yaml
from elocute.recipe.rewards import deciding, same_judge
from elocute.rewards.chat import credentials
from elocute.rewards.prosody import measures_of

Evaluators = Mapping[str, Mapping[str, Any]]
"""Option → who it names, as a recipe's entry."""


def check_independent(model: Path, evaluators: Evaluators, *, allowed: bool) -> None:
    """InputError for an evaluator that decided the run which made `model`, unless that is allowed."""
    for option, name in ({} if allowed else trained_against(model, evaluators) or {}).items():
        raise InputError(
            f"{_recipe_of(model)}: {name!r} decided the run and {option} is the same; choose another, or say "
            "--allow-trained"
        )


def trained_against(model: Path, evaluators: Evaluators) -> dict[str, str] | None:
    """Evaluators that decided the run, and what they are called there; None when `model` is no run's, RUN/model.

    The run's recipe.yaml says nothing of a judge's model that came from the environment: it is taken for today's.
    """
    recipe = _recipe_of(model)
    if recipe is None:
        return None
    said = read_yaml(recipe)
    return _shared(deciding(said.get("rewards") or [], said.get("listen")), evaluators)


def check_label_listeners(recipe: Recipe) -> None:
    """InputError for one of a recipe's `evaluation.labels` that decides the run itself."""
    said = recipe.model_dump(mode="json", include={"rewards", "listen", "evaluation"})
    evaluators = {f"evaluation.labels.{i}": entry for i, entry in enumerate(said["evaluation"]["labels"])}
    for option, name in _shared(deciding(said["rewards"], said["listen"]), evaluators).items():
        raise InputError(f"{option}: {name!r} is the same and decides the run; choose another")


def _shared(decided: Mapping[str, Mapping[str, Any]], evaluators: Evaluators) -> dict[str, str]:
    """Evaluators that are among those that decided, and what they are called there."""
    return {
        option: name
        for option, evaluator in evaluators.items()
        for name, entry in decided.items()
        if _same(_asked(evaluator), _asked(entry))
    }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """`same_judge`; two that measure are the same where they measure the same for the same dimension."""
    if one["kind"] == other["kind"] == "prosody":
        return bool(_measured(one) & _measured(other))
    return same_judge(one, other)


def _measured(entry: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(dimension, measure) of a `prosody` entry; phones and syllables per second are one measure, speed."""
    by_dimension = measures_of(load_schema(entry.get("labels")), entry.get("measures") or {}, entry.get("dimensions"))
    speed = ("phones_per_second", "syllables_per_second")
    return {(name, "speed" if one in speed else one) for name, measures in by_dimension.items() for one in measures}


def _recipe_of(model: Path) -> Path | None:
    """The recipe of the run that the folder lies in, also where it is reached by a link."""
    homes = (Path(os.path.abspath(model)).parent, model.resolve().parent)
    return next((home / "recipe.yaml" for home in homes if (home / "recipe.yaml").is_file()), None)


def _asked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A judge or a listener at an endpoint with the model that is asked."""
    who = entry.get("listener") or entry
    if who["kind"] not in ("judge", "endpoint") or who.get("model"):
        return entry
    try:
        return {**who, "model": credentials().model}
    except InputError:  # there is no endpoint today
        return entry
