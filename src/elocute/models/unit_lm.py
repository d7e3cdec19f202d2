"""Textless speech LMs: a causal LM over the units of speech, which continues what it hears.

    elocute.json: {"kind": "units", "codec": "../codec", "unit_0": 2, "bos": 1, "eos": 1, "open_ended": true}

unit k is token unit_0 + k. bos stands before every recording, eos behind; null: the model has none. The codec's folder
is `unit-codec`, in the model's or beside it, unless the file says another. Two published layouts say by their
config.json what the tokens are; they need no elocute.json, nor the code that came with them:

    TWIST (Hassid et al. 2023)     OPT or LLaMA with `offset` in its config: unit_0 is that offset, no bos, no eos
    SlamKit (Maimon et al. 2025)   `speech_language_model` with a `base_config`, weights `lm.…`: unit_0 2, bos, eos 1

A continuation is cut at the longest length allowed and is whole all the same, and no eos is ever learnt behind it;
`"open_ended": false` asks for an eos.
Whether units stand without repeats is the codec's matter.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from elocute.data.cache import EncodedAudio
from elocute.data.files import link_file, read_json, write_atomically
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError
from elocute.models.layout import Layout, Tokens
from elocute.models.speech_lm import SLAMKIT, SpeechLM, beside, check_weights, load_network, read_settings, units_of
from elocute.speech import Codec, load_codec

CODEC = "unit-codec"
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt)(\.index\.json)?$|^(config|elocute)\.json$")
"""What `save` writes itself."""


@dataclass(frozen=True)
class Vocabulary:
    """All of a model folder but the weights. published: its config.json as it stands, SlamKit's around `config`."""

    layout: Layout
    bos: int | None
    codec: Codec
    settings: dict
    config: PreTrainedConfig
    folder: Path
    published: dict


