"""Moshi as a speech LM: it hears and speaks at once, and writes down what it says (a monologue in its text stream).

The folder that transformers saves, and the Hub has, loads as it is. Time runs in frames of Mimi, 80 ms each; in each
the network reads a token of Moshi's text, Moshi's codes and the user's. The user speaks, so a user's message is a
recording and nothing else; while one speaks, the other's stream is silence (one frame of it, again and again), and
Moshi's text is padding. Moshi's earlier answers are context: text and recording.

A step of an answer is Moshi's text token, from the backbone, and its codes, from the depth decoder, one by one. The
acoustic codes, all but the first, stand one frame late: those of an answer's first step still belong to Moshi's silence
and are forced. The user is silent meanwhile. Moshi never ends: an answer is as long as it is allowed to be.

A target's words stand where they are said, if the row's field `sft_target_words` says so (`rejected_words` likewise):
`[["Fifty", 0.08], ["two", 0.4]]`, words and the seconds at which they begin; else they are spread over the speech. A
silent frame follows, in which the last acoustic codes are said.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from transformers import AutoTokenizer, DynamicCache, MoshiConfig, MoshiForConditionalGeneration
from transformers.masking_utils import create_causal_mask
from transformers.models.moshi.modeling_moshi import MoshiFlexibleLinear

from elocute.data.cache import EncodedAudio
from elocute.data.rows import AUDIO_MARK
from elocute.data.shards import Shards
from elocute.data.types import AudioRef, Example, Message
from elocute.errors import InputError
from elocute.models.frames import FrameLM, StackedHead, check_codec, load_config
from elocute.models.interleaved import load_tokenizer
from elocute.models.layout import Tokens
from elocute.models.speech_lm import check_answer, load_network, units_of
from elocute.speech.mimi import MimiCodec


@dataclass(frozen=True)
class Layout:
    """What an answer's cells are, as models/layout.py has it.

    silence: the codes of a silent frame; padding: Moshi's text token where it says no word; before_word: the one that
    ends padding.
    """

    silence: tuple[int, ...]
    padding: int
    before_word: int
    writes = True
    text_end = None

    def cursor(self) -> "Answer":
        """An answer that has not begun."""
        return Answer(self)

    def read(self, ids: Sequence[int]) -> "Answer":
        """Replay an answer's cells; of a step that is not whole nothing is taken."""
        answer, cells, width = self.cursor(), list(map(int, ids)), 1 + len(self.silence)
        for start in range(0, len(cells) - width + 1, width):
            answer.push(*cells[start : start + width])
        return answer


class Answer:
    """One answer as it grows, as models/layout.py has it.

    text_ids: the words; units: the codes of its frames [T][codebooks], the delay undone; broken: why this is no proper
    answer, or None.
    """

    stage = 0
    done = False

    def __init__(self, layout: Layout):
        self._layout = layout
        self.steps: list[tuple[int, ...]] = []
        self.broken: str | None = None

    def forced(self) -> tuple[int | None, ...]:
        silence = self._layout.silence
        return (None,) * (1 + len(silence)) if self.steps else (None, None, *silence[1:])

    def push(self, *cells: int) -> None:
        """Take the next step: text and codes."""
        self.steps.append(tuple(map(int, cells)))

    def close(self) -> None:
        """No more steps will come. One without a frame is broken."""
        if not self.units:
            self.broken = "empty audio"

    def tokens(self) -> Tokens:
        ids = torch.tensor([cell for step in self.steps for cell in step], dtype=torch.int64)
        text = torch.arange(len(ids)) % (1 + len(self._layout.silence)) == 0
        action = torch.ones(len(ids), dtype=torch.bool)
        action[2 : 1 + len(self._layout.silence)] = False
        return Tokens(ids, text, action)

    @property
    def text_ids(self) -> list[int]:
        silent = (self._layout.padding, self._layout.before_word)
        return [step[0] for step in self.steps if step[0] not in silent]

    @property
    def units(self) -> list[tuple[int, ...]]:
        return [(now[1], *after[2:]) for now, after in zip(self.steps, self.steps[1:], strict=False)]


