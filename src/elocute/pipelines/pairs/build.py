"""`elocute pairs`: a file of scored candidates of any size → preference pairs and a card that says what they are.

The input is done in parts; a journal beside the output says which are done. Killed at any moment, the same command goes
on and ends with the same bytes. A second, short pass knows all pairs: it drops what is too many and weighs each pair by
its margin. Only then does the output appear, whole. Memory: some parts, and about 100 bytes a pair.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import elocute
from elocute.errors import InputError
from elocute.pipelines.journal import Journal, Writer, alone
from elocute.pipelines.pairs.card import Card, card_path
from elocute.pipelines.pairs.options import PairOptions, check_options
from elocute.pipelines.pairs.parts import MOST_BAD, Made, PartMaker, part_makers, worker_count
from elocute.pipelines.pairs.source import Source
from elocute.progress import Progress

PART_BYTES = 512 << 10  # decoded at once: small enough for a processor's cache
ENDS = 64 << 10  # bytes at the beginning and at the end that, with size and date, tell an input from another


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
    total, parts = Made(), []

    def take(made: Made) -> None:
        total.add(made)
        parts.append(made)

    with _journal(options, origin, take) as journal:
        folder = journal.path.parent
        with contextlib.closing(_parts(options, source, folder, total, part_bytes, workers)) as all_made:
            for made in all_made:
                journal.append([msgspec.to_builtins(made)])
                take(made)
                if len(total.bad) >= MOST_BAD:
                    break
                if not total.bad:
                    progress("MiB of candidates", -(-total.end // 2**20), -(-source.size // 2**20), {})
        _refuse_bad(source, total)
        from elocute.pipelines.pairs.merge import merge

        return merge(options, source, folder, total, parts, origin)


def _parts(
    options: PairOptions, source: Source, folder: Path, total: Made, size: int, workers: int | None
) -> Iterator[Made]:
    """What each part behind `total`, which counts them, gives. An array's are guessed until a guess is wrong."""
    for guess in (True, False) if source.array else (False,):
        count = workers or worker_count(source.size - total.end)
        with part_makers((options, str(folder), source.array), count) as make:
            import elocute.pipelines.pairs.merge  # noqa: F401 numpy takes as long to be there as the workers

            start = total.end
            for made in make(source.guessed_spans(size, start) if guess else source.spans(size, start, total.rows)):
                if made.torn:
                    break
                yield made


def look_at_pairs(options: PairOptions, part_bytes: int = PART_BYTES) -> Made:
    """Check all options and the input's first part, and write nothing: what that part gives."""
    check_options(options)
    source = Source(options.input)
    _finished(options, _origin(options, source))
    maker, span = PartMaker(options, "", source.array), next(source.spans(part_bytes), None)
    made = maker.look(span)[0] if span else Made()
    _refuse_bad(source, made)
    return made


def _refuse_bad(source: Source, made: Made) -> None:
    """InputError for malformed rows, or for none at all."""
    if not made.rows:
        raise InputError(f"{source.path}: expected at least one row, the file holds none")
    bad = made.bad[:MOST_BAD]
    if bad:
        places = source.places({row for row, _ in bad})
        more = ["… and maybe more behind these"] if len(bad) == MOST_BAD else []
        raise InputError("\n".join([f"{places[row][0]}: {problem}" for row, problem in bad] + more))


def _origin(options: PairOptions, source: Source) -> dict[str, Any]:
    """By which command and from what the pairs are made."""
    with open(source.path, "rb") as file:
        ends = file.read(ENDS)
        file.seek(max(0, source.size - ENDS))
        ends += file.read()
    return {
        "elocute": elocute.__version__,
        "options": msgspec.to_builtins(options),
        "input": {
            "bytes": source.size,
            "modified_ns": os.stat(source.path).st_mtime_ns,
            "sha256_of_ends": hashlib.sha256(ends).hexdigest(),
        },
    }


def _finished(options: PairOptions, origin: dict[str, Any]) -> Card | None:
    """The card if all is done already. InputError when what is there was made otherwise."""
    output, files = Path(options.output), [card_path(options.output, suffix) for suffix in ("json", "md", "html")]
    try:
        card = json.loads(files[0].read_text()) if files[0].exists() else None
    except ValueError as error:
        raise InputError(f"{files[0]}: not JSON ({error}); choose another --output") from None
    ours = isinstance(card, dict) and card.get("origin") == origin
    if ours and output.exists() and output.stat().st_size == card["output"]["bytes"]:
        return card
    for path in [output] if ours else [output, *files]:
        if path.exists():
            raise InputError(f"{path}: there already, and not made by this command; choose another --output")
    return None


@contextlib.contextmanager
def _journal(options: PairOptions, origin: dict[str, Any], take: Callable[[Made], None]) -> Iterator[Writer]:
    """The journal of parts, a folder's for this process alone, open behind those that are done, which `take` gets.

    The folder stays when the work is interrupted, and only then.
    """
    folder = _unfinished(options)
    with alone(folder / "lock", options.output):
        journal = Journal(folder / "parts.jsonl", {"made_by": "elocute pairs"} | origin)
        try:
            journal.check(resume=True)
        except InputError:  # parts of other pairs than these
            for path in folder.iterdir():
                if path.name != "lock":
                    path.unlink()
        try:
            with journal.writing(lambda row: take(msgspec.convert(row, Made))) as writer:
                yield writer
        except InputError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _unfinished(options: PairOptions) -> Path:
    output = Path(options.output)
    return output.with_name(f".{output.name}.unfinished")
