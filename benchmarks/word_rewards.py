"""Which reward for words goes with who measures them? Answers of the starter's TTS model, heard by all.

    python -m benchmarks.word_rewards

`elocute sample` makes answers, `elocute score` lets each reward and Whisper hear them. Answers to one prompt differ by
how they are spoken alone, so what counts is the correlation within prompts: of a reward with Whisper's 1 − WER, both
less their mean over the prompt's answers. Policy gradient sees nothing else. Prompts are drawn again for the interval.
`tells apart`: the share of prompts to whose answers it gives more than one value; from the others nothing is learned.
Writes benchmarks/results/word_rewards.json and the table in docs/prosody-rewards.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.tables import provenance, write_table

RESULT = Path("benchmarks/results/word_rewards.json")
PAGE = Path("docs/prosody-rewards.md")
RECIPE = "recipes/starter/rlaif_spa.yaml"
EAR = {"kind": "transformers", "path": "starter/expressive/ear", "batch_size": 16}
HEARERS = {
    "whisper": ({"kind": "faster_whisper"}, "linear"),
    "likelihood": (EAR, "likelihood"),
    "ear": (EAR, "linear"),
    "pocketsphinx": ({"kind": "pocketsphinx", "vocabulary": "starter/expressive/sentences.txt"}, "linear"),
}
LABELS = {
    "likelihood": "the shipped ear: how probable it finds a letter (`likelihood`)",
    "ear": "the shipped ear: words misheard (`linear`)",
    "pocketsphinx": "PocketSphinx: words misheard (`linear`)",
}


def heard(args, folder: Path) -> list[dict[str, np.ndarray]]:
    """Of each prompt, by hearer, the scores of its answers that are proper speech."""
    rewards = [
        {"kind": "asr", "name": name, "ear": ear, "reference": "prompt", "form": form}
        for name, (ear, form) in HEARERS.items()
    ]
    (folder / "judges.yaml").write_text(json.dumps({"rewards": rewards}))  # JSON is YAML
    lines = args.data.read_text().splitlines(keepends=True)[: args.prompts]
    (folder / "rows.jsonl").write_text("".join(lines))
    elocute = [sys.executable, "-m", "elocute.cli"]
    sample = [RECIPE, f"model={args.model}", f"seed={args.seed}", "--data", folder / "rows.jsonl", "-n", args.answers]
    subprocess.run([*elocute, "sample", *map(str, sample), "-o", folder / "candidates"], check=True)
    score = [
        folder / "judges.yaml",
        "--candidates",
        folder / "candidates/candidates.jsonl",
        "-o",
        folder / "scored.jsonl",
    ]
    subprocess.run([*elocute, "score", *map(str, score)], check=True)
    prompts = []
    for line in (folder / "scored.jsonl").read_text().splitlines():
        candidates = json.loads(line)["output"].values()
        judged = [found["scores"] for found in candidates if found["outcome"]["kind"] == "scored"]
        prompts.append({name: np.array([scores[name] for scores in judged]) for name in HEARERS})
    return prompts


def correlation(prompts: list[dict[str, np.ndarray]], name: str) -> float:
    ours, theirs = (np.concatenate([p[n] - p[n].mean() for p in prompts]) for n in (name, "whisper"))
    return float(ours @ theirs / np.sqrt(ours @ ours * (theirs @ theirs)))


def with_interval(prompts: list[dict[str, np.ndarray]], name: str, seed: int, draws: int = 2000) -> dict:
    """{value, ci95}: percentile bootstrap over prompts."""
    draw = np.random.default_rng(seed)
    again = [
        correlation([prompts[i] for i in draw.integers(len(prompts), size=len(prompts))], name) for _ in range(draws)
    ]
    return {"value": correlation(prompts, name), "ci95": list(map(float, np.percentile(again, [2.5, 97.5])))}


def markdown(result: dict) -> str:
    lines = ["| reward | with Whisper's 1 − WER, within prompts | tells apart | its mean |", "|---|---|---|---|"]
    for name, label in LABELS.items():
        found = result["rewards"][name]
        low, high = found["ci95"]
        value = f"{found['value']:.2f} ({low:.2f} – {high:.2f})"
        lines.append(f"| {label} | {value} | {100 * found['tells_apart']:.0f} % | {found['mean']:.2f} |")
    lines += [
        "",
        f"`{result['command']}`, {result['date']}: {result['answers']} proper answers to {result['prompts']} sentences "
        f"by `{result['model']}`; Whisper's (tiny.en) mean is {result['whisper']:.2f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter/tts_lm")
    parser.add_argument("--data", type=Path, default=Path("starter/expressive/test.jsonl"))
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the JSON to write; the page's table is then left alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts = heard(args, Path(folder))
    mean = {name: float(np.concatenate([prompt[name] for prompt in prompts]).mean()) for name in HEARERS}
    apart = {name: float(np.mean([len(set(prompt[name])) > 1 for prompt in prompts])) for name in HEARERS}
    result = provenance("benchmarks.word_rewards") | {
        "model": args.model,
        "seed": args.seed,
        "prompts": len(prompts),
        "answers": sum(len(prompt["whisper"]) for prompt in prompts),
        "whisper": mean["whisper"],
        "rewards": {
            name: with_interval(prompts, name, args.seed) | {"tells_apart": apart[name], "mean": mean[name]}
            for name in LABELS
        },
    }
    (args.output or RESULT).write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    if not args.output:
        write_table("word-rewards", markdown(result), PAGE)


if __name__ == "__main__":
    main()
