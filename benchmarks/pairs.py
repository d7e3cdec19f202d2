"""Candidates to pairs: rows a second and memory, against a straightforward builder with json and heapq.

    python -m benchmarks.pairs                      # 125,000 prompts × 8 candidates; some minutes, 2 GB of disk
    python -m benchmarks.pairs --prompts 2000 --output seen.json    # to see it work

Three files of the same size in rows: WavAlign's rows as JSON lines, the same as one JSON array, and rows as `elocute
score` writes them, with units. Both builders run in turn, each in a fresh process; seconds are from the call to the
written file, worker processes included. Memory is the peak of the resident memory of all processes of a builder,
looked at every 20 ms. Both must choose the same pairs with the same weights.
Writes benchmarks/results/pairs.json and the table in docs/preference-data.md.
"""

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.tables import provenance, write_table

RESULT = Path(__file__).parent / "results" / "pairs.json"
WORKS = {
    "lines": "WavAlign's rows, JSON lines",
    "array": "WavAlign's rows, one JSON array",
    "units": "rows of `elocute score`, 250 units an answer",
}
PEER = "json and heapq, all pairs in memory"
MIB = 2**20


def make_rows(kind: str, prompts: int, candidates: int, path: Path, seed: int = 0) -> None:
    """Write candidate rows, the same for the same numbers."""
    draw = random.Random(seed)
    words = " ".join(draw.choices([f"w{n}" for n in range(500)], k=20_000))
    units = draw.choices(range(500), k=20_000)

    def text(least: int, most: int) -> str:
        start = draw.randrange(80_000 - most)
        return words[start : start + draw.randint(least, most)].strip()

    def answer(prompt: str, number: int) -> dict:
        made = {"output-text": text(60, 240), "output-audio": f"audio/{prompt}-{number}.wav"}
        if kind == "units":
            start = draw.randrange(len(units) - 250)
            made |= {"output-units": units[start : start + 250], "seed": draw.getrandbits(31), "broken": None}
            made |= {"seconds": 4.0, "score": round(draw.random(), 4), "outcome": {"kind": "scored"}}
            made |= {"scores": {"right": 1.0}, "measures": {"auto_bleu": round(draw.random() / 5, 4)}}
        scores = {"semantic_score": draw.randint(1, 5), "paralinguistic_score": draw.randint(1, 5)}
        return made | {"gemini_score": scores}

    with open(path, "w") as file:
        for number in range(prompts):
            prompt = f"q{number:07d}"
            row = {
                "id": prompt,
                "messages": [
                    {"role": "system", "content": "You answer by voice."},
                    {"role": "user", "content": "<|audio|>"},
                ],
                "audios": [f"questions/{prompt}.wav"],
                "question_text": text(30, 90),
                "sft_target_text": text(60, 240),
                "sft_target_audio": f"targets/{prompt}.wav",
                "task_type": "s2s",
                "output": {str(one): answer(prompt, one) for one in range(candidates)},
            }
            if kind == "units":
                row["units_codec"] = "0" * 64
            before = "[" if number == 0 else ", "
            file.write(f"{before}{json.dumps(row)}" if kind == "array" else json.dumps(row) + "\n")
        file.write("]" if kind == "array" else "")


def naive(source: str, output: str) -> None:
    """Best against worst by the sum of the two scores, as one writes it down: ties, drops, weights, nothing checked."""
    with open(source) as file:
        rows = json.load(file) if file.read(1) == "[" and not file.seek(0) else _lines(source)
        pairs, dropped = [], {}
        for number, row in enumerate(rows):
            ranked = []
            for key, one in row.pop("output").items():
                scores = one.get("gemini_score")
                if scores and not one.get("broken"):
                    a, b = scores["semantic_score"], scores["paralinguistic_score"]
                    ranked.append((-a - b, -a, -b, len(one["output-text"]), key, one))
            if len(ranked) < 2:
                dropped["few"] = dropped.get("few", 0) + 1
                continue
            best = heapq.nsmallest(1, ranked)[0]
            worst = heapq.nlargest(1, ranked)[0]
            gap = worst[0] - best[0]
            if gap < 1 or best[5]["output-text"] == worst[5]["output-text"]:
                dropped["gap"] = dropped.get("gap", 0) + 1
                continue
            row["audios"] = [os.path.join("..", path) for path in row["audios"]]
            for field, one in (("sft_target", best[5]), ("rejected", worst[5])):
                row[f"{field}_text"] = one["output-text"]
                row[f"{field}_audio"] = os.path.join("..", one["output-audio"])
                if one.get("output-units"):
                    row[f"{field}_units"] = one["output-units"]
            row |= {"chosen_score": -best[0], "rejected_score": -worst[0], "score_gap": gap}
            row |= {"chosen_key": best[4], "rejected_key": worst[4]}
            heapq.heappush(pairs, (-gap, number, row))
    mean = sum(-pair[0] for pair in pairs) / len(pairs)
    with open(output, "w") as file:
        for gap, _, row in sorted(pairs, key=lambda pair: pair[1]):
            file.write(json.dumps(row | {"weight": -gap / mean}) + "\n")


