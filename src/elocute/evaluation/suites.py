"""Likelihood suites in their official layouts: which sound file is the right one of a pair, from names and gold tables.

    swuggy      ZeroSpeech 2021: lexical/{dev,test}/*.wav and gold.csv (filename, id, voice, frequency, …, correct)
    sblimp      ZeroSpeech 2021: syntactic/{dev,test}/*.wav and gold.csv (filename, id, voice, type, subtype, …,
                correct)
    storycloze  SpokenStoryCloze (TWIST): a folder of N_STORY_correct.wav and N_STORY_incorrect.wav (N says nothing), or
                a folder of such folders, as sStoryCloze/ and tStoryCloze/
    salmon      SALMon: PART/sample_I_0.wav (right) and PART/sample_I_1.wav, up to eight parts

No order is ever taken from a directory listing. InputError, one line, names the file and what was expected of it.
"""

import bisect
import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elocute.data.files import write_atomically
from elocute.errors import InputError

BANDS = ("oov", "1-5", "6-20", "21-100", ">100")
"""sWUGGY's frequency bands as the official evaluator names them; it counts 5, 20 and 100 in the band above."""
_EDGES = (1, 5, 20, 100)

SALMON_PARTS = (
    "bg_alignment", "bg_all_consistency", "bg_domain_consistency", "gender_consistency", "rir_consistency",
    "sentiment_alignment", "sentiment_consistency", "speaker_consistency",
)  # fmt: skip

_STORY = re.compile(r"(?:\d+_)?(?P<item>.+)_(?P<side>correct|incorrect)")
_SAMPLE = re.compile(r"sample_(?P<item>\d+)_(?P<side>[01])")


@dataclass(frozen=True)
class Pair:
    """Two sound files; a good model finds `positive` likelier.

    item: pairs of one item (its voices) are averaged first. label: the row of the suite's table it counts in, or None.
    """

    positive: Path
    negative: Path
    item: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class Part:
    """What gets a number of its own (a split, a benchmark, a part of SALMon): its pairs and all its sound files.

    pairs is None for a split whose gold table is not public: its files are scored, and others evaluate them.
    gold: the table that tells the pairs; None where names do.
    """

    name: str
    files: tuple[Path, ...]
    pairs: tuple[Pair, ...] | None
    gold: Path | None = None


@dataclass(frozen=True)
class Suite:
    """folder: where its score files go. table: what the pairs' labels are, or None. labels: their order, if fixed."""

    folder: str
    read: Callable[[Path], list[Part]]
    table: str | None = None
    labels: tuple[str, ...] = ()


def read_swuggy(data: Path) -> list[Part]:
    """`data`: the ZeroSpeech 2021 folder, its lexical/ or one of the splits."""
    return [_split(folder, ("id",), "frequency", _band) for folder in _splits(data, "lexical")]


def read_sblimp(data: Path) -> list[Part]:
    """`data`: the ZeroSpeech 2021 folder, its syntactic/ or one of the splits."""
    return [_split(folder, ("type", "subtype", "id"), "type", str) for folder in _splits(data, "syntactic")]


def read_storycloze(data: Path) -> list[Part]:
    """`data`: one benchmark's folder of WAVs, or the folder of several."""
    expected = "N_STORY_correct.wav and N_STORY_incorrect.wav"
    folders = [data] if _sounds(data) else [folder for folder in _folders(data) if _sounds(folder)]
    if not folders:
        raise InputError(f"{data}: expected {expected} in it or in its folders")
    return [_named_pairs(folder, _STORY, "correct", expected) for folder in folders]


def read_salmon(data: Path) -> list[Part]:
    """`data`: SALMon's folder, with any of its eight parts, or one part."""
    expected = "sample_I_0.wav and sample_I_1.wav"
    there = [data / name for name in SALMON_PARTS if (data / name).is_dir()]
    if not there and not _sounds(data):
        raise InputError(f"{data}: expected one or more of SALMon's parts in it ({', '.join(SALMON_PARTS)})")
    return [_named_pairs(folder, _SAMPLE, "0", expected) for folder in there or [data]]


SUITES: Mapping[str, Suite] = {
    "swuggy": Suite("lexical", read_swuggy, "frequency", BANDS),
    "sblimp": Suite("syntactic", read_sblimp, "type"),
    "storycloze": Suite("storycloze", read_storycloze),
    "salmon": Suite("salmon", read_salmon),
}


# ---- pairs told by names -------------------------------------------------------------------------------------------


def _named_pairs(folder: Path, pattern: re.Pattern, right: str, expected: str) -> Part:
    sides: dict[str, dict[bool, Path]] = defaultdict(dict)
    for file in _sounds(folder):
        match = pattern.fullmatch(file.stem)
        if not match:
            raise InputError(f"{file}: expected a name like {expected}")
        side = sides[match["item"]]
        if (positive := match["side"] == right) in side:
            raise InputError(f"{file}: {side[positive].name} is already this side of {match['item']}")
        side[positive] = file
    if not sides:
        raise InputError(f"{folder}: expected {expected} in it")
    for item, side in sides.items():
        if len(side) < 2:
            there = next(iter(side.values()))
            raise InputError(f"{there}: its other side is missing: expected {expected} of {item}")
    pairs = tuple(Pair(side[True], side[False], (item,)) for item, side in sorted(sides.items()))
    return Part(folder.resolve().name, tuple(_sounds(folder)), pairs)


