"""A run's metrics, for tests that compare runs."""

import json
from pathlib import Path


def metrics(run: Path) -> list[dict]:
    """The lines without what was timed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "_per_s" not in k} for line in lines]
