"""The engines of `sample` and `score`: rows a second in one process, with one worker on Ray and with two.

    python -m benchmarks.engines                 # some minutes; needs the extra ray
    python -m benchmarks.engines --prompts 16 --output seen.json    # to see it work

Every engine answers the same prompts with the starter model, a thread a process, and scores the answers by a judge who
only waits, as for a GPU or an endpoint elsewhere; all must write the same bytes. Each is run `--rounds` times, in turn,
in a process of its own; rows/s are without the start, which is all the rest of the time. `first process` is the CPU
time, for a row, of the one process that reads rows and writes the journal: it bounds the rows/s of any number of
workers. Its imports and Ray's own start are in it, so that many prompts are needed.
Writes benchmarks/results/engines.json and the tables in docs/many-machines.md.
"""

import argparse
import hashlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.tables import provenance, write_table

RESULT = Path(__file__).parent / "results" / "engines.json"
PAGE = Path("docs/many-machines.md")
RECIPE = "recipes/starter/wavalign.yaml"
SECONDS = 0.05
JUDGE = f"""
import time

def length(completions, **columns):
    time.sleep({SECONDS} * len(completions))
    return [min(len(str(one)), 100) / 100 for one in completions]
"""
ENGINES = {"local": 0, "ray, 1 worker": 1, "ray, 2 workers": 2}
ANSWERS = 4
SLOWER = 100
"""How many times slower than the starter model the worker of the second column on paper is."""


def write_rows(path: Path, prompts: int) -> None:
    with path.open("w") as file:
        for i in range(prompts):
            asked = [{"role": "user", "content": f"what is {i % 50} plus {i % 7}"}]
            file.write(json.dumps({"id": f"q{i}", "messages": asked, "answer": "six"}) + "\n")


def child(verb: str, workers: int, folder: Path) -> None:
    """Do the work in this process; print what it took."""
    from elocute.pipelines.sample import CandidateSampler
    from elocute.pipelines.score import CandidateScorer
    from elocute.recipe import load_recipe

    (folder / "judge.py").write_text(JUDGE)
    judge = f"rewards=[{{kind: function, name: length, function: {folder}/judge.py:length, low: 0, high: 1}}]"
    recipe = load_recipe(RECIPE, [judge, "rollout.prompts_per_step=4", f"rollout.group_size={ANSWERS}"])
    before, moments = os.times(), []

    def watch(stage: str, done: int, of: int, values: dict) -> None:
        if stage in ("prompts", "score"):
            moments.append((time.perf_counter(), done))

    began = time.perf_counter()
    if verb == "sample":
        CandidateSampler(recipe, folder / "rows.jsonl", folder / "out", n=ANSWERS, workers=workers).run(progress=watch)
    else:
        with CandidateScorer(recipe, folder / "rows.jsonl", folder / "out.jsonl", workers=workers) as job:
            job.run(progress=watch)
    ended, after = time.perf_counter(), os.times()
    (since, _), (until, rows) = moments[0], moments[-1]
    cpu = after.user + after.system - before.user - before.system
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"rows_s": rows / (until - since), "start": ended - began - until + since, "cpu": cpu, "rss": rss})
    )


def once(verb: str, workers: int, rows: Path) -> tuple[dict, str]:
    """What a run took, and the digest of what it wrote."""
    with tempfile.TemporaryDirectory(dir=rows.parent.parent) as name:
        folder = Path(name)
        source = rows.read_text()
        (folder / "rows.jsonl").write_text(source)
        if verb == "score":
            (folder / "audio").symlink_to(rows.parent / "audio")
        command = [sys.executable, "-m", "benchmarks.engines", "--child", verb, str(workers), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{verb} with {workers} workers failed")
        out = folder / ("out/candidates.jsonl" if verb == "sample" else "out.jsonl")
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        kept = rows.parent.parent / "sampled"
        if verb == "sample" and not kept.exists():
            (folder / "out").rename(kept)
    return json.loads(done.stdout.splitlines()[-1]), digest


def compare(verb: str, rows: Path, prompts: int, rounds: int) -> list[dict]:
    found, digests = {name: [] for name in ENGINES}, set()
    for turn, (name, workers) in itertools.product(range(rounds), ENGINES.items()):
        took, digest = once(verb, workers, rows)
        print(f"{verb}, round {turn + 1}, {name}: {took}", file=sys.stderr)
        found[name].append(took)
        digests.add(digest)
    if len(digests) > 1:
        raise SystemExit(f"{verb}: the engines did not write the same bytes")

    def middle(name: str, what: str) -> float:
        return statistics.median(took[what] for took in found[name])

    return [
        {
            "work": verb,
            "engine": name,
            "rows_s": middle(name, "rows_s"),
            "ratio": middle(name, "rows_s") / middle("local", "rows_s"),
            "start_s": middle(name, "start"),
            "cpu_ms_row": 1000 * middle(name, "cpu") / prompts,
            "peak_mib": middle(name, "rss"),
            "n": rounds,
        }
        for name in ENGINES
    ]


def markdown(result: dict) -> str:
    """What was measured, and what follows for more workers."""
    lines = [
        f"`{result['command']}`, {result['date']}, on {result['machine']}, Ray {result['versions']['ray']}; "
        f"{result['size']}; the middle of {result['rows'][0]['n']}; all engines wrote the same bytes:",
        "",
        "| work | engine | rows/s | of local | start, s | first process: CPU ms a row | its memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = f"{row['rows_s']:.1f} | {row['ratio']:.2f} | {row['start_s']:.0f} | {row['cpu_ms_row']:.1f}"
        lines.append(f"| {row['work']} | {row['engine']} | {cells} | {row['peak_mib']:.0f} |")
    lines += [
        "",
        "On paper, `sample`: rows/s = min(workers × rows/s of one, 1000 / CPU ms a row of the first process):",
        "",
    ]
    lines += [f"| workers | such workers | {SLOWER} times slower ones |", "|---|---|---|"]
    one, two = (row for row in result["rows"] if row["work"] == "sample" and row["engine"] != "local")
    most = 1000 / two["cpu_ms_row"]
    for count in (1, 2, 10, 100, 1000):
        rates = [min(count * one["rows_s"] / slower, most) for slower in (1, SLOWER)]
        cells = [f"{rate:.3g}{' (the first process)' if rate == most else ''}" for rate in rates]
        lines.append(f"| {count:,} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], int(args.child[1]), Path(args.child[2]))
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "given/rows.jsonl"
        rows.parent.mkdir()
        write_rows(rows, args.prompts)
        found = compare("sample", rows, args.prompts, args.rounds)
        scored = Path(name) / "sampled"
        (scored / "candidates.jsonl").rename(scored / "rows.jsonl")
        found += compare("score", scored / "rows.jsonl", args.prompts, args.rounds)
    result = provenance("benchmarks.engines")
    result["versions"]["ray"] = version("ray")
    result |= {"size": f"{args.prompts} prompts × {ANSWERS} answers of the starter model", "rows": found}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    if args.output == RESULT:
        write_table("engines", markdown(result), PAGE)


if __name__ == "__main__":
    main()
