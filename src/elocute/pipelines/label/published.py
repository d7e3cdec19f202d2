"""RLAIF-SPA's published JSON → rows. It comes in two forms: an array of

    {"id": "3729-6852-0010", "text_number": 1, "text": "I NEVER HAD ANY FAMILY",
     "labels": "1. Structure: Problem Statement \\n2. Emotion: Desperate \\n3. Speech Speed: …\\n4. Tone: Exclamation"}

and, as its labeller writes it, objects one after the other:

    {"id": "sample_001", "sentence_labels": {"sentence_number": 1, "sentence": "After …", "labels": "1. Structure: …"}}

Read with tolerance: upper and lower case, spaces and underscores of labels; the numbers before dimensions, "Speech
Speed" for speed; of "Greeting/Introduction" and its like what stands before the slash; labels as an object; dimensions
that are missing. Nothing else: what is not understood is an error, and so is a label that the schema does not have.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elocute.errors import InputError
from elocute.prosody.schema import Schema

_LINE = re.compile(r"(?:\d+\.)?\s*([^:]+?)\s*:\s*(.*)")
_OTHER_NAMES = {"speech speed": "speed"}


def published_rows(path: Path, schema: Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each record, in order; a label that the schema does not know stays as it is written.

    Several sentences of one id become rows `id-1`, `id-2` …; raises one InputError for all bad records together.
    """
    records = list(_records(path))
    ids = Counter(record.get("id") for record in records if isinstance(record, dict) and _is_id(record.get("id")))
    bad, made, first_of = [], [], {}
    for number, record in enumerate(records):
        where = f"{path}: [{number}]"
        try:
            fields = _row(record, schema, ids)
            first = first_of.setdefault(fields["id"], number)
            if first != number:
                raise InputError(f"id: {fields['id']!r} is already the id of [{first}]")
        except InputError as error:
            bad.append(f"{where}: {error}")
        else:
            made.append((where, fields))
    if bad:
        raise InputError("\n".join(bad[:50] + [f"… and {len(bad) - 50} more bad records"] * (len(bad) > 50)))
    if not made:
        raise InputError(f"{path}: expected at least one record, the file holds none")
    yield from made


def _records(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    decoder, end = json.JSONDecoder(), 0
    try:
        if text.lstrip().startswith("["):
            yield from json.loads(text)
            return
        while start := re.compile(r"\s*(?=\S)").match(text, end):
            record, end = decoder.raw_decode(text, start.end())
            yield record
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: expected JSON: {getattr(error, 'msg', error)}") from None


def _row(record: Any, schema: Schema, ids: Counter) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError("expected an object with id, text and labels")
    rest = {name: value for name, value in record.items() if name not in ("id", "text", "labels", "sentence_labels")}
    of_sentence = record.get("sentence_labels")
    if isinstance(of_sentence, dict):
        number, text = of_sentence.get("sentence_number"), of_sentence.get("sentence")
        labels, rest = of_sentence.get("labels"), rest | {"sentence_number": number}
    else:
        number, text, labels = record.get("text_number"), record.get("text"), record.get("labels")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text: expected the words to speak, got {text!r}")
    if not _is_id(record.get("id")):
        raise InputError(f"id: expected text or an integer, got {record.get('id')!r}")
    several = ids[record["id"]] > 1
    if several and not isinstance(number, int):
        raise InputError(f"id: {record['id']!r} comes several times, without the numbers of its sentences")
    return {
        "id": f"{record['id']}-{number}" if several else str(record["id"]),
        "messages": [{"role": "user", "content": text.strip()}],
        "labels": _labels(labels, schema),
        **rest,
    }


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _labels(written: Any, schema: Schema) -> dict[str, str]:
    """A record's labels by the names of the schema."""
    if written is None:
        return {}
    if isinstance(written, str):
        pairs = [_pair(line) for line in written.splitlines() if line.strip()]
    elif isinstance(written, dict):
        pairs = list(written.items())
    else:
        raise InputError(f"labels: expected lines such as '2. Emotion: Neutral', got {written!r}")
    labels: dict[str, str] = {}
    for dimension, label in pairs:
        name = _plain(dimension).removesuffix(" label")
        name = _OTHER_NAMES.get(name, name)
        if name in labels:
            raise InputError(f"labels: {name} comes twice")
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"labels.{name}: expected a label, got {label!r}")
        labels[name] = _spelled(schema, name, label)
    return labels


def _pair(line: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line.strip())
    if not match:
        raise InputError(f"labels: expected lines such as '2. Emotion: Neutral', got {line.strip()!r}")
    return match[1], match[2]


def _spelled(schema: Schema, name: str, label: str) -> str:
    """The schema's label that this is in another spelling, or as it is written."""
    known = {_plain(one): one for one in schema.dimensions[name].labels} if name in schema.dimensions else {}
    plain = _plain(label)
    return known.get(plain) or known.get(plain.partition("/")[0].strip()) or label.strip()


def _plain(words: str) -> str:
    return " ".join(words.replace("_", " ").casefold().split())
