"""The command line in processes of its own, several at a time."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from elocute.progress import RunProgress


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