class MoshiLM(FrameLM):
    """A Moshi that answers in text and speech.

    Its prompts are int64 [P, 1 + 2 · codebooks]: text, Moshi's codes and the user's, frame by frame, none delayed.
    """

    apart = ("audio_encoder.",)

    def __init__(self, network, tokenizer, codec: MimiCodec, folder: Path):
        padding, before_word = marks_of(folder, tokenizer)
        super().__init__(network, Layout(tuple(codec.silence().tolist()), padding, before_word), codec, {})
        self.tokenizer, self.folder, self.streams = tokenizer, folder, (1 + codec.codebooks,)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "MoshiLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        tokenizer, config = load_vocabulary(folder)
        codec = MimiCodec.load(folder, config.num_codebooks)
        network = load_network(folder, dtype, MoshiForConditionalGeneration)
        del network.audio_encoder  # stays in float32, is never trained, and no adapter may find its layers
        for module in network.modules():
            if type(module) is MoshiFlexibleLinear:
                module.__class__ = FlexibleLinear
        return cls(network, tokenizer, codec, folder)

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> torch.Tensor:
        """The conversation up to where the answer begins. InputError names the row and what it has no place for."""
        config, layout, refs = self.core().config, self.layout, iter(example.audios)
        count = len(layout.silence)
        frames = [torch.tensor([[config.vocab_size, *[config.audio_vocab_size] * 2 * count]])]
        silence = torch.tensor([layout.silence])
        for message in example.messages:
            where = f"{example.where}: messages"
            pieces = message.content.split(AUDIO_MARK)
            words = "".join(pieces).split()
            if message.role == "system" or (message.role == "user") == bool(words) or len(pieces) < 2:
                raise InputError(f"{where}: expected {_expected(message)}")
            codes = [torch.from_numpy(units_of(example, "audios", next(refs), audio)) for _ in pieces[1:]]
            codes = torch.cat(codes)
            other = silence.expand(len(codes), -1)
            if message.role == "user":
                text, streams = [layout.padding] * len(codes), [other, codes]
            else:
                text, streams = self._text(where, words, None, len(codes)), [codes, other]
            frames.append(torch.cat([torch.tensor(text)[:, None], *streams], 1))
        prompt = torch.cat(frames)
        self.check_length(f"{example.where}: audios", len(prompt) + 1)
        return prompt

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        check_answer(example, name, text, ref, ends=False)
        codes = units_of(example, f"{name}_audio", ref, audio).tolist()
        after = [] if ref.cut else [list(self.layout.silence)]
        frames = codes + after
        starts = _starts(example, f"{name}_words", text.split())
        words = self._text(f"{example.where}: {name}_text", text.split(), starts, len(frames))
        acoustic = [list(self.layout.silence), *frames]
        steps = [[word, now[0], *late[1:]] for word, now, late in zip(words, frames, acoustic, strict=False)]
        return self.layout.read([cell for step in steps for cell in step]).tokens()

    def _text(self, where: str, words: Sequence[str], starts: Sequence[float] | None, frames: int) -> list[int]:
        """The text stream of some frames. starts: at which second each word is said; None: spread over the frames."""
        ids = [self.tokenizer.encode(word, add_special_tokens=False) for word in words]
        total = sum(map(len, ids))
        if total > frames:
            raise InputError(f"{where}: {total} tokens, and {frames} frames of speech: it writes one token a frame")
        rate = self.codec.model.config.frame_rate
        if starts is None:
            places = [before * frames // total for before in accumulate([0, *map(len, ids)])][: len(ids)]
        else:
            places = [int(second * rate) for second in starts]
        return text_stream(ids, places, frames, self.layout.padding, self.layout.before_word)

    # tokens out

    def written(self, text_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(text_ids, skip_special_tokens=True).strip()

    # the network

    def head(self) -> torch.nn.Module:
        """The text's."""
        return self.core().decoder.lm_head

    def trunk(self):
        """The backbone."""
        return self.core().decoder.model

    def depth_heads(self) -> list[torch.nn.Module]:
        """The codebooks'."""
        heads = self.core().depth_decoder.lm_heads
        return [StackedHead(lambda cell=cell: heads.weight[cell]) for cell in range(len(heads.weight))]

    def lora_modules(self, targets: Sequence[str]) -> list[str]:
        """The backbone's linear layers below modules of these names; the depth decoder's are stacks, which peft's LoRA
        cannot reach."""
        return [
            name
            for name, module in self.core().named_modules()
            if isinstance(module, torch.nn.Linear) and set(targets) & set(name.split("."))
        ]

    def prompt_inputs(self, prompts: Sequence[torch.Tensor], device) -> dict[str, torch.Tensor]:
        """Prompts on the right of padding, as embeddings, their acoustic codes a frame late."""
        return super().prompt_inputs([delayed(prompt, len(self.layout.silence)) for prompt in prompts], device)

    def beside(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the user says while Moshi answers: the question's last acoustic codes, and silence."""
        silence = torch.tensor(self.layout.silence)
        last = torch.stack([prompt[-1, -len(silence) :] for prompt in prompts])
        first = torch.cat([silence[:1].expand(len(last), -1), last[:, 1:]], 1)
        return torch.stack([first, silence.expand_as(first)], 1)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, 1 + 2 · codebooks]: the sum of their tokens."""
        core = self.core()
        codes = sum(table(ids[..., 1 + stream]) for stream, table in enumerate(core.embed_tokens))
        return core.decoder.model.embed_tokens(ids[..., 0]) + codes

    def depth(self, hidden: torch.Tensor, cells: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """Each cell is read together with the backbone's state, by weights of its place's own."""
        decoder = self.core().depth_decoder
        known = 0 if cache is None else cache.get_seq_length()
        place = torch.arange(known, known + cells.shape[1], device=cells.device)
        tables = [decoder.text_embed_tokens, *decoder.embed_tokens][known : known + cells.shape[1]]
        embeds = torch.stack([table(cell) for table, cell in zip(tables, cells.T, strict=True)], 1)
        states = embeds + decoder.input_projections(hidden[:, None], place)
        mask = create_causal_mask(decoder.config, states, None, past_key_values=cache, position_ids=place[None])
        for layer in decoder.layers:
            states = layer(states, mask, place[None], cache, codebook_idx=place)
        return states


class FlexibleLinear(MoshiFlexibleLinear):
    """transformers' layer, as one product for each place: its own makes a copy of the weights for each row."""

    def forward(self, x: torch.Tensor, layer_idx: torch.Tensor | None = None) -> torch.Tensor:
        """x [n, m, D] or [n, 1, D] → [n, m, D'], by the weights of the m places layer_idx."""
        weight = self.weight if layer_idx is None else self.weight[layer_idx]
        return torch.bmm(x.expand(-1, len(weight), -1).transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def delayed(frames: torch.Tensor, codebooks: int) -> torch.Tensor:
    """Frames [T, 1 + 2 · codebooks], the acoustic codes of both speakers a frame late, in frame 0 as they were."""
    late = torch.cat([frames[:1], frames[:-1]])
    semantic = torch.zeros(frames.shape[1], dtype=torch.bool)
    semantic[[0, 1, 1 + codebooks]] = True
    return torch.where(semantic, frames, late)


def text_stream(
    words: Sequence[Sequence[int]], places: Sequence[int], frames: int, padding: int, before_word: int
) -> list[int]:
    """Words' tokens at their places, or right after the word before; earlier where the frames would not do.

    Padding stands between them, and `before_word` at its end. The words have at most as many tokens as frames.
    """
    stream, left = [], sum(map(len, words))
    for ids, place in zip(words, places, strict=True):
        gap = min(place, frames - left) - len(stream)
        if gap > 0:
            stream += [padding] * (gap - 1) + [before_word]
        stream += ids
        left -= len(ids)
    return stream + [padding] * (frames - len(stream))


def load_vocabulary(folder: Path) -> tuple[AutoTokenizer, MoshiConfig]:
    """All of a folder but weights and sound. InputError names what is missing or does not fit."""
    config = load_config(folder, MoshiConfig)
    tokenizer, codec = load_tokenizer(folder), config.audio_encoder_config
    marks_of(folder, tokenizer)
    check_codec(folder, codebooks=config.num_codebooks, codes=config.audio_vocab_size, codec=codec)
    if (size := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {size - 1}, the model's vocabulary {config.vocab_size}"
        )
    Shards.open(folder)
    return tokenizer, config


def marks_of(folder: Path, tokenizer) -> tuple[int, int]:
    """Moshi's tokens for padding and for its end: the pieces <pad> and <unk>, 3 and 0 where it was published."""
    vocabulary = tokenizer.get_vocab()
    for name in ("<pad>", "<unk>"):
        if name not in vocabulary:
            raise InputError(f"{folder}: the tokenizer has no token {name!r}, with which Moshi writes silence")
    return vocabulary["<pad>"], vocabulary["<unk>"]


def _expected(message: Message) -> str:
    if message.role == "system":
        return "none from the system, Moshi hears and speaks only"
    if message.role == "user":
        return f"speech and no text from the user, {AUDIO_MARK}: Moshi hears and does not read"
    return f"text and speech in Moshi's earlier answers, {AUDIO_MARK}"


def _starts(example: Example, field: str, words: Sequence[str]) -> list[float] | None:
    """When a row says that each of an answer's words begins, in seconds; None where it does not."""
    said = example.columns.get(field)
    if said in (None, "", []):
        return None
    try:
        given, starts = zip(*((word, float(second)) for word, second in said), strict=True)
    except (TypeError, ValueError):
        given, starts = (), ()
    if list(given) != list(words) or list(starts) != sorted(starts) or not starts or starts[0] < 0:
        raise InputError(
            f'{example.where}: {field}: expected the words of the text and when they begin, [["Fifty", 0.08], …], got '
            f"{json.dumps(said)[:80]}"
        )
    return list(starts)
