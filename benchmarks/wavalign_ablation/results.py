"""The table from the runs: metrics on the test questions, intervals over seeds, paired tests against our variant."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import over_seeds, percent, provenance, write_table
from benchmarks.wavalign_ablation.variants import LABELS, NOISE, NOISY, OURS, RATES, VARIANTS
from elocute.data.normalise import normalise
from elocute.data.rows import read_rows
from elocute.evaluation.spoken_qa import word_errors
from elocute.evaluation.statistics import paired_permutation

DEV = 290
"""The first rows of the held-out questions choose the learning rate; the other 1,000 make the table."""
RESULT = Path("benchmarks/results/wavalign_ablation.json")
METRICS = ("answer_accuracy_text", "answer_accuracy_speech", "speech_wer", "broken_audio", "easy_text", "hard_text")


def answers(folder: Path) -> list[dict]:
    """The test questions' answers of a run."""
    return [json.loads(line) for line in (folder / "eval/result.jsonl").read_text().splitlines()][DEV:]


def measure(rows: list[dict], difficulty: dict[str, str]) -> dict[str, float]:
    """METRICS of a run's answers."""

    def share(key: str, of: list[dict]) -> float:
        return sum(bool(row[key]) for row in of) / len(of)

    spoken = [(normalise(row["text"]), normalise(row["heard"])) for row in rows if not row["broken"]]
    spoken = [(text, heard) for text, heard in spoken if text]
    words = sum(len(text.split()) for text, _ in spoken)
    return {
        "answer_accuracy_text": share("correct_text", rows),
        "answer_accuracy_speech": share("correct_speech", rows),
        "speech_wer": sum(word_errors(text, heard) for text, heard in spoken) / max(1, words),
        "broken_audio": share("broken", rows),
    } | {f"{d}_text": share("correct_text", [r for r in rows if difficulty[r["id"]] == d]) for d in ("easy", "hard")}


def best_rate(folder: Path) -> str:
    """The learning rate whose run is best by spoken accuracy on the dev questions; the smaller one of equals."""

    def accuracy(rate: str) -> float:
        return json.loads((folder / rate / "eval/eval.json").read_text())["result"]["answer_accuracy_speech"]["value"]

    return max(sorted(RATES, key=float), key=accuracy)


def item_means(runs: list[list[dict]], key: str) -> list[float]:
    """Each question's share of seeds that are right."""
    return [sum(bool(run[i][key]) for run in runs) / len(runs) for i in range(len(runs[0]))]


def write(runs: Path, seeds: Sequence[int], steps: int) -> None:
    """Write RESULT and the README's table."""
    difficulty = {row.id: row.columns["difficulty"] for row in read_rows("starter/data/heldout.jsonl")}

    def load(folder: Path) -> list[list[dict]]:
        return [answers(folder / str(seed)) for seed in seeds if (folder / str(seed) / "eval/eval.json").exists()]

    table = {name: load(runs / "table" / name) for name in ("base", *VARIANTS)}
    noise = {n: {name: load(runs / f"noise-{n}" / name) for name in NOISY} for n in NOISE}

    def summary(of: list[list[dict]]) -> dict:
        measured = [measure(rows, difficulty) for rows in of]
        return {metric: over_seeds([run[metric] for run in measured]) for metric in METRICS}

    values = provenance("benchmarks.wavalign_ablation") | {
        "seeds": list(seeds),
        "steps": steps,
        "questions": len(difficulty) - DEV,
        "judge": "benchmarks/wavalign_ablation/judge.py",
        "ear": "PocketSphinx, bundled en-us model, closed vocabulary; never a reward",
        "learning_rate": {name: best_rate(runs / "rates" / name) for name in VARIANTS},
        "rates": _rates(runs),
        "variants": {name: summary(of) for name, of in table.items() if of},
        "paired_p": {
            name: {key: _paired(table[OURS], of, key) for key in ("correct_text", "correct_speech")}
            for name, of in table.items()
            if of and name != OURS
        },
        "judge_noise": {f"{n} %": {name: summary(of) for name, of in by.items() if of} for n, by in noise.items()},
    }
    gradients = runs / "gradients.json"
    if gradients.exists():
        values["gradients"] = json.loads(gradients.read_text())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(values, indent=2) + "\n")
    write_table("wavalign_ablation", markdown(values))


def _paired(ours: list[list[dict]], other: list[list[dict]], key: str) -> float:
    """p that both are right equally often, over questions (the mean over seeds each)."""
    return paired_permutation(item_means(ours, key), item_means(other, key), seed=0)


def _rates(runs: Path) -> dict:
    found = {}
    for name in VARIANTS:
        files = {rate: runs / "rates" / name / rate / "eval/eval.json" for rate in RATES}
        results = {rate: json.loads(file.read_text())["result"] for rate, file in files.items()}
        found[name] = {rate: {key: r[key]["value"] for key in METRICS[:4]} for rate, r in results.items()}
    return found


def markdown(values: dict) -> str:
    """The main table and the one of judge noise, percent, mean ± half a 95 % interval over seeds."""
    lines = [
        f"Made by `{values['command']}`: {len(values['seeds'])} seeds, {values['steps']} steps, "
        f"{values['questions']:,} held-out questions; mean ± 95 % interval over seeds, in percent.",
        "",
        "| variant | learning rate | right, as written | right, as heard | speech WER | broken audio | easy | hard |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in values["variants"].items():
        label = f"**{LABELS[name]}**" if name == OURS else LABELS[name]
        rate = values["learning_rate"].get(name, "–")
        lines.append(f"| {label} | {rate} | " + " | ".join(percent(found[metric]) for metric in METRICS) + " |")
    lines += ["", "With a judge that is wrong at a known rate (right, as heard / broken audio):", ""]
    levels = ["0 %", *values["judge_noise"]]
    lines += ["| variant | " + " | ".join(levels) + " |", "|---" * (len(levels) + 1) + "|"]
    for name in NOISY:
        by = {"0 %": values["variants"], **values["judge_noise"]}
        cells = [_pair(by[level][name]) if name in by[level] else "–" for level in levels]
        lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
    if "gradients" in values:
        lines += ["", *_gradients(values["gradients"])]
    return "\n".join(lines)


def _gradients(found: dict) -> list[str]:
    """Norms and cosines of the parts' gradients at the base model (the paper's appendix C)."""
    parts, cosine = list(found["norm"]), found["cosine"]
    lines = [
        f"Gradients at the base model over {found['batches']} batches: their norm (mean ± std), their steadiness "
        f"(‖mean‖ / mean ‖·‖; noise alone gives {found['batches'] ** -0.5:.2f}) and the mean cosine of two parts':",
        "",
        "| part | norm | steadiness | " + " | ".join(f"cosine with {_part(other)}" for other in parts[1:]) + " |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for index, part in enumerate(parts):
        norm = found["norm"][part]
        cells = [f"{cosine[f'{part} · {other}']:.2f}" if place > index else "" for place, other in enumerate(parts)][1:]
        first = [_part(part), f"{norm['mean']:.2f} ± {norm['std']:.2f}", f"{found['steadiness'][part]:.2f}"]
        lines.append("| " + " | ".join([*first, *cells]) + " |")
    return lines


def _part(name: str) -> str:
    loss, modality = name.split("_")
    return f"{loss.upper()} on {modality}"


def _pair(found: dict) -> str:
    return f"{percent(found['answer_accuracy_speech'])} / {percent(found['broken_audio'])}"
