"""What CSM reads before it speaks: turns as the processor's own template lays them out, sound in its places."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import CsmConfig, CsmProcessor

from elocute.data.cache import EncodedAudio
from elocute.data.rows import AUDIO_MARK
from elocute.data.shards import Shards
from elocute.data.types import Example
from elocute.errors import InputError
from elocute.models.control import check_text, control_tokens
from elocute.models.frames import check_codec, load_config
from elocute.models.reading import Template, labels_of
from elocute.models.speech_lm import units_of
from elocute.prosody.schema import SHIPPED, Schema, load_schema

NO_TEXT = -1
"""In a prompt's first column: a frame stands there."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says: text, and whether its recording is there."""

    speaker: int
    text: str
    heard: bool = False


@dataclass(frozen=True)
class CsmTemplate(Template):
    """How texts, labels and rows become prompts, int64 [P, 1 + codebooks]: a text token or NO_TEXT, and a frame.

    Labels stand in words before the text, as the schema puts them.
    """

    processor: CsmProcessor
    config: CsmConfig
    schema: Schema
    control: re.Pattern
    takes_labels = True

    def fill(self, text: str, labels: Mapping[str, str]) -> torch.Tensor:
        """The prompt of a text alone, by speaker 0."""
        return self.cells([Turn(0, self._worded(text.strip(), labels))], [])

    def encode_row(self, example: Example, audio: EncodedAudio | None = None) -> torch.Tensor:
        """A row's prompt; an InputError names the row. audio: for context; None: without its sound, to check a row."""
        turns, labels = self._turns(example), labels_of(example)
        try:
            turns[-1] = replace(turns[-1], text=self._worded(turns[-1].text, labels))
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error
        nothing = torch.zeros(0, self.config.num_codebooks)
        heard = [
            nothing if audio is None else torch.from_numpy(units_of(example, "audios", ref, audio))
            for ref in example.audios
        ]
        return self.cells(turns, heard)

    def cells(self, turns: Sequence[Turn], heard: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the processor's template makes of turns; its marks for sound give way to the frames heard."""
        config, said = self.config, [{"type": "audio"}]
        conversation = [
            {"role": str(turn.speaker), "content": [{"type": "text", "text": turn.text}, *(said if turn.heard else [])]}
            for turn in turns
        ]
        text = self.processor.apply_chat_template(conversation, tokenize=False)
        sounds, rows = iter(heard), []
        for id in self.processor.tokenizer.encode(text, add_special_tokens=False):
            if id == config.audio_token_id:
                rows.append(_frames(next(sounds)))
            elif id == config.audio_eos_token_id:
                rows.append(_frames(torch.full((1, config.num_codebooks), config.codebook_eos_token_id)))
            else:
                rows.append(torch.tensor([[id] + [0] * config.num_codebooks]))
        return torch.cat(rows)

    def _worded(self, text: str, labels: Mapping[str, str]) -> str:
        self.schema.check(labels)
        return self.schema.prompt(text, labels) if labels else text

    def _turns(self, example: Example) -> list[Turn]:
        """A row's messages. InputError unless the last is a text to speak and the others are texts with recordings."""
        speakers, turns = speakers_of(example), []
        for number, (speaker, message) in enumerate(zip(speakers, example.messages, strict=True)):
            pieces, last = message.content.split(AUDIO_MARK), number == len(speakers) - 1
            text = " ".join(piece.strip() for piece in pieces if piece.strip())
            where = f"{example.where}: messages[{number}]"
            check_text(self.control, where, text)
            if message.role == "system":
                raise InputError(f"{where}: expected none from the system, CSM only speaks")
            if not text or len(pieces) != (1 if last else 2):
                expected = "the text to speak, and no audio" if last else f"a text and its recording, one {AUDIO_MARK}"
                raise InputError(f"{where}: expected {expected}")
            turns.append(Turn(speaker, text, heard=not last))
        return turns


def speakers_of(example: Example) -> list[int]:
    """Who speaks each message: the row's field `speakers`, or speaker 0. InputError when it is no list of numbers."""
    count = len(example.messages)
    speakers = example.columns.get("speakers") or [0] * count
    whole = isinstance(speakers, list) and all(type(speaker) is int and speaker >= 0 for speaker in speakers)
    if not whole or len(speakers) != count:
        raise InputError(
            f"{example.where}: speakers: expected {count} numbers from 0 on, one for each message, got "
            f"{json.dumps(speakers)}"
        )
    return speakers


def load_template(folder: str | Path) -> CsmTemplate:
    """All of a folder but weights and sound. InputError names what is missing or does not fit."""
    folder = Path(folder)
    config = load_config(folder, CsmConfig)
    try:
        processor = CsmProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: not CSM's processor: {' '.join(str(error).split())}") from error
    if not processor.chat_template:
        raise InputError(f"{folder}: chat_template.jinja: expected there, it lays out the prompt")
    _check_codebooks(folder, config)
    vocabulary = processor.tokenizer.get_vocab()
    marks = {processor.audio_token: config.audio_token_id, processor.audio_eos_token: config.audio_eos_token_id}
    for name, id in marks.items():
        if vocabulary.get(name) != id:
            raise InputError(f"{folder}: config.json says {name} is {id}, the tokenizer {vocabulary.get(name)}")
    if (last := max(vocabulary.values())) >= config.text_vocab_size:
        raise InputError(f"{folder}: the tokenizer has ids up to {last}, the model's text {config.text_vocab_size}")
    Shards.open(folder)
    return CsmTemplate(processor, config, load_schema(SHIPPED["paper"]), control_tokens(processor.tokenizer))


def _check_codebooks(folder: Path, config: CsmConfig) -> None:
    """InputError unless backbone, depth decoder and codec agree on codebooks and codes."""
    codec, depth = config.codec_config, config.depth_decoder_config
    check_codec(folder, codebooks=config.num_codebooks, codes=config.vocab_size, codec=codec)
    if config.num_codebooks < codec.num_quantizers:  # transformers gives it all that the codec says
        raise InputError(
            f"{folder}: the codec has {codec.num_quantizers} codebooks, the model speaks {config.num_codebooks}"
        )
    if (depth.num_codebooks, depth.vocab_size) != (config.num_codebooks, config.vocab_size):
        raise InputError(f"{folder}: the depth decoder's codebooks or vocabulary are not the backbone's")
    if not isinstance(config.codebook_eos_token_id, int):
        raise InputError(f"{folder}: config.json: codebook_eos_token_id: expected one code")


def _frames(codes: torch.Tensor) -> torch.Tensor:
    """Frames [T, codebooks] as rows of a prompt."""
    return torch.cat([torch.full((len(codes), 1), NO_TEXT), codes.long()], 1)
