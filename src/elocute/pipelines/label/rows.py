"""The rows that are labelled: data rows (data/rows.py), plain texts, or RLAIF-SPA's records, in one form.

A plain text is an object `{"text": …}`, with the path of its recording as `audio` if there is one; it becomes a row
whose user asks for that text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elocute.data.rows import AUDIO_MARK, each_row
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.pipelines.label.published import published_rows
from elocute.prosody.schema import Schema, given_labels

Fields = dict[str, Any]


@dataclass(frozen=True)
class LabelRow:
    """One row. `fields`: all that is written of it but its labels. `labels`: those it has and the schema knows.

    `unknown`: the labels it has besides, as "emotion: Humble", and what is wrong with each. `problem`: what else is
    wrong with the row, or None. `recording`: the sound file in which the text is spoken, or None.
    """

    where: str
    fields: Fields
    text: str
    labels: Mapping[str, str]
    unknown: Mapping[str, str]
    problem: str | None
    recording: Path | None


def label_rows(path: Path, schema: Schema, *, published: bool) -> Iterator[LabelRow]:
    """The rows of a file in order; InputError, at the end, for all rows that are none."""
    if published:
        for where, fields in published_rows(path, schema):
            yield _row(where, fields, fields["messages"][0]["content"], None, schema)
        return
    for fields, example in each_row(path, to_row=_from_text):
        yield _row(example.where, {**fields, "id": example.id}, _words(example), _recording(example), schema)


def _row(where: str, fields: Fields, text: str, recording: Path | None, schema: Schema) -> LabelRow:
    given, problem = fields.get("labels"), None
    if not isinstance(given, Mapping):
        if given not in (None, ""):
            problem = f"labels: expected an object of dimensions and their labels, got {given!r}"
        given = {}
    if not text:
        problem = "messages: expected words to speak in the last user's turn, or sft_target_text"
    given = given_labels(given)
    wrong = {name: what for name, label in given.items() if (what := schema.problem(name, label))}
    known = {name: label for name, label in given.items() if name not in wrong}
    unknown = {f"{name}: {given[name]}": what for name, what in wrong.items()}
    rest = {name: value for name, value in fields.items() if name != "labels"}
    return LabelRow(where, rest, text, known, unknown, problem, recording)


def _from_text(fields: Fields) -> Fields:
    if "messages" in fields or "text" not in fields:
        return fields
    text, audio = fields["text"], fields.get("audio")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text: expected the words to speak, got {text!r}")
    row = {name: value for name, value in fields.items() if name not in ("text", "audio")}
    spoken = {} if audio in (None, "") else {"sft_target_audio": audio}
    return {**row, "messages": [{"role": "user", "content": text.strip()}], **spoken}


def _words(example: Example) -> str:
    """What the labels are about: the answer's words where the row has an answer of its own, else the text asked for."""
    asked = example.messages[-1].content.replace(AUDIO_MARK, " ")
    return (example.target_text or asked).strip()


def _recording(example: Example) -> Path | None:
    ref = example.target_audio
    return ref.path if ref and ref.key is None and ref.path != Path(example.file) else None