# ---- pairs told by a gold table ------------------------------------------------------------------------------------


def _splits(data: Path, task: str) -> list[Path]:
    if (data / "gold.csv").is_file():
        return [data]
    for home in (data / task, data):
        if splits := [home / name for name in ("dev", "test") if (home / name).is_dir()]:
            return splits
    raise InputError(f"{data}: expected {task}/dev/gold.csv in it, as in the ZeroSpeech 2021 dataset")


def _split(folder: Path, item: Sequence[str], table: str, label: Callable[[str], str | None]) -> Part:
    files = _sounds(folder)
    gold = folder / "gold.csv"
    if not gold.is_file():
        if not files:
            raise InputError(f"{folder}: expected sound files and gold.csv, there is neither")
        return Part(folder.resolve().name, tuple(files), None)
    rows = _read_gold(gold, ("filename", "voice", "correct", *item, table))
    _check_files(folder, files, rows)
    return Part(folder.resolve().name, tuple(files), tuple(_gold_pairs(gold, rows, item, table, label)), gold)


def _gold_pairs(
    gold: Path, rows: Sequence[dict], item: Sequence[str], table: str, label: Callable[[str], str | None]
) -> Iterable[Pair]:
    """A voice's several recordings of an item are paired in the table's order."""
    groups: dict[tuple, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
    for row in rows:
        groups[(*(row[name] for name in item), row["voice"])][row["correct"] == "0"].append(row)
    for group, (right, wrong) in groups.items():
        if len(right) != len(wrong):
            line = (right + wrong)[0]["line"]
            raise InputError(
                f"{gold}:{line}: {', '.join((*item, 'voice'))} {' '.join(group)}: expected as many rows with correct 1 "
                f"as with 0, found {len(right)} and {len(wrong)}"
            )
        for one, other in zip(right, wrong, strict=True):
            files = (gold.parent / f"{row['filename']}.wav" for row in (one, other))
            try:
                yield Pair(*files, group[:-1], label(one[table]))
            except ValueError:
                raise InputError(f"{gold}:{one['line']}: {table}: expected a number, got {one[table]!r}") from None


def _read_gold(path: Path, columns: Sequence[str]) -> list[dict]:
    """The table's rows as strings, with "line". InputError for a missing column, an empty field or a bad `correct`."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            rows = [row | {"line": reader.line_num} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table ({error})") from None
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{path}: expected a column {missing[0]!r}, found {', '.join(names) or 'none'}")
    if not rows:
        raise InputError(f"{path}: expected rows, the table has none")
    for row in rows:
        if empty := [name for name in columns if not row[name] and name != "frequency"]:
            raise InputError(f"{path}:{row['line']}: {empty[0]}: expected a value, got none")
        if row["correct"] not in ("0", "1"):
            raise InputError(f"{path}:{row['line']}: correct: expected 0 or 1, got {row['correct']!r}")
    return rows


def _check_files(folder: Path, files: Sequence[Path], rows: Sequence[dict]) -> None:
    there, named = {file.stem for file in files}, {row["filename"] for row in rows}
    if missing := sorted(named - there):
        raise InputError(
            f"{folder / missing[0]}.wav: named in gold.csv but not there ({len(missing)} of {len(named)} are missing)"
        )
    if extra := sorted(there - named):
        raise InputError(f"{folder / extra[0]}.wav: not named in gold.csv ({len(extra)} of {len(there)} are not)")


def _band(frequency: str) -> str | None:
    """Of a word's count in LibriSpeech; None when the table does not say it. ValueError for what is no number."""
    if not frequency:
        return None
    count = float(frequency)
    if not count >= 0:  # NaN too
        raise ValueError
    return BANDS[bisect.bisect_right(_EDGES, count)]


def _sounds(folder: Path) -> list[Path]:
    """A folder's WAVs, by name; hidden files aside (archives made on a Mac hold ._x.wav)."""
    return sorted(file for file in folder.glob("*.wav") if not file.name.startswith("."))


def _folders(data: Path) -> list[Path]:
    return sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []


# ---- score files ---------------------------------------------------------------------------------------------------


def write_scores(path: Path, scores: Mapping[Path, float]) -> None:
    """ZeroSpeech's score file: one line `<file> <score>` a WAV, without folder and ending; as exact as a float is."""
    lines = (f"{file.stem} {score!r}\n" for file, score in sorted(scores.items()))
    write_atomically(path, "".join(lines).encode())


def read_scores(path: Path, folder: Path) -> dict[Path, float]:
    """What `write_scores` wrote, for the WAVs of `folder`. InputError names the line that is no score."""
    scores = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            name, value = line.split(" ")
            scores[folder / f"{name}.wav"] = float(value)
        except ValueError:
            raise InputError(f"{path}:{number}: expected <file> <score>, got {line!r}") from None
        if not math.isfinite(scores[folder / f"{name}.wav"]):
            raise InputError(f"{path}:{number}: expected a finite score, got {value}")
    return scores
