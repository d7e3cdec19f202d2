"""TTS language models: a text and its labels in, speech out, in one vocabulary (Llasa, Orpheus and their like).

    elocute.json: {"kind": "tts", "codec": "codec", "schema": "schema.yaml",
                   "tokens": {"unit_0": "<|s_0|>", "speech_begin": "<|speech|>", "speech_end": "<|speech_end|>"},
                   "prompt": "<|text|>{labels}{text}", "label_token": "<|{dimension}:{label}|>"}

`prompt` is the whole prompt, control tokens and all. In it `{text}` is the text to speak, and `{labels}` one token for
each label that the row has, named as `label_token` says, in the schema's order; or `{instruction}` stands for both, in
the words of the schema's own prompt. Without either of them the model takes no labels. `schema` is a file beside
elocute.json, or "paper" (the default) or "rlaif_spa".

An answer is `speech_begin`, if there is one, forced; then units and `speech_end`: every one of them is sampled, of
speech class, and an action. The prompt is context and never trained.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.types import Answer, AudioRef, Example, Utterance
from elocute.errors import InputError
from elocute.models.control import control_tokens
from elocute.models.interleaved import InterleavedLM, load_fitting, load_tokenizer, token_ids
from elocute.models.layout import Layout, Tokens
from elocute.models.reading import Template, text_of
from elocute.models.speech_lm import read_settings
from elocute.prosody.schema import SHIPPED, Schema, load_schema
from elocute.speech import Codec, load_codec

TOKEN_NAMES = ("unit_0", "speech_end", "speech_begin")
_PLACES = re.compile(r"\{(text|labels|instruction)\}")


@dataclass(frozen=True)
class PromptTemplate(Template):
    """`prompt` and `label_token` of elocute.json, and the schema; prompts are ids, int64 [P]."""

    prompt: str
    label_token: str | None
    schema: Schema
    schema_file: Path
    tokenizer: object
    control: re.Pattern

    @property
    def takes_labels(self) -> bool:
        return bool({"labels", "instruction"} & set(_PLACES.findall(self.prompt)))

    def fill(self, text: str, labels: Mapping[str, str]) -> torch.Tensor:
        return torch.tensor(self.tokenizer.encode(self.filled(text, labels), add_special_tokens=False))

    def filled(self, text: str, labels: Mapping[str, str]) -> str:
        """The prompt in writing."""

        def fill(place: re.Match) -> str:
            if place[1] == "text":
                return text
            if place[1] == "instruction":
                return self.schema.prompt(text, labels)
            return "".join(self.token(name, labels[name]) for name in self.schema.dimensions if name in labels)

        return _PLACES.sub(fill, self.prompt)

    def token(self, dimension: str, label: str) -> str:
        return self.label_token.replace("{dimension}", dimension).replace("{label}", label)


class TtsLM(InterleavedLM):
    """A causal LM that reads aloud."""

    reads_aloud, takes_questions = True, False

    def __init__(self, model, tokenizer, layout: Layout, codec: Codec, settings: dict, template: PromptTemplate):
        super().__init__(model, tokenizer, layout, codec, settings)
        self.template = template

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "TtsLM":
        """Load a model folder. InputError names what is missing or does not fit."""
        folder = Path(folder)
        template, layout, codec, settings = load_vocabulary(folder)
        return cls(load_fitting(folder, dtype, layout), template.tokenizer, layout, codec, settings, template)

    @classmethod
    def load_template(cls, folder: Path) -> PromptTemplate:
        """All of a model folder but the weights, checked; how its prompts are made."""
        return load_vocabulary(folder)[0]

    def save_beside(self, folder: Path) -> None:
        """Write what is not the network: the codec, the schema and elocute.json."""
        (folder / "schema.yaml").write_bytes(self.template.schema_file.read_bytes())
        super().save_beside(folder, schema="schema.yaml")

    def encode_prompt(self, example: Example, audio: EncodedAudio | None = None) -> torch.Tensor:
        """The row's text and labels as ids, int64 [P]; see Template.encode_row."""
        ids = self.template.encode_row(example)
        self.check_length(f"{example.where}: messages", len(ids) + 1)
        return ids

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        answer = super()._encode_answer(example, name, None, ref, audio)
        self.check_length(f"{example.where}: {name}_audio", len(self.encode_prompt(example)) + len(answer))
        return answer

    def _judged(self, example: Example, utterance: Utterance) -> Answer:
        """Its text is the one that should be heard."""
        return Answer(example, replace(utterance, text=text_of(example)))


