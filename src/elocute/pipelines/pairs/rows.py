"""Candidate rows in and pair rows out, a block at a time: decoded once, and only as far as pairs need it.

Fields that pairs do not touch are never taken apart: they pass through as the bytes they are. So that this works in
one go, a decoder knows the names of all fields it has met, and learns a new one when it comes.
"""

import json
import re
from typing import Any, Literal

import msgspec
from msgspec import Raw

AUDIO_MARK = "<|audio|>"
MOST_FIELDS = 1000
_NAMES = {"object": "an object", "array": "a list", "str": "a string", "bool": "true or false", "null": "null"}


class BadRow(Exception):
    """What is wrong with a row: `field: what was expected`."""


class Scores(msgspec.Struct, gc=False):
    """What the judges said."""

    semantic_score: float | None = None
    paralinguistic_score: float | None = None


class Measures(msgspec.Struct, gc=False):
    """What was measured without a judge."""

    auto_bleu: float | None = None


class Outcome(msgspec.Struct, gc=False):
    """Whether a candidate was judged: scored, invalid (its own fault; the score is a penalty) or unavailable."""

    kind: str | None = None


class Candidate(
    msgspec.Struct, gc=False, rename={name: f"output-{name}" for name in ("text", "audio", "units", "tokens")}
):
    """One answer. `units`, `tokens`: JSON lists as bytes; `seconds` of speech; `broken`: why it is no proper answer;
    `cut`: it was stopped before its end."""

    text: str | None = None
    audio: str | None = None
    units: Raw = None
    tokens: Raw = None
    gemini_score: Scores | None = None
    score: float | None = None
    outcome: Outcome | None = None
    measures: Measures | None = None
    broken: str | None = None
    cut: bool | None = None
    seconds: float | None = None

    @property
    def says(self) -> str:
        """Its text without white space around it."""
        return (self.text or "").strip()

    @property
    def invalid(self) -> bool:
        """It may be rejected, not chosen: nothing was heard in it, for example."""
        return self.outcome is not None and self.outcome.kind == "invalid"


class Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


# `null` and "" mean that a field is missing. What is only written here may be anything on its way in.
_FIRST = [
    ("id", str | int | None, None),
    ("messages", list[Message] | Literal[""] | None, None),
    ("audios", list[str] | Literal[""] | None, None),
    ("sft_target_text", str | None, None),
    ("sft_target_audio", str | None, None),
    ("sft_target_units", Raw, None),
    ("sft_target_tokens", Raw, None),
    ("sft_target_cut", bool | None, None),
    ("rejected_text", Raw, None),
    ("rejected_audio", Raw, None),
    ("rejected_units", Raw, None),
    ("rejected_tokens", Raw, None),
    ("rejected_cut", Raw, None),
    ("units_codec", str | None, None),
]
_LAST = [
    ("source_dataset", Raw, None),
    ("chosen_score", float | None, None),
    ("rejected_score", Raw, None),
    ("score_gap", Raw, None),
    ("chosen_key", Raw, None),
    ("rejected_key", Raw, None),
    ("weight", Raw, None),
    ("output", dict[str, Candidate] | None, None),
]
_KNOWN = {name for name, _, _ in _FIRST + _LAST}

Row = Any
"""A struct with the fields named above and one for each other field of the file; what is None is not written."""


class RowCodec:
    """Decodes blocks of candidate rows, JSON lines or a JSON array, and encodes rows to JSON lines."""

    def __init__(self, array: bool):
        self.array = array
        self.encode = msgspec.json.Encoder().encode_lines
        self._learn(set())

    def decode(self, block: bytes) -> list[Row]:
        """All rows of a block. Raises msgspec.DecodeError or UnicodeDecodeError when one of them is malformed."""
        if not block.isascii():
            block.decode()  # what passes through is looked at nowhere else
        try:
            if self.array and b"\n" in block:
                block = msgspec.json.format(block, indent=-1)  # what passes through stands in one line then
            return self._rows(self._decoder, block)
        except msgspec.ValidationError:
            rows = self._rows(self._any_row, block)
            if not (new := {name for row in rows for name in row} - self._others - _KNOWN):
                raise
            self._learn(self._others | new)
            return self._rows(self._decoder, block)

    def decode_one(self, raw: bytes) -> list[Row]:
        """One row. Raises BadRow. Slow: only for blocks that do not decode."""
        try:
            json.loads(raw.rstrip(b"\r\n").decode(), parse_constant=_no_constant)
            return self.decode(b"[%b]" % raw if self.array else raw)
        except UnicodeDecodeError as error:
            problem = f"row: expected UTF-8 text: byte {error.start + 1} is not"
        except json.JSONDecodeError as error:
            comma = self.array and raw.startswith(b",")
            what = "a comma before it, and only one" if comma else f"JSON: {error.msg} at column {error.colno}"
            problem = f"row: expected {what}"
        except msgspec.ValidationError as error:
            problem = self._validation(str(error), raw)
        except msgspec.DecodeError:  # it is JSON, but for what Python's reader lets pass
            problem = "row: expected Unicode text, got half of a surrogate pair"
        except (ValueError, RecursionError) as error:
            problem = f"row: expected JSON: {error}"
        raise BadRow(problem)

    def _rows(self, decoder: msgspec.json.Decoder, block: bytes) -> list[Any]:
        return decoder.decode(block) if self.array else decoder.decode_lines(block)

    def _learn(self, others: set[str]) -> None:
        """Decode rows with these fields, too."""
        if len(others) > MOST_FIELDS:
            raise msgspec.ValidationError(f"Expected at most {MOST_FIELDS} different fields in all rows")
        # In order: what was learnt first must not show in what is written.
        between = {f"other{i}": name for i, name in enumerate(sorted(others))}
        fields = [*_FIRST, *((field, Raw, None) for field in between), *_LAST]
        row = msgspec.defstruct("Row", fields, rename=between, forbid_unknown_fields=True, omit_defaults=True, gc=False)
        kinds = (list[row], list[dict[str, Raw]]) if self.array else (row, dict[str, Raw])
        self._others, self._decoder, self._any_row = others, *map(msgspec.json.Decoder, kinds)

    def _validation(self, said: str, raw: bytes) -> str:
        """Expected `float`, got `str` - at `$.output[...].score` → output.3.score: expected a number, got a string."""
        what, place = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$(?:\[0\])?\.?(.*)`)?", said).groups()
        if "[...]" in (place := place or "row"):
            place = place.replace("[...]", f".{self._bad_candidate(raw)}")
        if types := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
            return f"{place}: expected {_in_words(types[1])}, got {_in_words(types[2])}"
        if value := re.fullmatch(r"Invalid enum value '(.*)'", what):
            expected = "system, user or assistant" if place.endswith(".role") else "a list"
            return f"{place}: expected {expected}, got {json.dumps(value[1], ensure_ascii=False)}"
        return f"{place}: {what[0].lower()}{what[1:]}"

    def _bad_candidate(self, raw: bytes) -> str:
        output = msgspec.json.decode(raw, type=dict[str, Raw])["output"]
        for key, candidate in msgspec.json.decode(output, type=dict[str, Raw]).items():
            try:
                msgspec.json.decode(candidate, type=Candidate)
            except msgspec.ValidationError:
                return key
        return "…"


def _in_words(types: str) -> str:
    words = {_NAMES.get(name, "a number" if name in ("int", "float") else name): 0 for name in types.split(" | ")}
    return " or ".join(words)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
