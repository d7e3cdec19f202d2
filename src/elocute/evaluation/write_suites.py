"""Likelihood suites of one's own, written in the official layouts that suites.py reads."""

import csv
import hashlib
import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from elocute.data.files import write_atomically


def write_gold_suite(folder: Path, recordings: Iterable[tuple[Path, Mapping[str, object]]]) -> None:
    """A split of sWUGGY or sBLIMP: WAVs under names that say nothing, and gold.csv.

    recordings: sound file and its row of the table without `filename` (id, voice, correct, …), the same columns in all.
    """
    rows = [
        {"filename": hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:12], "from": path, **row}
        for path, row in recordings
    ]
    if len({row["filename"] for row in rows}) < len(rows):
        raise ValueError("two recordings have the same row")
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(row.pop("from"), folder / f"{row['filename']}.wav")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "gold.csv", table.getvalue().encode())


def write_storycloze(folder: Path, stories: Mapping[str, tuple[Path, Path]]) -> None:
    """A StoryCloze benchmark; stories: name → (sound file with the right ending, with the wrong one)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (story, (right, wrong)) in enumerate(stories.items()):
        shutil.copyfile(right, folder / f"{2 * number}_{story}_correct.wav")
        shutil.copyfile(wrong, folder / f"{2 * number + 1}_{story}_incorrect.wav")


def write_salmon_part(folder: Path, pairs: Iterable[tuple[Path, Path]]) -> None:
    """A part of SALMon; pairs: (consistent sound file, inconsistent one)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(pairs):
        for side, path in enumerate(pair):
            shutil.copyfile(path, folder / f"sample_{number}_{side}.wav")
