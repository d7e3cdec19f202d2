"""How MiniCPM-o 2.6 is asked to read a text aloud (RLAIF-SPA): one user turn with the text and its labels, in the words
of the prosody schema.

An `elocute.json` in the folder, which need not be there, says which schema and who writes what is then spoken:

    {"kind": "minicpm_o", "schema": "paper", "text": "sampled"}

`sampled`, as in RLAIF-SPA: the LLM, as any answer; it may write something else than it was asked to read. `forced`:
nobody, the text to speak stands there as forced cells, and only what becomes sound is sampled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from elocute.errors import InputError
from elocute.models.control import control_tokens
from elocute.models.minicpm_o.config import MiniCPMOConfig
from elocute.models.minicpm_o.prompt import ControlTokens, Prompt, Turn, lay_out
from elocute.models.reading import Template
from elocute.models.speech_lm import read_settings
from elocute.prosody.schema import SHIPPED, Schema, load_schema

WRITERS = ("sampled", "forced")


@dataclass(frozen=True)
class ChatTemplate(Template):
    """forced: whether the text stands in the answer already, else the LLM writes it."""

    schema: Schema
    forced: bool
    config: MiniCPMOConfig
    tokenizer: PreTrainedTokenizerFast
    tokens: ControlTokens
    control: re.Pattern
    takes_labels = True

    def fill(self, text: str, labels: Mapping[str, str]) -> Prompt:
        turns = [Turn("user", [self.schema.prompt(text, labels)])]
        ids = self.tokenizer.encode(lay_out(turns, self.config, speak=True), add_special_tokens=False)
        return Prompt(torch.tensor(ids), given=torch.tensor(self.written(text)) if self.forced else None)

    def written(self, text: str) -> list[int]:
        """What an answer that speaks the text has written, to its end."""
        ids = self.tokenizer.encode(text.strip(), add_special_tokens=False)
        return [*ids, self.tokens.tts_eos, self.tokens.im_end]


def make_template(
    folder: Path, config: MiniCPMOConfig, tokenizer: PreTrainedTokenizerFast, tokens: ControlTokens
) -> ChatTemplate:
    """What a folder says of reading aloud. InputError for what cannot be understood."""
    settings, file = read_settings(folder), folder / "elocute.json"
    if unknown := set(settings) - {"kind", "schema", "text"}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    schema, writer = settings.get("schema", "paper"), settings.get("text", WRITERS[0])
    if not isinstance(schema, str):
        raise InputError(f"{file}: schema: expected a file or {' or '.join(SHIPPED)}, got {schema!r}")
    if writer not in WRITERS:
        raise InputError(f"{file}: text: expected {' or '.join(WRITERS)}, got {writer!r}")
    named = load_schema(SHIPPED.get(schema, folder / schema))
    return ChatTemplate(named, writer == "forced", config, tokenizer, tokens, control_tokens(tokenizer))