def _lines(source: str):
    with open(source) as file:
        for line in file:
            yield json.loads(line)


def ours(source: str, output: str) -> None:
    from elocute.pipelines.pairs.build import build_pairs
    from elocute.pipelines.pairs.options import PairOptions

    build_pairs(PairOptions(input=source, output=output))


def child(builder: str, source: str, output: str) -> None:
    """One builder in this process; prints its seconds."""
    start = time.perf_counter()
    {"ours": ours, "theirs": naive}[builder](source, output)
    print(time.perf_counter() - start)


def measure(builder: str, source: Path, output: Path) -> tuple[float, float]:
    """(seconds, peak MiB) of a builder in a process of its own and those that it starts."""
    command = [sys.executable, "-m", "benchmarks.pairs", "--child", builder, str(source), str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, sum(one.memory_info().rss for one in (watched, *watched.children(recursive=True))))
        except psutil.NoSuchProcess:
            pass  # it ended while being looked at
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{builder} failed")
    return float(process.stdout.read()), peak / MIB


def check_same(mine: Path, theirs: Path) -> int:
    """The number of pairs; SystemExit unless both files hold the same ones."""
    count = 0
    with open(mine) as one, open(theirs) as other:
        for line, their_line in zip(one, other, strict=True):
            a, b = json.loads(line), json.loads(their_line)
            same = all(a[name] == b[name] for name in b if name != "weight")
            if not same or abs(a["weight"] - b["weight"]) > 1e-5 * b["weight"]:
                raise SystemExit(f"not the same pair: {a['id']}")
            count += 1
    return count


def compare(work: str, args, folder: Path) -> list[dict]:
    (folder / "out").mkdir(exist_ok=True)
    source, outputs = (
        folder / f"{work}.json",
        {name: folder / "out" / f"{work}.{name}.jsonl" for name in ("ours", "theirs")},
    )
    print(f"{WORKS[work]}: making {args.prompts:,} rows", file=sys.stderr)
    make_rows(work, args.prompts, args.candidates, source)
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for turn in range(args.rounds):
        for builder, found in runs.items():
            for path in (folder / "out").glob(f"{work}.{builder}.*"):
                path.unlink()
            found.append(measure(builder, source, outputs[builder]))
            seconds, peak = found[-1]
            print(f"{work}, round {turn + 1}: {builder} {seconds:.2f} s, {peak:.0f} MiB", file=sys.stderr)
    pairs = check_same(outputs["ours"], outputs["theirs"])
    source.unlink()
    rate = {
        name: args.prompts * args.candidates / statistics.median(seconds for seconds, _ in found)
        for name, found in runs.items()
    }
    peak = {name: max(peak for _, peak in found) for name, found in runs.items()}
    print(f"{work}: {pairs:,} pairs, the same ones", file=sys.stderr)
    return [
        _line(f"{WORKS[work]}: candidate rows/s", rate, args.rounds),
        _line(f"{WORKS[work]}: peak MiB, all processes", peak, args.rounds),
    ]


def _line(work: str, values: dict[str, float], n: int) -> dict:
    ours, theirs = values["ours"], values["theirs"]
    return {
        "work": work,
        "peer": PEER,
        "ours": round(ours),
        "theirs": round(theirs),
        "ratio": round(ours / theirs, 2),
        "n": n,
    }


def markdown(result: dict) -> str:
    """The rows as a table."""
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}; {result['size']}; peer: {PEER}:",
        "",
        "| work | ours | theirs | ratio |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row['work']} | {row['ours']:,} | {row['theirs']:,} | {row['ratio']} |" for row in result["rows"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 125_000), ("candidates", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--work", choices=WORKS, action="append", help="only this one; default: all three")
    parser.add_argument("--folder", type=Path, help="where the files go for a while; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for work in args.work or WORKS:
            rows += compare(work, args, Path(name))
    for row in rows:
        print(f"{row['work']}: {row['ours']:,} against {row['theirs']:,}, ratio {row['ratio']}")
    result = provenance("benchmarks.pairs") | {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("msgspec", "numpy")}},
        "size": f"{args.prompts:,} prompts × {args.candidates} candidates",
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.output == RESULT:
        write_table("pairs", markdown(result), Path("docs/preference-data.md"))


if __name__ == "__main__":
    main()
