"""The command line in processes of its own, several at a time."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from elocute.progress import RunProgress


def arguments(doc: str, seeds: int, **more: int) -> argparse.Namespace:
    """What a reproduction is told: seeds, jobs, table, and `more` with their defaults. Each job gets its share of the
    cores."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"seeds": seeds, **more}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--table", action="store_true", help="only make the table anew from the runs that are there")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
    return args


def elocute(*words: object) -> None:
    """Run `elocute …`. SystemExit with its last words when it fails."""
    command = [sys.executable, "-m", "elocute.cli", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")


def do_all(label: str, work: Callable, items: Sequence, of: int, jobs: int) -> None:
    """`work` on every item, `jobs` at a time; they are the last ones of `of`."""
    with RunProgress(quiet=False) as progress, ThreadPoolExecutor(jobs) as pool:
        for index, _ in enumerate(pool.map(work, items)):
            progress(label, of - len(items) + index + 1, of, {})
