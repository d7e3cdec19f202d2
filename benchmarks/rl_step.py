"""One step of RL: sampled groups, a reward that costs nothing, one update. Time and memory against TRL's GRPOTrainer.

    make trl && python -m benchmarks.rl_step                # the starter's network
    python -m benchmarks.rl_step --shape 0.5b               # with a GPU: a random network of that shape, or 7b's

Both sides have the same network, prompts, number of answers and new tokens, AdamW, type and number of threads, no
reference and no waveforms; no answer ends early. TRL runs `--micro` rows in a forward pass, elocute at most so many, on
a CPU fewer (training/passes.py). Each runs in processes of its own, in turn, TRL
in its own environment (.venv-trl) as it comes (activations computed again in the backward pass) and without that. A
step's time is the median of all after each process's first; memory is the highest peak after that step: of the
process, or on a GPU of what its allocator gave out. `of matmul peak` are the FLOPs of the network, each prompt run
once, of the fastest matrix product measured in the same run. Writes benchmarks/results/rl_step*.json and the table
in docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

import torch

from benchmarks import plain
from benchmarks.plain import Work

PEERS = {"as it comes": True, "no checkpointing": False}


def steps(work: Work) -> dict:
    """Elocute's, in this process."""
    from elocute.recipe import Recipe
    from elocute.training.trainer import Trainer

    torch.set_num_threads(work.threads)
    cuda = plain.device() == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encode = plain.tokenizer()
        rows = [
            {"id": str(i), "messages": [{"role": "user", "content": "-"}], "ids": encode(text)["input_ids"]}
            for i, text in enumerate(plain.prompts(work.prompts))
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rank = plain.LORA.get(work.shape)
        recipe = Recipe.model_validate(
            {
                "run_dir": folder / "run",
                "steps": work.steps + 2,  # the last one is not run: it would save a checkpoint
                "model": plain.FOLDER,
                "dtype": "bfloat16" if cuda else "float32",
                "data": {"train": folder / "rows.jsonl"},
                "rollout": {
                    "group_size": work.group,
                    "prompts_per_step": work.prompts,
                    "max_new_tokens": work.new,
                },
                "rewards": [{"kind": "function", "function": "benchmarks.plain:reward", "low": 0, "high": 1}],
                "objective": {"mixing": {"kind": "fixed", "value": 1}, "policy_gradient": {"scope": "speech"}},
                "lora": rank and {"rank": rank, "alpha": 2 * rank, "targets": plain.TARGETS},
                "optim": {"lr": 1e-6, "micro_batch": work.micro},
                "checkpoint": {"every": work.steps + 2},
                "samples_every": work.steps + 2,
            }
        )

        def load(_, dtype):
            return plain.speech_lm(work.shape, layers=work.layers, dtype=dtype)

        with patch("elocute.training.policy.load_model", load):
            trainer = Trainer(recipe)
        ended, tokens = [], []

        def note(step: int, metrics: dict) -> None:
            plain.synchronise()
            ended.append(time.perf_counter())
            tokens.append(metrics["seconds/rollout"] * metrics["rollout/tokens_per_s"])
            if step == 1:
                plain.start_peak()
            trainer.stopping = step > work.steps

        trainer.train(note)
        seconds = [after - before for before, after in pairwise(ended)]
        return {"seconds": seconds, "peak_mib": plain.peak_mib(), "tokens": round(mean(tokens))}


def run(side: str, work: Work, trl: str) -> dict:
    """One process's numbers."""
    if side == "elocute":
        command = [sys.executable, "-m", "benchmarks.rl_step", "--child", json.dumps(asdict(work))]
    else:
        given = {"work": asdict(work), "checkpointing": PEERS[side]}
        command = [trl, "-m", "benchmarks.peer_trl", json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=threads(work.threads))
    if done.returncode:
        raise SystemExit(f"{side}: exit status {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["tokens"] != work.prompts * work.group * work.new:
        raise SystemExit(f"{side}: {found['tokens']} tokens a step; every answer was to have {work.new}")
    return found


def threads(count: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(count), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def compare(args, work: Work) -> dict:
    """Of each side the median step, the highest peak, and what they are of elocute's."""
    runs: dict[str, list[dict]] = {side: [] for side in ("elocute", *PEERS)}
    for turn in range(args.rounds):
        for side, found in runs.items():
            found.append(run(side, work, args.trl))
            print(f"round {turn + 1}, {side}: {found[-1]}", file=sys.stderr)
    encode = plain.tokenizer()
    prompt = mean(len(encode(text)["input_ids"]) for text in plain.prompts(work.prompts))
    flops = plain.step_flops(plain.config_of(work.shape, work.layers), prompt, work)
    peak = plain.matmul_peak(torch.bfloat16 if plain.device() == "cuda" else torch.float32)
    sides = {}
    for side, found in runs.items():
        seconds = [second for one in found for second in one["seconds"]]
        step = median(seconds)
        sides[side] = {
            "seconds": step,
            "lowest": min(seconds),
            "highest": max(seconds),
            "n": len(seconds),
            "tokens_s": work.prompts * work.group * work.new / step,
            "of_matmul_peak": flops / step / peak,
            "peak_mib": max(one["peak_mib"] for one in found),
        }
    ours = sides["elocute"]
    for side in PEERS:
        sides[side]["faster"] = sides[side]["seconds"] / ours["seconds"]
        sides[side]["memory_ratio"] = ours["peak_mib"] / sides[side]["peak_mib"]
    return {"prompt_tokens": prompt, "matmul_gflops": peak / 1e9, "step_tflop": flops / 1e12, "sides": sides}


def markdown(result: dict) -> str:
    work = result["work"]
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; TRL {result['versions']['trl']}, "
        f"transformers {result['versions']['transformers']}; {work['prompts']} prompts of "
        f"{result['prompt_tokens']:.0f} tokens × {work['group']} answers of {work['new']}, at most "
        f"{work['micro']} rows a forward pass:",
        "",
        "| side | s a step (lowest – highest) | tokens/s | of matmul peak | peak MiB | elocute faster | its memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        peer = "faster" in found
        ratios = f"{found['faster']:.2f} × | {found['memory_ratio']:.2f} ×" if peer else "– | –"
        spread = f"{found['lowest']:.2f} – {found['highest']:.2f}"
        lines.append(
            f"| {'TRL, ' if peer else ''}{side} | {found['seconds']:.2f} ({spread}) | {found['tokens_s']:.0f} "
            f"| {100 * found['of_matmul_peak']:.0f} % | {found['peak_mib']:.0f} | {ratios} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=plain.SHAPES, default="starter")
    parser.add_argument("--layers", type=int, help="of a random network; default its shape's")
    sizes = {"prompts": 8, "group": 8, "new": 192, "micro": 32, "steps": 4, "threads": 2, "rounds": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--trl", default=plain.TRL, help="the Python of TRL's environment")
    parser.add_argument("--output", type=Path, help="the JSON to write; the page's table is then left alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return print(json.dumps(steps(Work(**json.loads(args.child)))))
    work = Work(**{name: getattr(args, name) for name in Work.__annotations__})
    if work.prompts * work.group % work.micro:
        parser.error("--micro: expected a divisor of prompts × group")
    result = plain.described("benchmarks.rl_step", work)
    result["versions"] |= plain.versions_of(args.trl)
    result |= compare(args, work)
    plain.publish(result, markdown(result), args.output)


if __name__ == "__main__":
    main()
