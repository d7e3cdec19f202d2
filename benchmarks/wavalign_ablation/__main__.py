"""Which part of WavAlign does what? Trains the paper's variants from one base model and compares them.

    python -m benchmarks.wavalign_ablation --jobs 2

1. A judge that hears is trained (judge.py). 2. Each variant is tried at three learning rates on seed 0 and the first
290 held-out questions; the best by spoken accuracy is its own. 3. Each variant is trained on every seed and measured on
the other 1,000 held-out questions, by a recogniser that was never a reward. 4. Three variants again with a judge that
is wrong for 15 and 30 % of the answers. 5. Gradients of RL and SFT are compared by modality (gradients.py).
Every run is `elocute train` and `elocute eval` in a process of its own; what is finished is not done again, so a
stopped benchmark goes on. The table: benchmarks/results/wavalign_ablation.json, and in README.md between its markers.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import arguments, do_all, elocute
from benchmarks.wavalign_ablation import gradients, judge, results
from benchmarks.wavalign_ablation.variants import NOISE, NOISY, RATES, VARIANTS, noisy_judge

RUNS = Path("runs/wavalign_ablation")
RECIPE = "benchmarks/wavalign_ablation/recipe.yaml"
MODEL = Path("starter/model")
HELD_OUT = "starter/data/heldout.jsonl"
EAR = ["--vocabulary", "starter/answers.txt", "--temperature", "0.7", "--max-new-tokens", "96"]


@dataclass(frozen=True)
class Run:
    """One training and its evaluation on held-out questions (the first `rows`, or all)."""

    folder: Path
    overrides: tuple[str, ...]
    seed: int
    rows: int | None = None

    @property
    def finished(self) -> bool:
        return (self.folder / "eval/eval.json").exists()


def tuning_runs(steps: int) -> list[Run]:
    return [
        Run(RUNS / "rates" / name / rate, (*overrides, f"optim.lr={rate}", f"steps={steps}"), 0, results.DEV)
        for rate in RATES
        for name, overrides in VARIANTS.items()
    ]


def table_runs(steps: int, seeds: Sequence[int]) -> list[Run]:
    """The table's runs, then the noisy ones, seed by seed: a benchmark that is cut short has whole seeds."""
    rates = {name: results.best_rate(RUNS / "rates" / name) for name in VARIANTS}

    def run(folder: Path, name: str, seed: int, *more: str) -> Run:
        return Run(
            folder / name / str(seed), (*VARIANTS[name], f"optim.lr={rates[name]}", f"steps={steps}", *more), seed
        )

    runs = []
    for seed in seeds:
        runs += [run(RUNS / "table", name, seed) for name in VARIANTS]
    for seed in seeds:
        runs += [run(RUNS / f"noise-{n}", name, seed, *noisy_judge(n)) for n in NOISE for name in NOISY]
    return runs


def do(run: Run) -> None:
    """Train and evaluate; a stopped training goes on."""
    folder = run.folder
    train = ["train", RECIPE, f"run_dir={folder}", f"seed={run.seed}", *run.overrides]
    if (folder / "recipe.yaml").exists():
        train.append("--resume")
    elocute(*train)
    evaluate(folder, folder / "eval", run.seed, run.rows)
    for checkpoint in sorted((folder / "checkpoints").glob("step-*/*")):
        checkpoint.unlink()  # the model stays; a hundred optimiser states would fill the disk


def evaluate(model: Path, out: Path, seed: int, rows: int | None) -> None:
    shutil.rmtree(out, ignore_errors=True)  # of an evaluation that was stopped
    limit = [] if rows is None else ["--rows", str(rows)]
    elocute("eval", str(model), "--data", HELD_OUT, "-o", str(out), "--seed", str(seed), *EAR, *limit)


def do_missing(label: str, runs: Sequence[Run], jobs: int) -> None:
    do_all(label, do, [run for run in runs if not run.finished], len(runs), jobs)


def main() -> None:
    args = arguments(__doc__, seeds=5, steps=60)
    seeds = range(1, args.seeds + 1)
    if not args.table:
        if not judge.WEIGHTS.exists():
            print(f"the judge is right on {judge.train(judge.WEIGHTS):.1%} of unseen takes")
        do_missing("learning rates", tuning_runs(args.steps), args.jobs)
        for seed in seeds:
            if not (RUNS / "table/base" / str(seed) / "eval/eval.json").exists():
                evaluate(MODEL, RUNS / "table/base" / str(seed) / "eval", seed, None)
        do_missing("runs", table_runs(args.steps, seeds), args.jobs)
        if not (RUNS / "gradients.json").exists():
            (RUNS / "gradients.json").write_text(json.dumps(gradients.measure(RUNS / "gradients"), indent=2))
    results.write(RUNS, seeds, args.steps)


if __name__ == "__main__":
    main()
