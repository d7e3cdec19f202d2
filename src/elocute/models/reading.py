"""Reading aloud: a row's text and labels, and what makes a prompt of them.

A row to read aloud has one message, the text to speak, and no audio; its field `labels` says how it should sound. Some
models do nothing else (kind tts); others also answer, and read those rows aloud that have `labels`, be it `{}`.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models.control import check_text
from elocute.prosody.schema import Schema, given_labels


class Template(ABC):
    """How a text and its labels become a prompt.

    schema: the labels there are; takes_labels: whether the prompt has a place for them; control: finds the tokens that
    no text may hold.
    """

    schema: Schema
    takes_labels: bool
    control: re.Pattern

    @abstractmethod
    def fill(self, text: str, labels: Mapping[str, str]) -> Any:
        """The prompt, as the model's `encode_prompt` gives it, of a checked text and its labels."""

    def encode(self, text: str, labels: Mapping[str, str]) -> Any:
        """The prompt. InputError for a text that holds a control token or nothing, and for unknown labels."""
        if not text.strip():
            raise InputError("text: expected a text to speak, got nothing")
        check_text(self.control, "text", text)
        if labels and not self.takes_labels:
            raise InputError("labels: expected none, the model's prompt has no place for them")
        self.schema.check(labels)
        return self.fill(text, labels)

    def encode_row(self, example: Example) -> Any:
        """A row's prompt; an InputError names the row."""
        text, labels = text_of(example), labels_of(example)
        try:
            return self.encode(text, labels)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error


def has_labels(example: Example) -> bool:
    """Whether a row's field `labels` is there: what models that also answer read aloud."""
    return example.columns.get("labels") is not None


def text_of(example: Example) -> str:
    """The text that a row has spoken. InputError unless it is the row's only message, and there is no audio."""
    if len(example.messages) != 1 or example.audios:
        raise InputError(
            f"{example.where}: messages: expected one, the text to speak, and no audio; got {len(example.messages)} "
            f"and {len(example.audios)} audios"
        )
    return example.messages[0].content


def labels_of(example: Example) -> dict[str, str]:
    """A row's labels by dimension, those that it has. InputError when its field `labels` is no object."""
    labels = example.columns.get("labels") or {}
    if not isinstance(labels, dict):
        raise InputError(f'{example.where}: labels: expected {{"dimension": "label"}}, got {json.dumps(labels)}')
    return given_labels(labels)
