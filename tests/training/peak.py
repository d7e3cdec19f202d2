"""Runs' peaks of memory beside what was reckoned: python -m tests.training.peak SETTING … prints both, a line each.

A setting is [layers, {"group": …, …} (a Point of benchmarks/cost_curves.py), ["KEY=VALUE", …]] in JSON. Each run has a
process of its own, for a process's peak is its own, all forked from one that has imported what a run begins with.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import cost_curves
from elocute.data.rows import read_rows
from elocute.models import sizes_of_model
from elocute.recipe import load_recipe
from elocute.training.machine import Machine
from elocute.training.memory import lengths_of, reckon
from elocute.training.trainer import Trainer


def resident(name: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for the most so far."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def run(layers: int, point: dict, changes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as home:
        cost_curves.LAYERS = layers
        apart(lambda: cost_curves.write_recipe(Path(home), cost_curves.Point(**point)))
        recipe = load_recipe(f"{home}/recipe.yaml", ["steps=2", *changes])
        lengths = lengths_of(recipe, read_rows(recipe.data.train))
        need = reckon(recipe, sizes_of_model(recipe.model), lengths, Machine(None))
        before = resident("VmRSS")
        Trainer(recipe).train()
        measured = resident("VmHWM") - before
    print(json.dumps({"reckoned": need.bytes, "measured": measured, "need": str(need)}), flush=True)


def apart(work) -> None:
    """Do something in a process that ends with it."""
    if not (process := os.fork()):
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for setting in sys.argv[1:]:
        apart(lambda setting=setting: run(*json.loads(setting)))