class UnitLM(SpeechLM):
    """A causal LM that hears and speaks units."""

    def __init__(self, model, vocabulary: Vocabulary):
        super().__init__(model, vocabulary.layout, vocabulary.codec, vocabulary.settings)
        self.bos, self.folder, self._published = vocabulary.bos, vocabulary.folder, vocabulary.published

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "UnitLM":
        """Load a model folder. InputError names what is missing or does not fit."""
        folder = Path(folder)
        vocabulary = load_vocabulary(folder)
        return cls(load_lm(folder, dtype=dtype), vocabulary)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` reads: weights (LoRA merged) in the layout they came in, the codec in it.

        config.json says what it said, for today's transformers would name things as yesterday's cannot read them; all
        other files beside it go along. InputError when the folder that it was loaded from is gone.
        """
        folder, network = Path(folder), self.plain_model()
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: gone; what lay beside the weights cannot be saved")
        network.save_pretrained(folder)
        for file in self.folder.iterdir():
            if file.is_file() and not file.name.startswith(".") and not _WEIGHTS.search(file.name):
                link_file(file, folder / file.name)
        dtype = str(network.dtype).removeprefix("torch.")
        said = self._published | {key: dtype for key in ("torch_dtype", "dtype") if key in self._published}
        write_atomically(folder / "config.json", (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())
        self.save_beside(folder)

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> torch.Tensor:
        """The row's recordings as ids behind one bos, int64 [P]: whole, or refused if they fill the context.

        InputError when a message holds text, which this model cannot read, or when there is nothing to continue.
        """
        for message in example.messages:
            if text := message.content.replace("<|audio|>", " ").strip():
                raise InputError(f"{example.where}: messages: the model hears speech only, it cannot read {text!r}")
        if not example.audios:
            raise InputError(f"{example.where}: audios: expected a recording to continue")
        units = [int(unit) for ref in example.audios for unit in units_of(example, "audios", ref, audio)]
        ids = [*([] if self.bos is None else [self.bos]), *(self.layout.first_unit + unit for unit in units)]
        self.check_length(f"{example.where}: audios", len(ids) + 1)
        return torch.tensor(ids)

    def encode_utterance(self, ref: AudioRef, audio: EncodedAudio) -> tuple[torch.Tensor, Tokens]:
        """A recording for its likelihood: what is given (bos, or without one the first unit) [1], and the rest."""
        units = [int(unit) for unit in audio.units(ref)]
        given = [self.bos] if self.bos is not None else [self.layout.first_unit + units.pop(0)]
        if not units:
            raise InputError(f"{ref}: one unit alone has no likelihood: the model has no bos")
        rest = self.layout.assemble([], units)
        self.check_length(str(ref), 1 + len(rest))
        return torch.tensor(given), rest

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """A continuation; behind it eos, if the model has one, unless it was cut. name: of the row's fields, less
        `_audio`."""
        field = f"{name}_audio"
        if ref is None:
            raise InputError(f"{example.where}: {field}: expected the continuation's speech")
        units = units_of(example, field, ref, audio)
        try:
            answer = self.layout.assemble([], units, cut=ref.cut)
        except InputError as error:
            raise InputError(f"{example.where}: {field}: {error}") from error
        self.check_length(f"{example.where}: {field}", len(self.encode_prompt(example, audio)) + len(answer))
        return answer


def load_lm(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The causal LM alone, without a codec. InputError names what is missing or does not fit."""
    _, config = _read_config(Path(folder) / "config.json")
    return load_network(Path(folder), dtype, config=config, key_mapping={r"^lm\.": ""})


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read and check all of a model folder but its weights."""
    settings = read_settings(folder)
    said, config = _read_config(folder / "config.json")
    tokens = _read_tokens(folder / "elocute.json", settings, said, config)
    codec = load_codec(codec_folder(folder))
    layout = Layout(
        ratio="speech-only",
        first_unit=tokens["unit_0"],
        n_units=codec.n_units,
        text_end=None,
        answer_end=tokens["eos"],
        open_ended=settings.get("open_ended", True),
    )
    for name in ("bos", "eos"):
        if tokens[name] is not None and layout.is_unit(tokens[name]):
            raise InputError(f"{folder}: {name} {tokens[name]} lies among the units, from {layout.first_unit} on")
    highest = max(layout.first_unit + layout.n_units - 1, tokens["bos"] or 0, tokens["eos"] or 0)
    if highest >= config.vocab_size:
        raise InputError(f"{folder}: the model has {config.vocab_size} embeddings, its codec needs ids up to {highest}")
    check_weights(folder)
    return Vocabulary(layout, tokens["bos"], codec, settings, config, folder, said)


def codec_folder(folder: Path) -> Path:
    """Where a model's codec lies. InputError when there is none."""
    return beside(folder, "codec", CODEC).resolve()


def _read_config(file: Path) -> tuple[dict, PreTrainedConfig]:
    """config.json as it stands, and the causal LM's in it: all of it, or what SlamKit's stands around."""
    said = read_json(file, "the config of a causal LM over units")
    try:
        wrapped = said.get("model_type") == SLAMKIT
        inner = said["base_config"] | {"vocab_size": said["vocab_size"]} if wrapped else said
        inner = {key: value for key, value in inner.items() if "attn_implementation" not in key}  # its authors' GPU
        return said, AutoConfig.for_model(**inner)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not the config of a causal LM over units: {error}") from error


def _read_tokens(file: Path, settings: dict, said: dict, config: PreTrainedConfig) -> dict[str, int | None]:
    """unit_0, bos and eos, as elocute.json says or else the published layout; checks elocute.json."""
    if unknown := set(settings) - {"kind", "codec", "unit_0", "bos", "eos", "open_ended"}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    if not isinstance(settings.get("codec", ""), str):
        raise InputError(f"{file}: codec: expected the codec's folder, got {settings['codec']!r}")
    published = {"unit_0": getattr(config, "offset", None), "bos": None, "eos": None}
    if said.get("model_type") == SLAMKIT:
        published = {"unit_0": 2, "bos": 1, "eos": 1}
    tokens = published | {name: settings[name] for name in published if name in settings}
    for name, id in tokens.items():
        if not (type(id) is int and id >= 0 or id is None and name != "unit_0"):
            raise InputError(f"{file}: {name}: expected a token's id, got {id!r}")
    if type(settings.get("open_ended", True)) is not bool:
        raise InputError(f"{file}: open_ended: expected true or false, got {settings['open_ended']!r}")
    if tokens["eos"] is None and not settings.get("open_ended", True):
        raise InputError(f"{file}: open_ended: expected true, for nothing but the length ends an answer without eos")
    return tokens
