"""`elocute pairs`: a file of scored candidates of any size → preference pairs and a card that says what they are.

The input is done in parts of whole rows, each into files of its own in a folder beside the output. What is done is
done: killed at any moment, the same command goes on and ends with the same bytes. A second, short pass knows all pairs:
it drops what is too many and weighs each pair by its margin. Only then does the output appear, whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from elocute.data.files import write_atomically
from elocute.errors import InputError, RunError
from elocute.pipelines.pairs.card import Card, card_path, to_json
from elocute.pipelines.pairs.options import PairOptions, check_options
from elocute.pipelines.pairs.parts import MOST_BAD, Made, PartMaker
from elocute.pipelines.pairs.pool import Workers, worker_count
from elocute.pipelines.pairs.split import Source, Span
from elocute.pipelines.pairs.worker import Job

PART_BYTES = 8 << 20
ENDS = 64 << 10  # bytes at the beginning and at the end that, with size and date, tell an input from another
Progress = Callable[[str, int, int, dict], None]
"""Called with (stage, done, of, values)."""


def build_pairs(
    options: PairOptions,
    *,
    progress: Progress = lambda *_: None,
    workers: int | None = None,
    part_bytes: int = PART_BYTES,
) -> Card:
    """Write the pairs to `options.output`, their card beside them; returns the card (card.py).

    Done already, by the same command on the same input: only the card is returned. Raises InputError for options,
    malformed rows (all of them by line), an output that another command made, and when no pair is left.
    """
    check_options(options)
    source = Source(options.input)
    origin = _origin(options, source)
    if (card := _finished(options, origin)) is not None:
        shutil.rmtree(_unfinished(options), ignore_errors=True)  # killed just before its own end
        return card
    with _folder(options, origin | {"part_bytes": part_bytes}) as folder:
        job = Job(options, str(folder), source.array)
        with Workers(job, workers or worker_count(source.size)) as pool:
            from elocute.pipelines.pairs.finish import Finish  # here: it takes as long as the workers to be there

            spans, made = _made(source, pool, part_bytes, progress)
        return Finish(options, source, folder, spans, made).run(origin)


def look_at_pairs(options: PairOptions, part_bytes: int = PART_BYTES) -> Made:
    """Check all options and the input's first part, and write nothing: what that part gives."""
    check_options(options)
    source = Source(options.input)
    _finished(options, _origin(options, source))
    span = next(iter(source.spans(part_bytes)), None)
    if span is None:
        raise InputError(f"{options.input}: expected at least one row, the file holds none")
    made = PartMaker(options, Path(), source.array).look(span)
    _refuse_bad(source, [(span, 0, made)])
    return made


def _made(source: Source, pool: Workers, part_bytes: int, progress: Progress) -> tuple[list[Span], list[Made]]:
    """All parts, and what each gave. InputError for malformed rows."""
    spans, parts, bad = [], [], []
    rows = 0
    for span, made in pool.make(source.spans(part_bytes)):
        spans.append(span)
        parts.append(made)
        if made.bad:
            bad.append((span, rows, made))
        if sum(len(found.bad) for _, _, found in bad) >= MOST_BAD:
            break
        rows += made.rows
        if not bad:
            done, of = (-(-size // 2**20) for size in (span.end, source.size))
            progress("MiB of candidates", done, of, {})
    _refuse_bad(source, bad)
    if not rows:
        raise InputError(f"{source.path}: expected at least one row, the file holds none")
    return spans, parts


def _refuse_bad(source: Source, bad: list[tuple[Span, int, Made]]) -> None:
    """InputError for malformed rows, if there are any; with each part, how many rows are before it."""
    said = []
    for span, before, made in bad:
        for row, problem in made.bad:
            where, _ = source.row(span, before, row)
            said.append(f"{where}: {problem}")
    if said:
        more = ["… and maybe more behind these"] if len(said) >= MOST_BAD else []
        raise InputError("\n".join(said[:MOST_BAD] + more))


def _origin(options: PairOptions, source: Source) -> dict[str, Any]:
    """By which command and from what the pairs are made."""
    stat = os.stat(source.path)
    with open(source.path, "rb") as file:
        ends = file.read(ENDS)
        file.seek(max(0, source.size - ENDS))
        ends += file.read()
    return {
        "elocute": version("elocute"),
        "options": msgspec.to_builtins(options),
        "input": {
            "bytes": source.size,
            "modified_ns": stat.st_mtime_ns,
            "sha256_of_ends": hashlib.sha256(ends).hexdigest(),
        },
    }


def _finished(options: PairOptions, origin: dict[str, Any]) -> Card | None:
    """The card if all is done already. InputError when what is there was made otherwise."""
    card_file = card_path(options.output, "json")
    card = None
    if card_file.exists():
        try:
            card = json.loads(card_file.read_text())
        except ValueError as error:
            raise InputError(f"{card_file}: not JSON ({error}); choose another --output") from None
    ours = isinstance(card, dict) and card.get("origin") == origin
    if ours and os.path.exists(options.output) and os.path.getsize(options.output) == card["output"]["bytes"]:
        return card
    for path in (Path(options.output), *(card_path(options.output, suffix) for suffix in ("json", "md", "html"))):
        if path.exists() and not (ours and path != Path(options.output)):
            raise InputError(f"{path}: there already, and not made by this command; choose another --output")
    return None


@contextlib.contextmanager
def _folder(options: PairOptions, origin: dict[str, Any]) -> Iterator[Path]:
    """The folder of finished parts, for this process alone. It stays when the work is interrupted, and only then."""
    folder = _unfinished(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{options.output}: another process is writing it") from None
        if _read(folder / "origin.json") != to_json(origin):
            for path in folder.iterdir():  # parts of other pairs than these
                if path.name != "lock":
                    path.unlink()
            write_atomically(folder / "origin.json", to_json(origin))
        try:
            yield folder
        except (KeyboardInterrupt, RunError):
            raise
        except InputError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _unfinished(options: PairOptions) -> Path:
    output = Path(options.output)
    return output.with_name(f".{output.name}.unfinished")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
