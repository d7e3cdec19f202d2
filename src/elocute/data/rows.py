"""JSONL rows → Examples. Every bad row is reported with its line; nothing is dropped and nothing is made up.

The schema (any other field is kept in `Example.columns`; `null` and "" mean that a field is missing):

    messages          [{"role": "system" | "user" | "assistant", "content": str}, …]; `<|audio|>` marks audio's place
    audios            [path, …] in the order of the marks
    sft_target_text, sft_target_audio   the answer to learn
    rejected_text, rejected_audio       the answer to unlearn
    sft_target_units, rejected_units    [int, …], or frames [[int, …], …] of a codec of several codebooks: the answer's
                      very units, in place of its encoded audio
    units_codec       digest of the codec that they are of
    sft_target_tokens, rejected_tokens  [int, …] beside the units: all that the model sampled, its text too, in its ids
    sft_target_cut, rejected_cut        bool: the answer's speech was stopped before its end
    question_text     what a judge reads in place of the question's audio
    task_type, id     str

A path is relative to the rows' own folder. It names a sound file, or a sequence in a store of encoded audio:
`units.safetensors#key`. Messages that end with an assistant's turn end with the answer: that turn leaves the messages,
and its text and audio are the target unless `sft_target_text` and `sft_target_audio` say otherwise.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from elocute.data.types import AudioRef, Example, Message
from elocute.data.units import UnitStore, misfit
from elocute.errors import InputError

AUDIO_MARK = "<|audio|>"
ROLES = ("system", "user", "assistant")
NUMBERS = ("chosen_score", "rejected_score", "score_gap")
NAMED = {
    "messages",
    "audios",
    "sft_target_text",
    "sft_target_audio",
    "rejected_text",
    "rejected_audio",
    "sft_target_units",
    "rejected_units",
    "sft_target_tokens",
    "rejected_tokens",
    "units_codec",
    "sft_target_cut",
    "rejected_cut",
    "question_text",
    "task_type",
    "id",
}
MOST_REPORTED = 50


class _BadRow(Exception):
    """What is wrong with a row: `field: what was expected`, for all its bad fields."""


def read_rows(path: str | Path, prompt_seconds: float | None = None, *, check_audio: bool = True) -> list[Example]:
    """The rows of a JSONL file, in order; blank lines are allowed.

    A row without `id` gets one made from its content. `prompt_seconds`: of the prompt's sound files, only the first
    seconds. With `check_audio` all audio that rows name must be there. Raises one InputError for all bad rows together,
    one line each: `file:line: field: what was expected`.
    """
    return [example for _, example in each_row(path, prompt_seconds, check_audio=check_audio)]


def each_row(
    path: str | Path,
    prompt_seconds: float | None = None,
    *,
    check_audio: bool = True,
    to_row: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields,
) -> Iterator[tuple[dict[str, Any], Example]]:
    """What `read_rows` reads, one by one: a row's fields as they stand in the file, and the Example.

    Bad rows are reported at the end: who acts on rows before it goes through them once to check them. The memory
    needed is that of the ids. `to_row` makes a row of what has another form; it may raise InputError.
    """
    path = Path(path)
    sources = _AudioSources(path, check_audio, prompt_seconds)
    bad: list[str] = []
    copies: Counter[str] = Counter()
    line_of: dict[str, int] = {}
    for line, raw in _lines(path):
        try:
            fields = _shaped(_parse(raw), to_row)
            example = _Row(fields, sources).example(copies, line)
            first = line_of.setdefault(example.id, line)
            if first != line:
                raise _BadRow(f"id: {example.id!r} is already the id of line {first}")
        except _BadRow as error:
            bad.append(f"{path}:{line}: {error}")
        else:
            yield fields, example
    _report(bad)
    if not line_of:
        raise InputError(f"{path}: expected at least one row, the file holds none")


def check_rows(rows: Iterable[Any], check: Callable[[Any], Any]) -> None:
    """Call `check` on every row, whatever stands for it; one InputError for all rows that raise one, a line each."""
    bad = []
    for row in rows:
        try:
            check(row)
        except InputError as error:
            bad.append(str(error))
    _report(bad)


def _report(bad: list[str]) -> None:
    if bad:
        more = [f"… and {len(bad) - MOST_REPORTED} more bad rows"] if len(bad) > MOST_REPORTED else []
        raise InputError("\n".join(bad[:MOST_REPORTED] + more))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. Only a newline ends a line: JSON may hold U+2028 and its like as they are."""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _parse(raw: bytes) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON number")

    try:
        # Without its newline: JSON that ends too early is wrong at its end, not at column 1 of a next line.
        fields = json.loads(raw.rstrip(b"\r\n").decode(), parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise _BadRow(f"row: expected JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise _BadRow(f"row: expected UTF-8 text: byte {error.start + 1} is not") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"row: expected JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _BadRow(f"row: expected a JSON object, got {_kind(fields)}")
    return fields


def _shaped(fields: dict[str, Any], to_row: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        return to_row(fields)
    except InputError as error:
        raise _BadRow(str(error)) from None


class _AudioSources:
    """Finds the audio that rows name."""

    def __init__(self, file: Path, check: bool, prompt_seconds: float | None):
        self.file = file
        self._folder = file.parent
        self._check = check
        self._prompt_seconds = prompt_seconds
        self._keys: dict[Path, frozenset[str]] = {}

    def find(self, reference: str) -> AudioRef:
        """Raises InputError when there is no such audio."""
        name, is_store, key = reference.partition(".safetensors#")
        if not is_store:
            return self._sound_file(reference)
        ref = AudioRef(self._folder / f"{name}.safetensors", key)
        if self._check and ref.key not in self._keys_of(ref.path):
            raise InputError(f"{ref.path} holds no encoded audio called {key!r}")
        return ref

    def cut(self, ref: AudioRef) -> AudioRef:
        """A prompt's audio as far as the prompt goes. Raises InputError for a sequence in a store."""
        if self._prompt_seconds is None:
            return ref
        if ref.key is not None:
            raise InputError(f"expected a sound file, for prompt_seconds cuts before anything is encoded, got {ref}")
        return replace(ref, seconds=self._prompt_seconds)

    def _sound_file(self, reference: str) -> AudioRef:
        if reference.endswith(".safetensors"):
            raise InputError(f"expected a key after the store's name: {reference}#key")
        ref = AudioRef(self._folder / reference)
        if self._check and not os.path.isfile(ref.path):  # unlike Path's, False for any impossible name
            raise InputError(f"audio file not found: {ref.path}")
        return ref

    def _keys_of(self, store: Path) -> frozenset[str]:
        if store not in self._keys:
            self._keys[store] = UnitStore(store).keys()
        return self._keys[store]


class _Row:
    """One row being checked. `problems` gathers what is wrong with it, so that all of it is said at once."""

    def __init__(self, fields: dict[str, Any], sources: _AudioSources):
        self.fields = fields
        self.sources = sources
        self.problems: list[str] = []

    def example(self, copies: Counter[str], line: int) -> Example:
        """The row as an Example. `copies` counts the ids made from content so far. Raises _BadRow."""
        messages, audios = self.conversation()
        closing_text, closing_audio = self.closing_answer(messages, audios)
        if not messages or messages[-1].role != "user":
            self.problem("messages", "a user's turn before the answer", "none")
        for name in NUMBERS:
            self.number(name)
        example = Example(
            id=self.id(copies),
            messages=tuple(messages),
            audios=tuple(self.prompt_audios(audios)),
            target_text=self.answer("sft_target_text") or closing_text,
            target_audio=self.spoken("sft_target", closing_audio),
            rejected_text=self.answer("rejected_text"),
            rejected_audio=self.spoken("rejected", None),
            question_text=self.text("question_text"),
            task_type=self.text("task_type"),
            columns={name: value for name, value in self.fields.items() if name not in NAMED},
            file=str(self.sources.file),
            line=line,
        )
        if self.problems:
            raise _BadRow("; ".join(self.problems))
        return example

    def problem(self, name: str, expected: str, got: Any) -> None:
        self.problems.append(f"{name}: expected {expected}, got {got}")

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return self.checked_text(name, value) or None if value is not None else None

    def checked_text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            self.problem(name, "a string", _kind(value))
            return ""
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.problem(name, "Unicode text", "half of a surrogate pair")
        return value

    def answer(self, name: str) -> str | None:
        """An answer's text; its audio stands in a field of its own, so a mark for it says nothing and goes."""
        text = self.text(name)
        return text and without_marks(text)

    def number(self, name: str) -> None:
        value = self.fields.get(name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.problem(name, "a finite number", json.dumps(value))

    def id(self, copies: Counter[str]) -> str:
        """The row's id, or one made of its content: the same wherever the row stands; its second copy gets `-2` …"""
        given = self.fields.get("id")
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        if given is not None and (text := self.checked_text("id", given)):
            return text
        made = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:16]
        copies[made] += 1
        return made if copies[made] == 1 else f"{made}-{copies[made]}"

    def spoken(self, answer: str, closing: AudioRef | None) -> AudioRef | None:
        """An answer's speech: its units if the row has them, else its audio, else the closing turn's audio."""
        reference, units = self.text(f"{answer}_audio"), self.units(f"{answer}_units")
        audio = (self.found(f"{answer}_audio", reference) if reference else None) or closing
        tokens, cut = self.units(f"{answer}_tokens"), self.flag(f"{answer}_cut")
        if tokens and not units:
            self.problem(f"{answer}_units", f"the units that are in {answer}_tokens", "none")
        if units:
            codec = self.text("units_codec")
            if codec is None:
                self.problem("units_codec", f"the digest of the codec that {answer}_units are of", "null")
            audio = replace(audio or AudioRef(self.sources.file), units=units, tokens=tokens, codec=codec)
        return audio and replace(audio, cut=cut)

    def units(self, name: str) -> tuple | None:
        values = self.items(name)
        if (place := misfit(values)) is not None:
            expected = "a unit (an integer, at least 0) or a frame of as many as the first"
            self.problem(f"{name}[{place}]", expected, json.dumps(values[place]))
            return None
        if not values and self.fields.get(name) == []:
            self.problem(name, "at least one unit", "[]")
        return tuple(tuple(value) if isinstance(value, list) else value for value in values) or None

    def flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if value is None or value == "":
            return False
        if not isinstance(value, bool):
            self.problem(name, "true or false", _kind(value))
        return value is True

    def found(self, name: str, reference: str) -> AudioRef | None:
        return self.tried(name, self.sources.find, reference)

    def prompt_audios(self, audios: list[AudioRef | None]) -> list[AudioRef | None]:
        return [ref and self.tried(f"audios[{i}]", self.sources.cut, ref) for i, ref in enumerate(audios)]

    def tried(self, name: str, read: Callable[..., AudioRef], argument: str | AudioRef) -> AudioRef | None:
        try:
            return read(argument)
        except InputError as error:
            self.problems.append(f"{name}: {error}")
            return None

    def conversation(self) -> tuple[list[Message], list[AudioRef]]:
        """The messages and their audios, one for each mark."""
        messages = [self.message(f"messages[{i}]", value) for i, value in enumerate(self.items("messages"))]
        references = self.items("audios")
        marks = sum(message.content.count(AUDIO_MARK) for message in messages)
        if not self.problems and marks != len(references):
            self.problem("audios", f"{marks} paths, one for each {AUDIO_MARK} in messages", len(references))
        audios = []
        for i, value in enumerate(references):
            if reference := self.checked_text(f"audios[{i}]", value):
                audios.append(self.found(f"audios[{i}]", reference))
            elif value == "":
                self.problem(f"audios[{i}]", "a path", '""')
        return messages, audios

    def items(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            self.problem(name, "a list", _kind(value))
            return []
        return value

    def message(self, name: str, value: Any) -> Message:
        if not isinstance(value, dict):
            self.problem(name, 'an object {"role", "content"}', _kind(value))
            return Message("", "")
        role, content = value.get("role"), self.checked_text(f"{name}.content", value.get("content"))
        if role not in ROLES:
            self.problem(f"{name}.role", " or ".join(ROLES), json.dumps(role))
        if content == "" and role == "user":
            self.problem(f"{name}.content", f"text or {AUDIO_MARK} from the user", '""')
        if others := sorted(value.keys() - {"role", "content"}):
            self.problem(name, "role and content only", f"also {', '.join(others)}")
        return Message(str(role), content)

    def closing_answer(self, messages: list[Message], audios: list[AudioRef]) -> tuple[str | None, AudioRef | None]:
        """Take the answer off the end of a conversation that has one: its text and its audio."""
        if not messages or messages[-1].role != "assistant":
            return None, None
        content = messages.pop().content
        marks = content.count(AUDIO_MARK)
        if marks > 1:
            self.problem("messages", f"at most one {AUDIO_MARK} in the answer", marks)
        return without_marks(content), audios.pop() if marks and audios else None


def without_marks(text: str) -> str | None:
    """An answer's text, which says nothing of where its audio stands."""
    return text.replace(AUDIO_MARK, "").strip() or None if AUDIO_MARK in text else text or None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
