"""The table from the runs, beside the paper's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.tables import over_seeds, percent, provenance, write_table
from elocute.data.files import write_atomically
from elocute.evaluation.statistics import paired_permutation
from elocute.pipelines.alarms import measure_candidates

RESULT = Path("benchmarks/results/align_slm.json")
SUITES = {"storycloze": "storycloze", "swuggy": "zerospeech2021", "sblimp": "zerospeech2021"}
"""Suite → its folder in starter/build/suites."""
VARIANTS = {
    "base": "base model",
    "continued": "continued training",
    "ppl": "perplexity feedback",
    "score": "score feedback",
    "score_round2": "score feedback, second round",
}
ACCURACIES = {
    "tstorycloze": ("storycloze", "tSC"),
    "sstorycloze": ("storycloze", "sSC"),
    "swuggy": ("swuggy", "dev_all"),
    "sblimp": ("sblimp", "dev_all"),
}
TOLD = {"judge": "score/judge", "coherence": "score/coherence", "auto_bleu": "auto_bleu", "seconds": "seconds"}
PAPER = {  # arXiv 2411.01834, feedback ablation, 1.3B: tStoryCloze (percent), GPT-4o (1 to 5)
    "base": (69.7, 1.82),
    "continued": (70.7, 1.83),
    "ppl": (67.7, 1.85),
    "score": (74.2, 2.06),
}


def condense(scored: Path) -> None:
    """Means over a file of scored continuations, beside it."""
    write_atomically(scored.with_suffix(".json"), json.dumps(measure_candidates(scored), indent=2).encode())


def measured(likelihoods: Path, folder: Path) -> dict[str, float]:
    """All metrics of one evaluated model: the suites' results in the one folder, what it said in the other."""
    results = {suite: json.loads((likelihoods / suite / "eval.json").read_text())["result"] for suite in SUITES}
    told = json.loads((folder / "scored.json").read_text())
    accuracies = {name: results[suite][part]["value"] for name, (suite, part) in ACCURACIES.items()}
    return accuracies | {name: told[key] for name, key in TOLD.items()}


def write(folders: Mapping[str, Sequence[tuple[Path, Path]]], seeds: Sequence[int]) -> None:
    """Write RESULT and the table in docs/rounds.md; only variants of which every seed is there. folders: as `measured`
    takes them, a pair a seed."""
    found = {}
    for variant, own in folders.items():
        if all((folder / "scored.json").exists() for _, folder in own):
            runs = [measured(*both) for both in own]
            found[variant] = {name: over_seeds([run[name] for run in runs]) for name in runs[0]}
    values = provenance("benchmarks.align_slm") | {
        "seeds": list(seeds),
        "variants": found,
        "p_judge_against_base": {
            variant: paired_permutation(judged(folders[variant]), judged(folders["base"]), seed=0)
            for variant in found
            if variant != "base"
        },
    }
    RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("align_slm", markdown(values), Path("docs/rounds.md"))


def judged(folders: Sequence[tuple[Path, Path]]) -> list[float]:
    """The held-out judge's mean over seeds for each prompt; an answer that it could not score counts as its lowest."""
    files = [[json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()] for _, folder in folders]
    by_prompt = zip(*([row["output"]["0"]["scores"]["judge"] or 1.0 for row in rows] for rows in files), strict=True)
    return [sum(scores) / len(scores) for scores in by_prompt]


def markdown(values: dict) -> str:
    lines = [
        f"Made by `{values['command']}`: {len(values['seeds'])} seeds, mean ± 95 % interval over seeds.",
        "",
        "| variant | tStoryCloze | sStoryCloze | sWUGGY | sBLIMP | held-out judge | training judge | auto-BLEU-2 "
        "| seconds | paper's: tSC, GPT-4o |",
        "|---" * 10 + "|",
    ]
    for variant, found in values["variants"].items():
        cells = [percent(found[name]) for name in ACCURACIES]
        cells += [_plain(found[name], 2) for name in ("judge", "coherence")]
        cells += [percent(found["auto_bleu"]), _plain(found["seconds"], 1)]
        paper = "{}, {}".format(*PAPER[variant]) if variant in PAPER else "–"
        lines.append(f"| {VARIANTS[variant]} | " + " | ".join([*cells, paper]) + " |")
    chances = ", ".join(f"{VARIANTS[v]} {p:.3f}" for v, p in values["p_judge_against_base"].items())
    return "\n".join(
        [*lines, "", f"p of the held-out judge's difference to the base (paired over prompts): {chances}."]
    )


def _plain(found: dict, digits: int) -> str:
    interval = "" if found["ci95"] is None else f" ± {found['ci95']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{interval}"
