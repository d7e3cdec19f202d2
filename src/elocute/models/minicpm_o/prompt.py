"""MiniCPM-o 2.6's prompts: its chat template with speech, the places for audio and for the voice.

    <|im_start|>{role}\\n{content}<|im_end|>\\n …  <|im_start|>assistant\\n[<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>]

A message is text and recordings, joined by line breaks, or by nothing in omni mode. A recording becomes
`<|audio_start|>`, one `<unk>` an embedding and `<|audio_end|>`; with `chunk_input` each second has its own pair. The
message that gives the voice is the first one: of role user, with a text, the recording to sound like and a text.

The template's ids are forced. The LLM's answer is sampled, `text<|tts_eos|><|im_end|>`, every token of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from elocute.errors import InputError
from elocute.models.minicpm_o.audio import embedding_count
from elocute.models.minicpm_o.config import MiniCPMOConfig

_SPEAK = "<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>"


@dataclass(frozen=True)
class Recording:
    """A place in a message for so many samples at 16 kHz."""

    samples: int


@dataclass(frozen=True)
class Turn:
    """A message: its role, and texts and recordings in order."""

    role: str
    parts: Sequence[str | Recording]


@dataclass(frozen=True)
class ControlTokens:
    """The ids of the LLM's special tokens, looked up by their strings."""

    audio_start: int
    audio_end: int
    spk_bos: int
    spk: int
    spk_eos: int
    tts_bos: int
    tts_eos: int
    im_end: int
    endoftext: int
    audio_place: int

    @property
    def terminators(self) -> tuple[int, int]:
        """Either of them ends an answer."""
        return self.im_end, self.endoftext


@dataclass(frozen=True)
class Prompt:
    """ids int64 [P]; mels: the log-mel pieces [mel, F] of each recording in it, which the encoder hears.

    given int64 [N]: what the answer has to write, to its end, where that is not the LLM's to choose.
    """

    ids: torch.Tensor
    mels: tuple[tuple[torch.Tensor, ...], ...] = ()
    given: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


def load_tokenizer(folder: str | Path, config: MiniCPMOConfig) -> tuple[PreTrainedTokenizerFast, ControlTokens]:
    """The LLM's tokenizer. InputError unless it has the control tokens and the LLM an embedding for every id."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder / 'tokenizer.json'}: missing, it is the LLM's tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise InputError(f"{folder}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from error
    vocabulary = tokenizer.get_vocab()
    strings = {field.name: f"<|{field.name}|>" for field in fields(ControlTokens)} | {"audio_place": "<unk>"}
    if missing := [string for string in strings.values() if string not in vocabulary]:
        raise InputError(f"{folder}: the tokenizer has no token {missing[0]!r}")
    if (highest := max(vocabulary.values())) >= config.llm.vocab_size:
        raise InputError(f"{folder}: the LLM has {config.llm.vocab_size} embeddings, its tokenizer has id {highest}")
    return tokenizer, ControlTokens(**{name: vocabulary[string] for name, string in strings.items()})


def lay_out(turns: Sequence[Turn], config: MiniCPMOConfig, *, speak: bool, omni: bool = False) -> str:
    """The prompt up to where the LLM goes on; with `speak` it is asked for speech, not text alone.

    The caller sees to it that no text holds a control token. InputError for a recording while config.json has no
    `chunk_input`, which decides how recordings are laid out.
    """
    joint = "" if omni else "\n"
    said = "".join(
        f"<|im_start|>{turn.role}\n{joint.join(_part(part, config) for part in turn.parts)}<|im_end|>\n"
        for turn in turns
    )
    return f"{said}<|im_start|>assistant\n{_SPEAK if speak else ''}"


def audio_places(samples: int, config: MiniCPMOConfig) -> str:
    """The tokens that stand for a recording of so many samples at 16 kHz."""
    if config.chunk_input is None:
        raise InputError("config.json: chunk_input: missing, it says how recordings stand in the prompt")
    count = embedding_count(samples, config.audio_pool_step)
    most = embedding_count(int(config.audio_chunk_length * 100) * 160, config.audio_pool_step)
    sizes = [count] if not config.chunk_input else [min(most, count - start) for start in range(0, count, most)]
    return "".join(f"<|audio_start|>{'<unk>' * size}<|audio_end|>" for size in sizes)


def spans(ids: torch.Tensor, begin: int, end: int) -> list[tuple[int, int]]:
    """[start, stop) of what stands between each begin and its end in ids int64 [T]. ValueError unless they pair."""
    begins, ends = ((ids == mark).nonzero()[:, 0].tolist() for mark in (begin, end))
    if len(begins) != len(ends) or any(b >= e for b, e in zip(begins, ends, strict=True)):
        raise ValueError(f"expected pairs of tokens {begin} and {end}, got them at {begins} and {ends}")
    return [(b + 1, e) for b, e in zip(begins, ends, strict=True)]


def speaker_place(ids: torch.Tensor, tokens: ControlTokens) -> int:
    """Where in a prompt int64 [T] the LLM's last hidden state is the voice: at <|spk|> of the last span."""
    found = spans(ids, tokens.spk_bos, tokens.spk_eos)
    if not found or found[-1][1] - found[-1][0] != 1:
        raise ValueError("expected <|spk_bos|><|spk|><|spk_eos|> in the prompt")
    return found[-1][0]


def _part(part: str | Recording, config: MiniCPMOConfig) -> str:
    return audio_places(part.samples, config) if isinstance(part, Recording) else part
