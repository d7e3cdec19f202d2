"""What `make quickstart` gains, over several seeds, beside the same steps without reinforcement learning.

    python -m benchmarks.quickstart --seeds 3

Runs recipes/starter/wavalign.yaml and its SFT-only variant for each seed; measures seconds and peak memory of the whole
process. Writes benchmarks/results/quickstart.json and the README's table. Finished runs are not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import over_seeds, percent, provenance, write_table

RUNS = Path("runs/quickstart-seeds")
RECIPE = "recipes/starter/wavalign.yaml"
RESULT = Path("benchmarks/results/quickstart.json")
VARIANTS = {
    "sft_only": ["objective.mixing={kind: fixed, value: 0}", "objective.kl.text=0", "objective.kl.speech=0"],
    "wavalign": [],
}
LABELS = {"base": "base model", "sft_only": "SFT only, same steps", "wavalign": "**WavAlign (`make quickstart`)**"}
METRICS = ("answer_accuracy_text", "answer_accuracy_speech", "speech_wer", "broken_audio")
GIB = 1024**2  # ru_maxrss counts KiB


def run(folder: Path, seed: int, overrides: Sequence[str]) -> dict:
    """The run's eval.json with seconds and peak memory."""
    measured = folder.with_suffix(".json")
    if not measured.exists():
        words = ["train", RECIPE, f"run_dir={folder}", f"seed={seed}", *overrides]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "elocute.cli", *words])
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"elocute {' '.join(words)}: failed")
        cost = {"seconds": time.perf_counter() - started, "peak_gib": used.ru_maxrss / GIB}
        measured.write_text(json.dumps(cost))
    return json.loads((folder / "eval.json").read_text()) | json.loads(measured.read_text())


def summary(runs: Sequence[dict], moment: str) -> dict:
    """{metric: over seeds} of `before` or `after`."""
    series = {metric: [r[moment][metric]["value"] for r in runs] for metric in METRICS}
    for difficulty in ("easy", "hard"):
        series[f"{difficulty}_text"] = [
            r["by_difficulty"][moment][difficulty]["answer_accuracy_text"]["value"] for r in runs
        ]
    if moment == "after":
        series |= {key: [r[key] for r in runs] for key in ("seconds", "peak_gib")}
    return {metric: over_seeds(values) for metric, values in series.items()}


def markdown(values: dict) -> str:
    """The README's table."""
    lines = [
        f"`{values['command']}`: {len(values['seeds'])} seeds, {values['questions']} held-out questions each, "
        "mean ± 95 % interval over seeds, in percent.",
        "",
        "| model | right, as written | right, as heard | WER of the speech | broken audio | easy | hard | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in values["variants"].items():
        cells = [percent(found[metric]) for metric in (*METRICS, "easy_text", "hard_text")]
        cells.append(f"{found['seconds']['mean']:.0f}" if "seconds" in found else "–")
        lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
    peak = max(values["variants"]["wavalign"]["peak_gib"]["per_seed"])
    lines += ["", f"On {values['machine']}; the run takes at most {peak:.1f} GiB."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    seeds = range(1, args.seeds + 1)
    RUNS.mkdir(parents=True, exist_ok=True)
    runs = {
        name: [run(RUNS / f"{name}-{seed}", seed, overrides) for seed in seeds] for name, overrides in VARIANTS.items()
    }
    values = provenance("benchmarks.quickstart") | {
        "seeds": list(seeds),
        "questions": runs["wavalign"][0]["after"]["answer_accuracy_text"]["n"],
        "ear": runs["wavalign"][0]["ear"] + "; never a reward",
        "variants": {"base": summary(runs["wavalign"], "before")}
        | {name: summary(of, "after") for name, of in runs.items()},
    }
    RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("quickstart", markdown(values))


if __name__ == "__main__":
    main()
