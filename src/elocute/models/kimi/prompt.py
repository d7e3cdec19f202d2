"""How Kimi-Audio's two streams lay out a conversation. b is the blank, the same token in both:

                            audio                           text
    role changes            user_start | assistant_start    b
    user writes             b × n                           t1 … tn
    user speaks             media_begin, c1 … cm, media_end b × (m + 2)           continuous on c1 … cm
    … and says no more      ct (text is asked for) | ctd (text and speech)  b
    assistant wrote         b × (n + 1)                     t1 … tn, text_eos
    assistant wrote, spoke  b × 6, c1 … cm                  t1 … tn, then b to length 6 + m
    role's last message     msg_end                         b
    answer begins           assistant_start                 b

There is no system role. What the assistant spoke earlier stands as an answer would, but without the end of its text:
that is how the original was fine-tuned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from elocute.errors import InputError
from elocute.models.kimi.config import KimiConfig, read_config
from elocute.models.kimi.tokenizer import KimiTokenizer

_NAMES = {
    "msg_end": "<|im_msg_end|>",
    "media_begin": "<|im_media_begin|>",
    "media_end": "<|im_media_end|>",
    "blank": "<|im_kimia_text_blank|>",
    "text_eos": "<|im_kimia_text_eos|>",
    "user_start": "<|im_kimia_user_msg_start|>",
    "assistant_start": "<|im_kimia_assistant_msg_start|>",
    "ct": "<|im_kimia_speech_ct_id|>",
    "ctd": "<|im_kimia_speech_ctd_id|>",
}


@dataclass(frozen=True)
class Marks:
    """Ids that structure the streams. Code c is first_code + c; delay: blanks before an answer's first code."""

    msg_end: int
    media_begin: int
    media_end: int
    blank: int
    text_eos: int
    user_start: int
    assistant_start: int
    ct: int
    ctd: int
    n_base: int
    first_code: int
    n_codes: int
    delay: int

    def is_code(self, token: int) -> bool:
        return self.first_code <= token < self.first_code + self.n_codes

    def ends_audio(self, token: int) -> bool:
        """Which of the two the model learnt in pre-training is not documented; the original stops at both."""
        return token in (self.msg_end, self.media_end)


@dataclass(frozen=True)
class Said:
    """One message: text as ids or None, speech as codes counted from 0 or None. Role user or assistant.

    A user's message is either; an assistant's is text, or text with its speech.
    """

    role: str
    text: Sequence[int] | None = None
    codes: Sequence[int] | None = None


@dataclass(frozen=True)
class Prompt:
    """Both streams int64 [T]; continuous bool [T]: the codes of heard speech, which features are added to."""

    audio: torch.Tensor
    text: torch.Tensor
    continuous: torch.Tensor

    def __len__(self) -> int:
        return len(self.audio)


def load_vocabulary(folder: str | Path) -> tuple[KimiTokenizer, Marks, KimiConfig]:
    """All of a published folder but the weights, checked against each other. InputError for what does not fit."""
    config, tokenizer = read_config(folder), KimiTokenizer.load(folder)
    return tokenizer, find_marks(folder, tokenizer, config), config


def find_marks(folder: str | Path, tokenizer: KimiTokenizer, config: KimiConfig) -> Marks:
    """The ids by their names in the tokenizer. InputError unless they fit those that config.json says."""
    if lacking := [name for name in _NAMES.values() if name not in tokenizer.special]:
        raise InputError(f"{folder}: the tokenizer has no token {lacking[0]!r}")
    ids = {key: tokenizer.special[name] for key, name in _NAMES.items()}
    for key in ("media_begin", "media_end"):
        if (said := getattr(config, f"kimia_{key}")) != ids[key]:
            raise InputError(
                f"{folder}: config.json: kimia_{key}: {said}, but the tokenizer has {_NAMES[key]!r} at {ids[key]}"
            )
    if (highest := max(tokenizer.special.values())) >= config.kimia_token_offset:
        raise InputError(
            f"{folder}: the tokenizer goes up to {highest}, but codes begin at kimia_token_offset "
            f"{config.kimia_token_offset}"
        )
    return Marks(
        **ids,
        n_base=tokenizer.n_base,
        first_code=config.kimia_token_offset,
        n_codes=config.n_codes,
        delay=config.kimia_mimo_audiodelaytokens,
    )


