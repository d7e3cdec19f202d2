"""Rows with preferences for tests: the starter's own questions and answers, some with a rejected answer."""

import json
from pathlib import Path

DATA = Path("starter/data").resolve()


def preference_rows(count: int, *, first: int = 0, rejected=lambda index: True) -> list[dict]:
    """Rows whose answer to learn is their own; where `rejected` says so, the next row's answer is the rejected one."""
    lines = (DATA / "train.jsonl").read_text().splitlines()
    own: dict[str, dict] = {}
    for row in map(json.loads, lines[first:]):
        own.setdefault(row["sft_target_text"], row)  # no two answers are the same
    rows, others = list(own.values())[:count], list(own.values())[1 : count + 1]
    return [
        _row(row) | (_rejected(other) if rejected(index) else {})
        for index, (row, other) in enumerate(zip(rows, others, strict=True))
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(row: dict) -> dict:
    kept = {key: row[key] for key in ("id", "messages", "sft_target_text", "answer")}
    audio = {"audios": [f"{DATA}/{path}" for path in row["audios"]]}
    return kept | audio | {"sft_target_audio": f"{DATA}/{row['sft_target_audio']}"}


def _rejected(other: dict) -> dict:
    return {"rejected_text": other["sft_target_text"], "rejected_audio": f"{DATA}/{other['sft_target_audio']}"}
