"""Speech LMs with one vocabulary, text and speech interleaved: any causal LM of transformers with an `elocute.json`.

    elocute.json: {"ratio": [[2, 10]], "codec": "../codec", "tokens": {"unit_0": "<|audio_0|>", "text_end": …, …}}

The prompt is the tokenizer's own chat template; each `<|audio|>` becomes `speech_begin units speech_end`. Messages that
hold a control token are refused: a question must not end the answer or speak for the model.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError
from elocute.models.control import check_text, control_tokens
from elocute.models.layout import Layout, Tokens
from elocute.models.speech_lm import SpeechLM, load_network, read_settings, units_of
from elocute.speech import Codec, load_codec

TOKEN_NAMES = ("unit_0", "text_end", "answer_end", "speech_begin", "speech_end")


class InterleavedLM(SpeechLM):
    """A causal LM that writes and speaks in one stream; `tokenizer` is that of its text."""

    def __init__(self, model, tokenizer, layout: Layout, codec: Codec, settings: dict):
        super().__init__(model, layout, codec, settings)
        self.tokenizer = tokenizer
        self._control = control_tokens(tokenizer)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "InterleavedLM":
        """Load a model folder. InputError names what is missing or does not fit."""
        folder = Path(folder)
        tokenizer, layout, codec, settings = load_vocabulary(folder)
        return cls(load_fitting(folder, dtype, layout), tokenizer, layout, codec, settings)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` reads: weights (LoRA merged), tokenizer, elocute.json and the codec."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.plain_model().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.save_beside(folder)

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> torch.Tensor:
        """The question as ids, int64 [P]. Earlier turns are context; none of it is ever trained.

        InputError when a message holds one of the tokenizer's control tokens.
        """
        check_text(self._control, f"{example.where}: messages", *(message.content for message in example.messages))
        messages = [{"role": message.role, "content": message.content} for message in example.messages]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces = text.split("<|audio|>")
        if len(pieces) != len(example.audios) + 1:
            raise InputError(
                f"{example.where}: the chat template keeps {len(pieces) - 1} of {len(example.audios)} audios"
            )
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self.tokenizer.encode(piece, add_special_tokens=False)
            if index < len(example.audios):
                units = units_of(example, "audios", example.audios[index], audio)
                ids += self._marked([self.layout.first_unit + int(unit) for unit in units])
        return torch.tensor(ids)

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        if ref is None:
            raise InputError(f"{example.where}: {name}_audio: expected the answer's speech, it always speaks")
        if text is None and self.layout.ratio != "speech-only":
            raise InputError(f"{example.where}: {name}_text: expected the answer's text, it always writes")
        check_text(self._control, f"{example.where}: {name}_text", text or "")
        units = units_of(example, f"{name}_audio", ref, audio)
        try:
            return self.layout.assemble(self.tokenizer.encode(text or "", add_special_tokens=False), units, cut=ref.cut)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error

    def _marked(self, units: list[int]) -> list[int]:
        begin, end = self.layout.speech_begin, self.layout.speech_end
        return [*([] if begin is None else [begin]), *units, *([] if end is None else [end])]


def load_fitting(folder: Path, dtype: torch.dtype | str, layout: Layout):
    """A folder's network. InputError unless it has an embedding for every unit."""
    model = load_network(folder, dtype)
    if model.get_input_embeddings().num_embeddings < layout.first_unit + layout.n_units:
        raise InputError(
            f"{folder}: the model has {model.get_input_embeddings().num_embeddings} embeddings, "
            f"its codec needs ids up to {layout.first_unit + layout.n_units - 1}"
        )
    return model


def load_tokenizer(folder: Path):
    """A folder's tokenizer. InputError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from error


def load_vocabulary(folder: Path):
    """All of a model folder but the weights: (tokenizer, layout, codec, settings), checked against each other."""
    settings = read_settings(folder)
    check_settings(folder / "elocute.json", settings)
    codec = load_codec((folder / settings["codec"]).resolve())
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template, which lays out the prompt")
    return tokenizer, make_layout(folder, settings, tokenizer, codec), codec, settings


def check_settings(file: Path, settings: dict) -> None:
    """Raise InputError for an `elocute.json` that does not say how text and speech interleave."""
    for key, kind in {"ratio": (list, str), "codec": str, "tokens": dict}.items():
        if key not in settings:
            raise InputError(f"{file}: {key}: missing")
        if not isinstance(settings[key], kind):
            raise InputError(f"{file}: {key}: not understood: {settings[key]!r}")
    if unknown := set(settings) - {"kind", "ratio", "codec", "tokens"}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    ratio = settings["ratio"]
    named = ratio in ("text-first", "speech-only")
    pairs = (
        isinstance(ratio, list)
        and ratio
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) and n >= 1 for n in pair)
            for pair in ratio
        )
    )
    if not (named or pairs):
        raise InputError(f"{file}: ratio: expected [[2, 10]], 'text-first' or 'speech-only' for example, got {ratio!r}")


def make_layout(folder: Path, settings: dict, tokenizer, codec: Codec) -> Layout:
    """Resolve the names in `elocute.json` to ids and check that the vocabulary fits the codec."""
    ids = token_ids(folder, settings["tokens"], TOKEN_NAMES, TOKEN_NAMES[:3], tokenizer, codec)
    ratio = settings["ratio"]
    ratio = ratio if isinstance(ratio, str) else [tuple(pair) for pair in ratio]
    return Layout(ratio=ratio, first_unit=ids.pop("unit_0"), n_units=codec.n_units, **ids)


def token_ids(
    folder: Path, names: dict[str, str], known: Sequence[str], needed: Sequence[str], tokenizer, codec: Codec
) -> dict[str, int]:
    """The ids of the tokens that `elocute.json` names. InputError for one that is not there or lies among the units."""
    if set(names) - set(known) or not set(needed) <= set(names):
        raise InputError(f"{folder}/elocute.json: tokens: expected {', '.join(known)}, got {', '.join(names)}")
    vocabulary = tokenizer.get_vocab()
    missing = [name for name in names.values() if name not in vocabulary]
    if missing:
        raise InputError(f"{folder}: the tokenizer has no token {missing[0]!r} that elocute.json names")
    if (codebooks := getattr(codec, "codebooks", 1)) != 1:
        raise InputError(f"{folder}: codec: expected one of one codebook, a token for each unit; it has {codebooks}")
    ids = {key: vocabulary[name] for key, name in names.items()}
    first_unit = ids["unit_0"]
    inside = [names[key] for key, id in ids.items() if key != "unit_0" and 0 <= id - first_unit < codec.n_units]
    if inside:
        raise InputError(
            f"{folder}: {inside[0]!r} lies among the {codec.n_units} speech units from {names['unit_0']!r} on"
        )
    return ids
