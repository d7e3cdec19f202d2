"""The table from the runs, beside the paper's."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.tables import over_seeds, percent, provenance, write_table

RESULT = Path("benchmarks/results/rlaif_spa.json")
VARIANTS = {
    "base": "base model",
    "wer_only": "word errors alone",
    "paper": "the paper's sum",
    "gated": "scaled in the group, words before style",
    "gated_word_credit": "… and each word's own credit",
    "gated_unit_credit": "… style from the first prosody units, and breaking units blamed",
    "recipe": "the recipe, 120 steps: all credit local, words by their likelihood",
    "constant_judge": "audit: a judge that always says the same",
    "transcript_judge": "audit: a judge that only reads",
    "permuted_rewards": "audit: rewards of other answers",
}
METRICS = ("wer", "label_alignment", "label_alignment/emotion", "label_alignment/speed", "f0_range", "broken_audio")
PAPER = {"base": (8.89, 23.4), "wer_only": (8.08, 24.4), "paper": (5.80, 30.1)}
"""arXiv 2510.14628, LibriSpeech: WER and emotion accuracy in percent (its row without the label reward: wer_only)."""


def evaluation(runs: Path, variant: str, seed: int) -> Path:
    return runs / "eval" / variant / str(seed)


def measured(folder: Path) -> dict[str, float]:
    """METRICS, and the F0 range of each emotion that was asked for."""
    found = json.loads((folder / "eval.json").read_text())["result"]
    ranges = defaultdict(list)
    for row in map(json.loads, (folder / "result.jsonl").read_text().splitlines()):
        if row["measured"] and row["measured"]["pitch_range"] is not None:
            ranges[f"f0_range/{row['labels']['emotion']}"].append(row["measured"]["pitch_range"])
    return {name: found[name]["value"] for name in METRICS} | {name: fmean(of) for name, of in sorted(ranges.items())}


def write(runs: Path, seeds: Sequence[int], steps: int) -> None:
    """Write RESULT and the table in docs/prosody-rewards.md, of what is there."""
    found = {}
    for variant in VARIANTS:
        there = [seed for seed in seeds if (evaluation(runs, variant, seed) / "eval.json").exists()]
        if there:
            of = [measured(evaluation(runs, variant, seed)) for seed in there]
            found[variant] = {name: over_seeds([one[name] for one in of]) for name in of[0]} | {"seeds": there}
    values = provenance("benchmarks.rlaif_spa") | {"steps": steps, "variants": found}
    RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("rlaif_spa", markdown(values), Path("docs/prosody-rewards.md"))


def markdown(values: dict) -> str:
    lines = [
        f"Made by `{values['command']}`: {values['steps']} steps unless it says more, mean ± 95 % interval over seeds.",
        "",
        "| reward | seeds | WER | emotion, speed as asked | F0 range, semitones | broken | paper's: WER, emotion |",
        "|---" * 7 + "|",
    ]
    for variant, of in values["variants"].items():
        width = of["f0_range"]
        interval = "" if width["ci95"] is None else f" ± {width['ci95']:.1f}"
        heard = f"{percent(of['label_alignment/emotion'])}, {percent(of['label_alignment/speed'])}"
        cells = [str(len(of["seeds"])), percent(of["wer"]), heard, f"{width['mean']:.1f}{interval}",
                 percent(of["broken_audio"])]  # fmt: skip
        paper = "{}, {}".format(*PAPER[variant]) if variant in PAPER else "–"
        lines.append(f"| {VARIANTS[variant]} | " + " | ".join([*cells, paper]) + " |")
    return "\n".join(lines)
