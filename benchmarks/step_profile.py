"""Where a training step's time goes: CPU seconds by part, one thread, means over steps.

    python -m benchmarks.step_profile recipes/starter/rlaif_spa.yaml evaluation.labels=[]

Further words are overrides, as `elocute train` takes them. The first step, which loads and fills what later ones find,
is not counted; neither are evaluations. CPU seconds hardly depend on what else the machine does, but they are this
process's alone: let what listens listen in it (`workers=1`), and do not profile a judge on a server like this.
"""

import argparse
import tempfile
import time
from statistics import mean
from unittest.mock import patch

import torch

from elocute.recipe import load_recipe
from elocute.training.trainer import Trainer


def seconds_of_steps(recipe: str, overrides: list[str], steps: int) -> list[dict[str, float]]:
    """CPU seconds of each step after the first, by part and as `total`."""
    found: list[dict[str, float]] = []

    def note(step: int, metrics: dict) -> None:
        if step > 1:
            parts = {name.removeprefix("seconds/"): value for name, value in metrics.items() if "seconds/" in name}
            found.append({name: value for name, value in parts.items() if name != "checkpoint"})

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, patch("time.perf_counter", time.process_time):
        own = [f"run_dir={folder}/run", f"steps={steps + 1}", f"checkpoint.every={steps + 1}", "data.eval=null"]
        trainer = Trainer(load_recipe(recipe, [*overrides, *own]))
        trainer.train(note)
        trainer.close()
    return found


def table(found: list[dict[str, float]]) -> str:
    """A line for each part: its mean, and its share of the total."""
    means = {name: mean(step[name] for step in found) for name in found[0]}
    rows = [f"| {name} | {value:.2f} | {100 * value / means['total']:.0f} % |" for name, value in means.items()]
    return "\n".join(["| part | CPU s a step | share |", "|---|---|---|", *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    print(table(seconds_of_steps(args.recipe, args.overrides, args.steps)))
