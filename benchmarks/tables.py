"""What benchmarks share: where and with what they were measured, means over seeds, tables in the pages."""

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from elocute.evaluation.statistics import mean_t_interval

README = Path("README.md")


def provenance(module: str) -> dict:
    """Command, date, machine and versions."""
    return {
        # --table only writes down what was measured before: the command is the one that measures.
        "command": " ".join([f"python -m {module}", *(word for word in sys.argv[1:] if word != "--table")]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "elocute")},
    }


def over_seeds(values: Sequence[float]) -> dict:
    """{mean, ci95 (half width, Student's t over seeds; None for one seed), per_seed}."""
    mean, half = mean_t_interval(values) if len(values) > 1 else (values[0], None)
    return {"mean": mean, "ci95": half, "per_seed": list(values)}


def percent(found: dict) -> str:
    """`41.5 ± 1.2`."""
    interval = "" if found["ci95"] is None else f" ± {100 * found['ci95']:.1f}"
    return f"{100 * found['mean']:.1f}{interval}"


def write_table(name: str, markdown: str, page: Path = README) -> None:
    """Put a benchmark's tables between its marks in a page."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{markdown}\n{end}{rest.split(end)[1]}")