def load_vocabulary(folder: Path) -> tuple[PromptTemplate, Layout, Codec, dict]:
    """All of a model folder but the weights, checked against each other."""
    settings = read_settings(folder)
    check_settings(folder / "elocute.json", settings)
    codec, tokenizer = load_codec((folder / settings["codec"]).resolve()), load_tokenizer(folder)
    template = make_template(folder, settings, tokenizer)
    _check_label_tokens(folder, template)
    return template, make_layout(folder, settings, tokenizer, codec), codec, settings


def make_template(folder: Path, settings: dict, tokenizer) -> PromptTemplate:
    """What `elocute.json` says of the prompt; `schema` is a file beside it or the name of one that ships."""
    named = settings.get("schema", "paper")
    file = SHIPPED.get(named, Path(folder) / named)
    control = control_tokens(tokenizer)
    return PromptTemplate(settings["prompt"], settings.get("label_token"), load_schema(file), file, tokenizer, control)


def make_layout(folder: Path, settings: dict, tokenizer, codec: Codec) -> Layout:
    """Resolve the names in `elocute.json` to ids and check that the vocabulary fits the codec."""
    ids = token_ids(folder, settings["tokens"], TOKEN_NAMES, TOKEN_NAMES[:2], tokenizer, codec)
    return Layout(
        ratio="speech-only",
        first_unit=ids["unit_0"],
        n_units=codec.n_units,
        text_end=None,
        answer_end=ids["speech_end"],
        speech_begin=ids.get("speech_begin"),
    )


def check_settings(file: Path, settings: dict) -> None:
    """Raise InputError for an `elocute.json` that does not say how a text becomes a prompt."""
    for key, kind in {"codec": str, "tokens": dict, "prompt": str}.items():
        if key not in settings:
            raise InputError(f"{file}: {key}: missing")
        if not isinstance(settings[key], kind):
            raise InputError(f"{file}: {key}: not understood: {settings[key]!r}")
    if unknown := set(settings) - {"kind", "codec", "tokens", "prompt", "label_token", "schema"}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    if not isinstance(settings.get("schema", "paper"), str):
        raise InputError(f"{file}: schema: expected a file or {' or '.join(SHIPPED)}, got {settings['schema']!r}")
    places = sorted(_PLACES.findall(settings["prompt"]))
    if places not in (["text"], ["labels", "text"], ["instruction"]):
        raise InputError(
            f"{file}: prompt: expected {{text}} once, {{labels}} and {{text}} once each, or {{instruction}} once, "
            f"got {settings['prompt']!r}"
        )
    token = settings.get("label_token")
    named = isinstance(token, str) and "{dimension}" in token and "{label}" in token
    if named != ("labels" in places) or (token is not None and not named):
        raise InputError(
            f"{file}: label_token: expected, with {{labels}} in the prompt and only then, a token's name with "
            f"{{dimension}} and {{label}}, got {token!r}"
        )


def _check_label_tokens(folder: Path, template: PromptTemplate) -> None:
    if template.label_token is None:
        return
    vocabulary = template.tokenizer.get_vocab()
    for name, dimension in template.schema.dimensions.items():
        for label in dimension.labels:
            if (token := template.token(name, label)) not in vocabulary:
                raise InputError(f"{folder}: the tokenizer has no token {token!r} for the label {label!r} of {name}")
