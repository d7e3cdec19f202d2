"""A run's peak of memory beside what was reckoned: python -m tests.training.peak RECIPE [KEY=VALUE …] prints both.

A module of its own, for a process's peak is its own.
"""

import json
import sys
from pathlib import Path

import torch

from elocute.data.rows import read_rows
from elocute.models import sizes_of_model
from elocute.recipe import load_recipe
from elocute.training.machine import Machine
from elocute.training.memory import lengths_of, reckon
from elocute.training.trainer import Trainer


def resident(name: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for the most so far."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = load_recipe(sys.argv[1], sys.argv[2:])
    examples = read_rows(recipe.data.train)
    need = reckon(recipe, sizes_of_model(recipe.model), lengths_of(recipe, examples), Machine(None))
    before = resident("VmRSS")
    Trainer(recipe).train()
    measured = resident("VmHWM") - before
    print(json.dumps({"reckoned": need.bytes, "moment": need.moment, "measured": measured}))
