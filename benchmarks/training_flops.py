"""Training's forward and backward pass: how much of the machine's matrix products it reaches, and how much is padding.

    python -m benchmarks.training_flops                          # the starter's network
    python -m benchmarks.training_flops --shape 0.5b --steps 2   # a random network of that shape; with a GPU also 7b
    python -m benchmarks.training_flops --padding                # nothing but that

The answers are those that the starter's TTS model gives to its own prompts, G each, of differing lengths; they are put
into passes as an update does it, and the log-probs of all their tokens are backpropagated. `of matmul peak`: the FLOPs
of the tokens, each prompt run once and nothing padded, a second, of those of the fastest matrix product measured in the
same run, before and after. Padding is all that was worked on beside these tokens, prompts run again included, of all
that was worked on; `in order` is what it would be with the answers as they were sampled and every pass full. The row of
pairs is the padding where each answer is compared with the next one, as in preference optimisation: the two stand in
one pass, and the shorter one's is not to be had back. Writes benchmarks/results/training_flops*.json and the table in
docs/performance.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch

from benchmarks import plain
from benchmarks.plain import Work
from elocute.rollout import Sampling, sample_groups
from elocute.training.passes import Limits, Piece, cut
from elocute.training.policy import Policy
from elocute.training.update import Rows


def answers(work: Work) -> Rows:
    """The starter's, prompt by prompt, in the order they were sampled."""
    lm = plain.speech_lm("starter", ends=True)
    encode = plain.tokenizer()
    prompts = [torch.tensor(encode(text)["input_ids"]) for text in plain.prompts(work.prompts)]
    lm.model.to(plain.device())
    seeds = [[row * work.group + i for i in range(work.group)] for row in range(work.prompts)]
    rollouts = [r for group in sample_groups(lm, prompts, seeds, Sampling(work.new)) for r in group]
    return Rows.of([r.prompt for r in rollouts], [r.tokens for r in rollouts])


def padding(rows: Rows, pieces: Sequence[Piece]) -> float:
    """The share of what is worked on that is none of the tokens."""
    prompts = {id(prompt): len(prompt) for prompt in rows.prompts}
    real = sum(map(len, rows.answers)) + sum(prompts.values())
    worked = 0
    for piece in pieces:
        asked = {id(rows.prompts[row]): len(rows.prompts[row]) for row in piece}
        worked += len(piece) * max(len(rows.answers[row]) for row in piece) + len(asked) * max(asked.values())
    return 1 - real / worked


def passes(rows: Rows, work: Work, *, pairs: bool) -> dict:
    """How many there are and what of them is padding; pairs: an answer and the next one stay together."""
    size = 2 if pairs else 1
    firsts = range(0, len(rows.answers), size)
    lengths = [max(map(len, rows.answers[row : row + size])) for row in firsts]
    prompts = [rows.prompts[row] for row in firsts]
    cuts = cut(prompts, lengths, Limits.of(plain.device(), work.micro), answers=size)
    pieces = [[size * place + one for place in piece for one in range(size)] for piece in cuts]
    order = range(len(rows.answers))
    full = [order[start : start + work.micro] for start in range(0, len(order), work.micro)]
    return {"pieces": pieces, "padding": padding(rows, pieces), "padding_in_order": padding(rows, full)}


def batch_flops(config, rows: Rows) -> float:
    """Of a forward and a backward pass of a network whose every weight is trained."""
    prompts = {id(prompt): len(prompt) for prompt in rows.prompts}
    layers = sum(plain.forward_flops(config, length, length / 2) for length in prompts.values())
    for prompt, answer in zip(rows.prompts, rows.answers, strict=True):
        layers += plain.forward_flops(config, len(answer), len(prompt) + len(answer) / 2)
    return 3 * (layers + plain.head_flops(config, sum(map(len, rows.answers))))


def measure(work: Work) -> dict:
    torch.set_num_threads(work.threads)
    cuda = plain.device() == "cuda"
    rows = answers(work)
    lengths = [len(answer) for answer in rows.answers]
    single, pairs = (passes(rows, work, pairs=both) for both in (False, True))
    dtype = torch.bfloat16 if cuda else torch.float32
    peak = plain.matmul_peak(dtype)
    trained = torch.bfloat16 if work.shape == "7b" else torch.float32  # in float32 it and its gradient do not fit
    lm = plain.speech_lm(work.shape, layers=work.layers, dtype=trained)
    lm.compute = dtype if cuda else None
    policy = Policy(lm).to(plain.device())
    selected = torch.ones_like(rows.padded.action)

    def step() -> None:
        policy.zero_grad()
        for piece in single["pieces"]:
            policy(rows.batch(piece, selected[piece], plain.device()))[0].sum().backward()

    step()
    plain.start_peak()
    seconds = [second for _ in range(work.steps) for second in plain.timed(step, 0, 1)]
    peak = max(peak, plain.matmul_peak(dtype))
    flops = batch_flops(lm.model.config, rows)
    return {
        "answer_tokens": {"mean": mean(lengths), "shortest": min(lengths), "longest": max(lengths)},
        **single,
        "pairs": pairs,
        "seconds": median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "n": len(seconds),
        "tokens_s": sum(lengths) / median(seconds),
        "matmul_gflops": peak / 1e9,
        "of_matmul_peak": flops / median(seconds) / peak,
        "peak_mib": plain.peak_mib(),
    }


def padded(of: dict) -> str:
    return f"{100 * of['padding']:.1f} % ({100 * of['padding_in_order']:.1f} %)"


def markdown(result: dict) -> str:
    work, found = result["work"], result["found"]
    lengths = found["answer_tokens"]
    network = work["shape"] + (f", {work['layers']} layers" if work["layers"] else "")
    spread = f"{found['lowest']:.2f} – {found['highest']:.2f}"

    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; {work['prompts']} prompts × {work['group']} "
        f"answers of {lengths['shortest']} – {lengths['longest']} tokens, {lengths['mean']:.0f} in the mean:",
        "",
        "| network | passes | padding (in order) | s (lowest – highest) | tokens/s | matmul GFLOP/s | of it | MiB |",
        "|---|---|---|---|---|---|---|---|",
        f"| {network} | {len(found['pieces'])} | {padded(found)} "
        f"| {found['seconds']:.2f} ({spread}) | {found['tokens_s']:.0f} | {found['matmul_gflops']:.0f} "
        f"| {100 * found['of_matmul_peak']:.0f} % | {found['peak_mib']:.0f} |",
        f"| {network}, pairs | {len(found['pairs']['pieces'])} | {padded(found['pairs'])} | – | – | – | – | – |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=plain.SHAPES, default="starter")
    parser.add_argument("--layers", type=int, help="of a random network; default its shape's")
    sizes = {"prompts": 8, "group": 8, "new": 384, "micro": 32, "steps": 5, "threads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--padding", action="store_true", help="only count it, and print it")
    parser.add_argument("--output", type=Path, help="the JSON to write; the page's table is then left alone")
    args = parser.parse_args()
    work = Work(**{name: getattr(args, name) for name in Work.__annotations__})
    if args.padding:
        rows = answers(work)
        for pairs, name in enumerate(("answers", "pairs")):
            found = passes(rows, work, pairs=bool(pairs))
            print(f"{name}: {padded(found)} in {len(found['pieces'])} passes")
        return
    result = plain.described("benchmarks.training_flops", work) | {"found": measure(work)}
    plain.publish(result, markdown(result), args.output)


if __name__ == "__main__":
    main()
