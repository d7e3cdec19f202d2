"""Selected-token log-probs and their gradients: time and memory against torch's full log-softmax and TRL's chunked one.

    python -m benchmarks.logprobs            # a fifth of 2,560 rows × 151,936 words × 896 wide, float32; half an hour

A share of the rows is selected, such as the text of answers that are mostly speech: we select before the head, torch's
log-softmax is taken of all rows. TRL's head, too, scores all rows, and only those selected where it has Triton, as its
trainer does. Each variant runs in fresh processes, in turn, so that a busy moment of the machine meets all of them.
Memory is the growth of the process's peak (on a GPU, of its allocator's) over a forward and backward pass, less the
weight gradient, which everyone needs. Time is the median of all passes. "frozen head" is LoRA's case: no gradient for
the head. TRL takes part where it is installed.
Writes benchmarks/results/logprobs.json and the table in docs/losses.md.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import plain

RESULT = Path(__file__).parent / "results" / "logprobs.json"
PEERS = {"torch": "torch, full log_softmax", "trl": "TRL, chunked"}
SIZES = {"rows": 2560, "selected": 0.2, "vocabulary": 151_936, "width": 896, "passes": 3}
MIB = 2**20


def forward_with(variant: str):
    """(hidden, weight, targets, selected rows) → their log-probs."""
    if variant == "ours":
        from elocute.objectives.logprobs import selected_logprobs

        return lambda h, w, y, rows: selected_logprobs(h[rows], w, y[rows])
    if variant == "trl":
        from trl.kernels import ChunkedLogProbFunction

        def fused(h, w, y):
            return ChunkedLogProbFunction.apply(h, w, None, y, 1.0, 32768, None, 1.0, ())[0]

        compact = plain.device() == "cuda"
        return lambda h, w, y, rows: fused(h[rows], w, y[rows]) if compact else fused(h, w, y)[rows]
    return lambda h, w, y, rows: torch.log_softmax(h @ w.t(), -1).gather(1, y[:, None])[rows, 0]


def measure(variant: str, frozen: bool, rows: int, selected: float, vocabulary: int, width: int, passes: int) -> dict:
    """One process's numbers: seconds of each pass, extra MiB, and the log-probs' and gradients' checksums."""
    torch.manual_seed(0)
    torch.set_default_device(plain.device())
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.05).requires_grad_(not frozen)
    targets = torch.randint(vocabulary, (rows,))
    picked = torch.randperm(rows)[: round(selected * rows)].sort().values
    upstream = torch.randn(len(picked))
    forward = forward_with(variant)
    warm = [torch.randn(2, width, requires_grad=True), torch.randn(64, width, requires_grad=not frozen)]
    # Libraries load and threads start outside the measurement.
    forward(*warm, torch.tensor([0, 1]), torch.tensor([0, 1])).sum().backward()

    plain.synchronise()
    plain.start_peak()
    before, seconds = plain.peak_mib(), []
    for index in range(passes):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        logp = forward(hidden, weight, targets, picked)
        logp.backward(upstream)
        plain.synchronise()
        seconds.append(time.perf_counter() - start)
        if index == 0:
            extra = plain.peak_mib() - before - (0 if frozen else weight.numel() * weight.element_size() / MIB)
    check = [logp.detach().sum().item(), hidden.grad.abs().sum().item()]
    check += [] if frozen else [weight.grad.abs().sum().item()]
    return {"seconds": seconds, "extra_mib": extra, "check": check}


def compare(args) -> list[dict]:
    lines = []
    for frozen in (False, True):
        runs = {variant: [] for variant in ("ours", *PEERS)}
        for turn in range(args.rounds):
            for variant in runs:
                print(f"{'frozen' if frozen else 'trained'} head, round {turn + 1}: {variant}", file=sys.stderr)
                command = [
                    args.trl if variant == "trl" else sys.executable,
                    "-m",
                    "benchmarks.logprobs",
                    "--child",
                    variant,
                    *(["--frozen"] if frozen else []),
                ]
                sizes = [f"--{name}={getattr(args, name)}" for name in SIZES]
                done = subprocess.run(command + sizes, check=True, capture_output=True, text=True)
                runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
        lines += _lines(runs, frozen, args)
    return lines


def _lines(runs: dict, frozen: bool, args) -> list[dict]:
    size = f"{args.vocabulary:,} × {args.width} float32, {'frozen' if frozen else 'trained'} head"
    shape = f"{args.selected:.0%} of {args.rows} rows × {size}"
    seconds = {name: statistics.median(s for run in of for s in run["seconds"]) for name, of in runs.items()}
    memory = {name: max(run["extra_mib"] for run in of) for name, of in runs.items()}
    lines = []
    for peer in [name for name in runs if name != "ours"]:
        for ours, theirs in zip(runs["ours"][0]["check"], runs[peer][0]["check"], strict=True):
            if abs(ours - theirs) > 1e-4 * abs(theirs):
                raise SystemExit(f"{peer}: not the same result: {ours} and {theirs}")
        for what, values, count in (
            ("seconds", seconds, args.rounds * args.passes),
            ("extra MiB", memory, args.rounds),
        ):
            lines.append(
                {
                    "work": f"log-probs and gradients, {shape}: {what}",
                    "peer": PEERS[peer],
                    "ours": round(values["ours"], 3),
                    "theirs": round(values[peer], 3),
                    "ratio": round(values["ours"] / values[peer], 3),
                    "n": count,
                }
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (SIZES | {"rounds": 3}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--trl", default=plain.TRL, help="the Python of TRL's environment")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.frozen, **{name: getattr(args, name) for name in SIZES})))
        return
    from benchmarks.tables import provenance, write_table  # not in TRL's environment, which has no elocute

    versions = plain.versions_of(args.trl)
    lines = compare(args)
    for line in lines:
        print(f"{line['work']}: {line['ours']} against {line['theirs']} ({line['peer']}), ratio {line['ratio']}")
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    result = provenance("benchmarks.logprobs") | {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {kib / MIB:.0f} GiB",
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")} | versions,
        "rows": lines,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.output == RESULT:
        write_table("logprobs", markdown(result), Path("docs/losses.md"))


def markdown(result: dict) -> str:
    """The rows as a table: time and memory side by side."""
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; TRL {result['versions']['trl']}:",
        "",
        "| work | peer | ours | theirs | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(f"| {row['work']} | {row['peer']} | {row['ours']} | {row['theirs']} | {row['ratio']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
