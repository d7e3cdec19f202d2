"""What Qwen2.5-Omni is asked with: its folder's tokenizer and chat template, each recording a run of audio tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, Qwen2_5OmniConfig

from elocute.data.rows import AUDIO_MARK
from elocute.data.types import Message
from elocute.errors import InputError
from elocute.models.interleaved import load_tokenizer

SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
"""The system message with which the published models speak properly, says their documentation; the chat template's own
is another."""


@dataclass(frozen=True)
class ChatTemplate:
    """template: Jinja; audio: the id that stands for what is heard; ends: the ids that end what the thinker writes."""

    tokenizer: object
    template: str
    audio: int
    ends: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, config: Qwen2_5OmniConfig) -> "ChatTemplate":
        """InputError for a tokenizer that is not there or does not fit the thinker."""
        tokenizer, thinker = load_tokenizer(folder), config.thinker_config
        words = thinker.text_config.vocab_size
        if max(tokenizer.get_vocab().values()) >= words:
            raise InputError(f"{folder}: the tokenizer has ids up to {max(tokenizer.get_vocab().values())}, "
                             f"the thinker's vocabulary {words}")  # fmt: skip
        if tokenizer.convert_ids_to_tokens(thinker.audio_token_index) not in tokenizer.get_added_vocab():
            raise InputError(f"{folder}: audio_token_index {thinker.audio_token_index} is no token of its own")
        return cls(tokenizer, _template(folder, tokenizer), thinker.audio_token_index, _ends(folder, config, tokenizer))

    def ids(self, messages: Sequence[Message], heard: Sequence[int]) -> list[int]:
        """A conversation as ids, up to where the answer begins. heard: of each recording, its states.

        InputError for roles or recordings that the template has no place for.
        """
        turns = [{"role": message.role, "content": _content(message.content)} for message in messages]
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": SYSTEM}, *turns]
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        counts, ids = iter(heard), []
        found = self.tokenizer.encode(text, add_special_tokens=False)
        if found.count(self.audio) != len(heard):
            raise InputError(f"messages: the chat template keeps {found.count(self.audio)} of {len(heard)} recordings")
        for token in found:
            ids += [token] * (next(counts) if token == self.audio else 1)
        return ids


def _content(text: str) -> str | list[dict[str, str]]:
    """A message as the template takes it: its parts where recordings stand in it, in order."""
    pieces = text.split(AUDIO_MARK)
    if len(pieces) == 1:
        return text
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        parts += [{"type": "audio", "audio": ""}] if index else []
        parts += [{"type": "text", "text": piece}] if piece.strip() else []
    return parts


def _template(folder: Path, tokenizer) -> str:
    """The processor's, in a file of its own, else the tokenizer's."""
    if (file := folder / "chat_template.json").is_file():
        try:
            return json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: expected chat_template in it: {error}") from error
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: no chat template, which lays out the prompt: expected chat_template.json")
    return tokenizer.chat_template


def _ends(folder: Path, config: Qwen2_5OmniConfig, tokenizer) -> tuple[int, ...]:
    """What ends the thinker's text: as the thinker's config says, else generation_config.json, else the tokenizer."""
    said = GenerationConfig.from_model_config(config.thinker_config).eos_token_id
    if said is None and (folder / "generation_config.json").is_file():
        said = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    if said is None:
        said = tokenizer.eos_token_id
    if said is None:
        raise InputError(f"{folder}: eos_token_id: expected in generation_config.json: what ends the text")
    return tuple(said) if isinstance(said, list) else (said,)
