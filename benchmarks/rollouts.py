"""Rollouts: tokens a second of elocute's sampler and of transformers' `generate` with `num_return_sequences`.

    python -m benchmarks.rollouts                # the starter's network
    python -m benchmarks.rollouts --shape 0.5b   # a random network of that shape; with a GPU also 7b

Groups of answers to the same prompts by the same network: `fixed`, where no answer ends early, and for the starter also
`mixed`, where the network ends them as it was trained to. Sampled at temperature 1 from the whole vocabulary; only
tokens up to an answer's end count. Every side is run in processes of its own, in turn; its tokens/s are the median of
all runs after each process's first. Elocute's also say each token's log-prob and entropy. Writes
benchmarks/results/rollouts*.json and the table in docs/performance.md.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from benchmarks import plain
from benchmarks.plain import Work
from benchmarks.rl_step import threads

SIDES = ("elocute", "generate", "generate, static cache")


def sampler(work: Work, ends: bool):
    """Elocute's: a run's seed → the lengths of its answers."""
    from elocute.rollout import Sampling, sample_groups

    lm = plain.speech_lm(work.shape, ends=ends, layers=work.layers, dtype=dtype())
    encode = plain.tokenizer()
    prompts = [torch.tensor(encode(text)["input_ids"]) for text in plain.prompts(work.prompts)]

    def sample(seed: int) -> list[int]:
        seeds = [[seed * 10_000 + row * work.group + i for i in range(work.group)] for row in range(work.prompts)]
        groups = sample_groups(lm, prompts, seeds, Sampling(work.new))
        return [len(rollout.tokens) for group in groups for rollout in group]

    return sample


def generator(work: Work, ends: bool, cache: str | None):
    """The same by transformers."""
    network = plain.network(work.shape, work.layers, dtype()).eval()
    encode = plain.tokenizer()
    end = encode.convert_tokens_to_ids(plain.END if ends else plain.NEVER)
    encode.padding_side = "left"
    given = encode(plain.prompts(work.prompts), return_tensors="pt", padding=True).to(plain.device())
    given = {name: given[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        ids = network.generate(
            **given,
            do_sample=True,
            num_return_sequences=work.group,
            max_new_tokens=work.new,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=end,
            pad_token_id=encode.pad_token_id,
            cache_implementation=cache,
        )[:, given["input_ids"].shape[1] :]
        ended = ids == end
        length = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1])
        return length.tolist()

    return sample


def dtype() -> torch.dtype:
    return torch.bfloat16 if plain.device() == "cuda" else torch.float32


def runs(side: str, work: Work, ends: bool) -> dict:
    """This process's: seconds and tokens of each run after the first, and the peak of memory."""
    torch.set_num_threads(work.threads)
    if side == "elocute":
        sample = sampler(work, ends)
    else:
        sample = generator(work, ends, "static" if "static" in side else None)
    sample(0)
    plain.start_peak()
    found: dict[str, list] = {"seconds": [], "tokens": []}
    for turn in range(work.steps):
        plain.synchronise()
        start = time.perf_counter()
        lengths = sample(1 + turn)
        plain.synchronise()
        found["seconds"].append(time.perf_counter() - start)
        found["tokens"].append(sum(lengths))
    return found | {"peak_mib": plain.peak_mib()}


def compare(work: Work, ends: bool, rounds: int) -> dict:
    """Of each side the median tokens/s and the highest peak, and how many times as fast elocute is."""
    found: dict[str, list[dict]] = {side: [] for side in SIDES}
    for turn, side in itertools.product(range(rounds), SIDES):
        given = json.dumps({"side": side, "work": asdict(work), "ends": ends})
        command = [sys.executable, "-m", "benchmarks.rollouts", "--child", given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=threads(work.threads))
        if done.returncode:
            raise SystemExit(f"{side}: exit status {done.returncode}")
        found[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {turn + 1}, {side}: {found[side][-1]}", file=sys.stderr)
    sides = {}
    for side, of in found.items():
        rates = [t / s for one in of for t, s in zip(one["tokens"], one["seconds"], strict=True)]
        tokens = [t for one in of for t in one["tokens"]]
        sides[side] = {
            "tokens_s": median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "n": len(rates),
            "tokens": sum(tokens) / len(tokens),
            "peak_mib": max(one["peak_mib"] for one in of),
        }
    for side in SIDES[1:]:
        sides[side]["faster"] = sides["elocute"]["tokens_s"] / sides[side]["tokens_s"]
    return sides


def markdown(result: dict) -> str:
    work = result["work"]
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; transformers "
        f"{result['versions']['transformers']}; {work['prompts']} prompts × {work['group']} answers of at most "
        f"{work['new']} tokens:",
        "",
        "| lengths | side | tokens/s (lowest – highest) | tokens a run | peak MiB | elocute is faster |",
        "|---|---|---|---|---|---|",
    ]
    for lengths, sides in result["lengths"].items():
        for side, found in sides.items():
            ratio = f"{found['faster']:.2f} ×" if "faster" in found else "–"
            rate = f"{found['tokens_s']:.0f} ({found['lowest']:.0f} – {found['highest']:.0f})"
            lines.append(f"| {lengths} | {side} | {rate} | {found['tokens']:.0f} | {found['peak_mib']:.0f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=plain.SHAPES, default="starter")
    parser.add_argument("--layers", type=int, help="of a random network; default its shape's")
    sizes = {"prompts": 8, "group": 8, "new": 192, "steps": 3, "threads": 2, "rounds": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, help="the JSON to write; the page's table is then left alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        given = json.loads(args.child)
        return print(json.dumps(runs(given["side"], Work(**given["work"]), given["ends"])))
    work = Work(args.shape, args.layers, args.prompts, args.group, args.new, 0, args.steps, args.threads)
    result = plain.described("benchmarks.rollouts", work) | {"lengths": {}}
    for lengths in ("fixed", "mixed") if args.shape == "starter" else ("fixed",):
        result["lengths"][lengths] = compare(work, lengths == "mixed", args.rounds)
    plain.publish(result, markdown(result), args.output)


if __name__ == "__main__":
    main()
