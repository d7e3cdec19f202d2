"""VITA-Audio's vocabulary: Qwen2.5's, then control tokens, then `<|audio_0|>` … one for every unit of GLM-4-Voice.

Every id is asked of the folder's tokenizer by its string: Plus has one control token more than Boost and Balance,
`<|context_of_audio|>`, and everything behind it moves by one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from elocute.errors import InputError
from elocute.models.vita.config import VitaConfig, read_config
from elocute.models.vita.interleave import DEFAULT_RATIO, Heard, interleave, read_answer

AUDIO_TAG = "<|audio|>"
"""Where a recording stands in a message's text."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2.5's turns without a default system message, in place of the tokenizer's own template."""
SYSTEM_PROMPTS = {
    "speech to speech": "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner.",
    "spoken questions": "Your Name: Omni\nYour Gender: female\nRespond in a text-audio interleaved manner.",
}
"""What the authors' demonstration and their evaluation of spoken questions ask with; their ASR and TTS have none."""
ASR_REQUEST, TTS_REQUEST = "Convert the speech to text.\n<|audio|>", "Convert the text to speech.\n"
"""The user's words that ask for a transcript, and those before a text to be read aloud."""

_NAMES = {
    "begin": "<|begin_of_audio|>",
    "end": "<|end_of_audio|>",
    "turn_start": "<|im_start|>",
    "turn_end": "<|im_end|>",
    "text_end": "<|endoftext|>",
}
_UNIT = re.compile(r"<\|audio_(\d+)\|>")


@dataclass(frozen=True)
class VitaTokens:
    """Ids by what they mean. begin, end: around speech; context: a place of heard audio, None where units are heard.

    first_unit + u is unit u of n_units, and the last of them the last id that means anything: rows of the embeddings
    from `size` on are padding, never to be sampled.
    """

    tokenizer: PreTrainedTokenizerFast
    begin: int
    end: int
    turn_start: int
    turn_end: int
    text_end: int
    context: int | None
    first_unit: int
    n_units: int

    @property
    def size(self) -> int:
        return self.first_unit + self.n_units

    @property
    def stops(self) -> tuple[int, int]:
        """What ends an answer."""
        return self.turn_end, self.text_end

    # the prompt

    def encode_chat(self, messages: Sequence[Mapping[str, str]], audios: Sequence[Sequence[int] | int]) -> Tensor:
        """Messages ({"role", "content"}) as a prompt to answer, int64 [P].

        audios: for each `<|audio|>`, in reading order, its units, or the number of embeddings it takes as context.
        InputError when there are more or fewer, or an audio is not what this model hears.
        """
        text = self.tokenizer.apply_chat_template(
            list(messages), chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        first, *rest = text.split(AUDIO_TAG)
        if len(rest) != len(audios):
            raise InputError(f"the messages have {len(rest)} places for audio, {AUDIO_TAG}, for {len(audios)} audios")
        ids = self.encode(first)
        for audio, piece in zip(audios, rest, strict=True):
            ids += [*self._heard(audio), *self.encode(piece)]
        return torch.tensor(ids)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _heard(self, audio: Sequence[int] | int) -> list[int]:
        if not isinstance(audio, int):
            return [self.begin, *self.units(audio), self.end]
        if self.context is None:
            raise InputError("this model hears units of audio; it has no <|context_of_audio|> for features")
        return [self.begin, *[self.context] * audio, self.end]

    def units(self, units: Sequence[int]) -> list[int]:
        """Units, from 0, as ids. InputError for one that the vocabulary does not have."""
        units = [int(unit) for unit in units]
        if units and not 0 <= min(units) <= max(units) < self.n_units:
            raise InputError(f"expected units 0 … {self.n_units - 1}, got {min(units)} … {max(units)}")
        return [self.first_unit + unit for unit in units]

    # the answer

    def lay_out(
        self, text: str, units: Sequence[int], ratio: Sequence[int] = DEFAULT_RATIO, *, where: str = "the answer"
    ) -> list[int]:
        """What an answer says and sounds like → its ids in the order of `ratio`, with the end of its turn.

        text: as it is trained, with the newline that stands between an answer's text and its speech. The original also
        trains the newline behind the turn's end, which is not here: an answer is over before it.
        """
        content = [*self.encode(text), self.begin, *self.units(units), self.end]
        return [*interleave(content, self.begin, self.end, ratio, where=where), self.turn_end]

    def read(self, ids: Sequence[int]) -> Heard:
        """An answer's ids, without its prompt, → what it says and sounds like; markers may lack or be doubled."""
        return read_answer(
            ids, begin=self.begin, end=self.end, first_unit=self.first_unit, n_units=self.n_units, stops=self.stops
        )

    def is_text(self, ids: Tensor) -> Tensor:
        """bool, of the shape of the ids: text, the turn's end among it; else speech, its markers among it.

        In an answer that was sampled every token was: the markers and the turn's end, too. None is forced.
        """
        return ids < self.begin


def load_tokens(folder: str | Path) -> VitaTokens:
    """The vocabulary of a published folder. InputError where a token lacks, or does not fit config.json."""
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder / 'tokenizer.json'}: expected beside config.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file: tokenizers raises what it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: not a tokenizer that transformers can load: {reason}") from error
    return resolve(folder, tokenizer, config)


def resolve(folder: Path, tokenizer: PreTrainedTokenizerFast, config: VitaConfig) -> VitaTokens:
    """Find the tokens by their strings."""
    vocabulary = tokenizer.get_vocab()
    names = _NAMES | ({"context": "<|context_of_audio|>"} if config.hears_features else {})
    for string in (*names.values(), AUDIO_TAG, "<|audio_0|>"):
        if string not in vocabulary:
            raise InputError(f"{folder}: the tokenizer lacks {string}, which {config.model_type} has")
    first = vocabulary["<|audio_0|>"]
    units = {int(found[1]): id for string, id in vocabulary.items() if (found := _UNIT.fullmatch(string))}
    n_units = len(units)
    if any(units.get(unit) != first + unit for unit in range(n_units)):
        raise InputError(f"{folder}: the tokenizer's <|audio_0|> … do not follow each other up to {n_units - 1}")
    if max(vocabulary.values()) != first + n_units - 1:
        raise InputError(f"{folder}: the tokenizer has tokens behind <|audio_{n_units - 1}|>; units come last")
    if first + n_units > config.vocab_size:
        raise InputError(
            f"{folder}: vocab_size: {config.vocab_size} embeddings, the tokenizer has ids up to {first + n_units - 1}"
        )
    ids = {name: vocabulary[string] for name, string in names.items()}
    return VitaTokens(tokenizer, first_unit=first, n_units=n_units, **({"context": None} | ids))
