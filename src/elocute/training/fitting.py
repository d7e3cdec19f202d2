"""Whether a run fits into memory, and if not, with which numbers of its recipe it would."""

from collections.abc import Mapping, Sequence
from typing import Any

from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models import sizes_of_model
from elocute.models.sizes import Sizes
from elocute.recipe.schema import Lora, Recipe
from elocute.training.machine import GIB, Machine
from elocute.training.memory import Lengths, Need, lengths_of, reckon, trained_numbers

_HALVED = {
    "update": ["optim.micro_batch"],
    "evaluation": ["evaluation.batch"],
    "rollout": ["rollout.prompts_per_step", "rollout.group_size"],
}
"""What makes a moment's need smaller, in this order."""


def check_memory(recipe: Recipe, examples: Sequence[Example], machine: Machine | None = None) -> Need | None:
    """What a process of the run needs; None where nothing says it. machine: default: this one.

    InputError when that is more than there is, naming what would fit, unless the recipe says `memory_check: false`.
    """
    machine = machine or Machine.here()
    try:
        sizes = sizes_of_model(recipe.model)
    except InputError:  # loading says better what is wrong with the folder
        return None
    lengths = lengths_of(recipe, examples)
    need = reckon(recipe, sizes, lengths, machine)
    if recipe.memory_check and machine.bytes is not None and need.bytes > machine.bytes:
        advice = _advice(recipe, sizes, lengths, machine)
        raise InputError(
            f"{recipe.model}: memory: a process needs {need}, it has {machine}; {advice}; "
            "memory_check=false starts it as it is"
        )
    return need


def _advice(recipe: Recipe, sizes: Sizes, lengths: Lengths, machine: Machine) -> str:
    changes = fitting(recipe, sizes, lengths, machine)
    if changes is None:
        return "no dtype, lora, micro_batch or group_size makes it fit"
    need = reckon(changed(recipe, changes), sizes, lengths, machine)
    words = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
    return f"{words} needs {need.bytes / GIB:.3g} GiB"


def fitting(recipe: Recipe, sizes: Sizes, lengths: Lengths, machine: Machine) -> dict[str, Any] | None:
    """Changes of the recipe, by key, with which it would fit; None: there are none.

    What leaves the result as it is comes first, then another type, then smaller rollouts, LoRA last.
    """
    means: list[dict[str, Any]] = [{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}]
    means.append(means[1] | means[2])
    adapters = [] if recipe.lora or recipe.freeze else [{"lora.rank": Lora().rank} | others for others in means]
    for ways in (means, adapters):
        for moments in (("update", "evaluation"), tuple(_HALVED)):
            for way in ways:
                new = {key: value for key, value in way.items() if getattr(recipe, key, None) != value}
                if (found := _halved(recipe, new, moments, sizes, lengths, machine)) is not None:
                    return found
    return None


def _halved(
    recipe: Recipe, changes: dict[str, Any], moments: Sequence[str], sizes: Sizes, lengths: Lengths, machine: Machine
) -> dict[str, Any] | None:
    """The changes, and numbers of these moments halved until it fits; None where it never does."""
    while True:
        smaller = changed(recipe, changes)
        need = reckon(smaller, sizes, lengths, machine)
        if not trained_numbers(smaller, sizes):  # LoRA finds nothing there
            return None
        if need.bytes <= machine.bytes:
            return changes
        keys = _HALVED[need.moment] if need.moment in moments else []
        found = next(((key, half) for key in keys if (half := _half(smaller, key, machine)) is not None), None)
        if found is None:
            return None
        changes = changes | {found[0]: found[1]}


def _half(recipe: Recipe, key: str, machine: Machine) -> int | None:
    """About half of a key's number; None where it is the least already. Prompts are a multiple of the processes."""
    section, name = key.split(".")
    least = {"prompts_per_step": machine.processes, "group_size": 2}.get(name, 1)
    unit = machine.processes if name == "prompts_per_step" else 1
    now = getattr(getattr(recipe, section), name)
    half = max(least, now // unit // 2 * unit)
    return half if half < now else None


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, by their keys as on the command line."""
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *sections, last = key.split(".")
        here = values
        for section in sections:
            here[section] = here = here[section] or {}
        here[last] = value
    return Recipe.model_validate(values)
