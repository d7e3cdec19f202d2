"""What a training step costs as one thing grows: answers to a prompt, their length, the vocabulary, prompts a step.

    python -m benchmarks.cost_curves            # CPU, one thread, about ten minutes
    python -m benchmarks.cost_curves --table    # writes the page anew from what was measured

A step is the whole of it: rollouts, their decoding, the reference, policy gradient, SFT, KL and AdamW, of a random LM
over the starter's units whose answers are always as long as they may be. Each point has a process of its own. Time is
the CPU seconds of a step, the median of those after the first; memory is the growth of the process's peak since before
the model was loaded. All of a step's rows are one micro-batch, so that memory grows as fast as it can.

Each point has twice the last one's x, so that of y = c + a·xᵇ the growth from one point to the next is in proportion to
xᵇ, whatever c is: the exponent b is the slope of its logarithm over that of x, by least squares over the three largest
steps; 1 is linear. Attention has a part that grows with the length squared; the lengths end where an answer is as long
as the network is wide, which in a model of 7B is 3584.

Writes benchmarks/results/cost_curves.json, docs/images/cost_curves.svg and the table in docs/performance.md.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.tables import provenance, write_table

RESULT, PAGE = Path("benchmarks/results/cost_curves.json"), Path("docs/performance.md")
PLOT = Path("docs/images/cost_curves.svg")
WIDTH, LAYERS, SEEN, FITTED = 256, 2, 3, 3
MIB = 2**20


@dataclass(frozen=True)
class Point:
    """group: answers to a prompt; length: of an answer, in tokens; prompts: a step."""

    group: int = 8
    length: int = 64
    vocabulary: int = 4096
    prompts: int = 1


SWEEPS = {
    "group": ("answers to a prompt, G", [8, 16, 32, 64, 128]),
    "length": ("tokens of an answer", [16, 32, 64, 128, 256]),
    "vocabulary": ("vocabulary", [4096, 8192, 16_384, 32_768, 65_536]),
    "prompts": ("prompts a step, of 8 answers", [1, 2, 4, 8, 16]),
}
BASES = {"length": Point(group=32)}
"""Of a sweep; default: Point()."""


def measure(point: Point, steps: int = SEEN) -> dict[str, float]:
    """A process's numbers: CPU seconds of a step, and MiB that the process's peak has grown by."""
    from benchmarks.step_profile import seconds_of_steps

    with tempfile.TemporaryDirectory() as home:
        recipe = write_recipe(Path(home), point)
        before = _status("VmRSS")
        seconds = [step["total"] for step in seconds_of_steps(str(recipe), [], steps)]
    return {"seconds": median(seconds), "mib": _status("VmHWM") - before}


def reward(completions: list, waveforms: list) -> list[float]:
    """Any number that differs between answers."""
    return [float(abs(waveform).mean()) for waveform in waveforms]


def write_recipe(home: Path, point: Point) -> Path:
    """A recipe with its model and its rows."""
    import torch
    import yaml
    from transformers import LlamaConfig, LlamaForCausalLM

    from elocute.data.units import UnitStore
    from elocute.speech import load_codec

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=point.vocabulary, hidden_size=WIDTH, intermediate_size=int(2.75 * WIDTH), num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    network, units = LlamaForCausalLM(config), load_codec("starter/units")
    with torch.no_grad():  # what is no unit is never said: it would end the answer
        network.get_input_embeddings().weight[:, 0] = 4
        network.lm_head.weight[:, 0] = -20
        network.lm_head.weight[2 : 2 + units.n_units, 0] = 0
    network.save_pretrained(home / "model")
    said = {"kind": "units", "codec": str(Path("starter/units").resolve()), "unit_0": 2, "bos": 0, "eos": None}
    (home / "model/elocute.json").write_text(json.dumps(said))
    store = UnitStore("starter/stories/prompts.safetensors")
    question, answer = sorted(store.keys())[:2]
    row = {
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [f"{store.path.resolve()}#{question}"],
        "sft_target_units": store.get(answer)[: point.length].tolist(),
        "units_codec": units.digest,
        "sft_target_cut": True,
    }
    lines = (json.dumps(row | {"id": str(number)}) + "\n" for number in range(point.prompts))
    (home / "rows.jsonl").write_text("".join(lines))
    recipe = {
        "run_dir": str(home / "run"),
        "steps": 1,
        "model": str(home / "model"),
        "data": {"train": str(home / "rows.jsonl")},
        "rollout": {"group_size": point.group, "prompts_per_step": point.prompts, "max_new_tokens": point.length},
        "rewards": [{"kind": "function", "function": "benchmarks.cost_curves:reward", "low": 0, "high": 1}],
        "objective": {
            "mixing": {"kind": "fixed", "value": 0.8},
            "policy_gradient": {"scope": "all"},
            "kl": {"speech": 0.01},
        },
        "optim": {"lr": 1e-5, "micro_batch": point.group * point.prompts},
        "report": False,
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return home / "recipe.yaml"


def in_a_process(point: Point, steps: int) -> dict[str, float]:
    words = [
        sys.executable,
        "-m",
        "benchmarks.cost_curves",
        "--point",
        json.dumps(asdict(point)),
        "--steps",
        str(steps),
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{point}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(x: Sequence[float], y: Sequence[float], fitted: int = FITTED) -> float | None:
    """Of y's growth from each x to the next, twice as large, the slope of its logarithm over that of x at the largest.

    None where it does not grow, or where there are less than two such steps.
    """
    grown = [(a, later - now) for a, now, later in zip(x, y, y[1:], strict=False)][-fitted:]
    if len(grown) < 2 or any(b <= 0 for _, b in grown):
        return None
    a, b = ([math.log(pair[side]) for pair in grown] for side in (0, 1))
    middle = sum(a) / len(a)
    return sum((u - middle) * v for u, v in zip(a, b, strict=True)) / sum((u - middle) ** 2 for u in a)


def sweep(name: str, values: Sequence[int], steps: int) -> dict:
    base, found = BASES.get(name, Point()), []
    for value in values:
        found.append(in_a_process(replace(base, **{name: value}), steps))
        print(f"{name} {value}: {found[-1]['seconds']:.2f} s, {found[-1]['mib']:.0f} MiB", flush=True)
    curves = {what: [one[what] for one in found] for what in ("seconds", "mib")}
    return {
        "work": name, "base": asdict(base), "values": list(values), **curves,
        "exponents": {what: exponent(values, curve) for what, curve in curves.items()},
    }  # fmt: skip


def markdown(result: dict) -> str:
    lines = ["| what grows | from … to | CPU s a step | exponent | MiB | exponent |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        ends = [f"{row[key][0]:{form}} … {row[key][-1]:{form}}" for key, form in FORMS.items()]
        powers = ["–" if value is None else f"{value:.2f}" for value in row["exponents"].values()]
        lines.append(f"| {SWEEPS[row['work']][0]} | {ends[0]} | {ends[1]} | {powers[0]} | {ends[2]} | {powers[1]} |")
    return "\n".join([*lines, "", f"![Seconds and memory over each of them](images/{PLOT.name})"])


FORMS = {"values": "d", "seconds": ".2f", "mib": ".0f"}
SIDE, GAP, INK = 220, 60, ("#1f6f8b", "#c8553d", "#6a994e", "#7b5ea7")


def plot(rows: Sequence[dict]) -> str:
    """Time and memory, each over its first value, as SVG; both axes are logarithmic; a grey line is linear growth."""
    parts = []
    for place, (what, title) in enumerate({"seconds": "CPU seconds a step", "mib": "memory"}.items()):
        left, top = GAP + place * (SIDE + GAP), 30
        widest = math.log(max(row["values"][-1] / row["values"][0] for row in rows))

        def line(points, colour, left=left, top=top, widest=widest):
            at = [(left + SIDE * math.log(x) / widest, top + SIDE * (1 - math.log(y) / widest)) for x, y in points]
            drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>'

        parts.append(f'<text x="{left}" y="18">{title}, times its first value</text>')
        parts.append(f'<path d="M{left} {top}v{SIDE}h{SIDE}" fill="none" stroke="#888"/>')
        parts.append(line([(1, 1), (math.exp(widest), math.exp(widest))], "#bbb"))
        for times in (2**n for n in range(round(widest / math.log(2)) + 1)):
            away = SIDE * math.log(times) / widest
            parts.append(f'<text x="{left + away:.0f}" y="{top + SIDE + 14}" text-anchor="middle">×{times}</text>')
            parts.append(f'<text x="{left - 4}" y="{top + SIDE - away + 4:.0f}" text-anchor="end">×{times}</text>')
        parts.append(f'<text x="{left}" y="{top + SIDE + 30}">what grows, times its first value</text>')
        for number, row in enumerate(rows):
            ratios = [(x / row["values"][0], y / row[what][0]) for x, y in zip(row["values"], row[what], strict=True)]
            parts.append(line(ratios, INK[number]))
            name = SWEEPS[row["work"]][0]
            parts.append(f'<text x="{left + 8}" y="{top + 14 + 14 * number}" fill="{INK[number]}">{name}</text>')
    size = f'width="{2 * SIDE + 3 * GAP}" height="{SIDE + 70}" font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def _status(name: str) -> float:
    """MiB of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", help="measure one point and print it")
    parser.add_argument("--steps", type=int, default=SEEN, help="steps a point, after the first")
    parser.add_argument("--only", choices=SWEEPS, nargs="+", default=list(SWEEPS))
    parser.add_argument("--points", type=int, default=5, help="only the first so many points of each")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="only write the page anew")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(Point(**json.loads(args.point)), args.steps)))
        raise SystemExit
    if not args.table:
        rows = [sweep(name, SWEEPS[name][1][: args.points], args.steps) for name in args.only]
        args.result.write_text(json.dumps(provenance("benchmarks.cost_curves") | {"rows": rows}, indent=2) + "\n")
    result = json.loads(args.result.read_text())
    print(markdown(result))
    if args.result == RESULT:
        PLOT.write_text(plot(result["rows"]))
        write_table("cost-curves", markdown(result), PAGE)