def lay_out_prompt(messages: Sequence[Said], marks: Marks, *, speaks: bool) -> Prompt:
    """A conversation up to where the answer begins. speaks: text and speech are asked for, else text alone.

    InputError for messages that the layout has no place for.
    """
    if not messages or messages[-1].role != "user":
        raise InputError("messages: expected the last one to be the user's")
    streams = _Streams(marks)
    for place, message in enumerate(messages):
        if message.role not in ("user", "assistant"):
            raise InputError(f"messages: role: expected user or assistant, got {message.role!r}")
        if place == 0 or messages[place - 1].role != message.role:
            streams.put(marks.user_start if message.role == "user" else marks.assistant_start)
        (streams.user if message.role == "user" else streams.assistant)(message)
        if place + 1 == len(messages) or messages[place + 1].role != message.role:
            if message.role == "user" and message.codes is not None:
                streams.put(marks.ctd if speaks else marks.ct)
            streams.put(marks.msg_end)
    streams.put(marks.assistant_start)
    return streams.prompt()


def fit_features(features: Sequence[torch.Tensor], lengths: Sequence[int]) -> torch.Tensor:
    """The features of the prompt's recordings, [n, A] each, to the codes that stand for them, lengths m: [Σ m, A].

    Cut where there are more than codes; where there are fewer, the codes left over hear zeros.
    """
    fitted = []
    for rows, length in zip(features, lengths, strict=True):
        lacking = max(0, length - len(rows))
        fitted += [rows[:length], rows.new_zeros(lacking, rows.shape[1])]
    return torch.cat(fitted)


class _Streams:
    """A conversation as it grows."""

    def __init__(self, marks: Marks):
        self.marks = marks
        self.audio: list[int] = []
        self.text: list[int] = []
        self.continuous: list[bool] = []

    def put(self, audio: int, *, text: int | None = None, continuous: bool = False) -> None:
        self.audio.append(audio)
        self.text.append(self.marks.blank if text is None else text)
        self.continuous.append(continuous)

    def user(self, message: Said) -> None:
        if (message.text is None) == (message.codes is None):
            raise InputError("messages: a user's message is either text or speech; several may follow each other")
        for token in message.text or ():
            self.put(self.marks.blank, text=self._checked(token))
        if message.codes is not None:
            self.put(self.marks.media_begin)
            for code in message.codes:
                self.put(self._code(code), continuous=True)
            self.put(self.marks.media_end)

    def assistant(self, message: Said) -> None:
        if message.text is None:
            raise InputError("messages: an assistant's speech stands with its text")
        text = [self._checked(token) for token in message.text]
        if message.codes is None:
            for token in [*text, self.marks.text_eos]:
                self.put(self.marks.blank, text=token)
            return
        audio = [self.marks.blank] * self.marks.delay + [self._code(code) for code in message.codes]
        if len(text) > len(audio):
            raise InputError(
                f"messages: an assistant's text of {len(text)} tokens does not fit beside its speech of "
                f"{len(message.codes)} codes"
            )
        for place, token in enumerate(audio):
            self.put(token, text=text[place] if place < len(text) else None)

    def prompt(self) -> Prompt:
        return Prompt(torch.tensor(self.audio), torch.tensor(self.text), torch.tensor(self.continuous))

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.marks.n_base:
            raise InputError(f"messages: text id {token}: expected 0 … {self.marks.n_base - 1}, no special token")
        return int(token)

    def _code(self, code: int) -> int:
        if not 0 <= code < self.marks.n_codes:
            raise InputError(f"messages: code {code}: expected 0 … {self.marks.n_codes - 1}")
        return self.marks.first_code + int(code)
