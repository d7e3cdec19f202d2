"""CSM as a speech LM that reads aloud: a text in a speaker's voice, after what was said before it, if anything was.

The folder that transformers saves, and the Hub has, loads as it is. A row is that of a TTS model: its last message is
the text to speak. Messages before it are context, each with its recording: the voice to speak in, the conversation so
far. The row's field `speakers` says who speaks each message, by number; without it everyone is speaker 0. Labels, if a
row has any, reach the model in words in front of the text, as the paper's schema puts them (prosody/schema.py).

A step of an answer is a frame of Mimi: the backbone says codebook 0, the depth decoder the others, one after the other.
The end is a frame of the end's code. All cells are sampled, speech and actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import CsmForConditionalGeneration, DynamicCache

from elocute.data.cache import EncodedAudio
from elocute.data.types import Answer as JudgedAnswer
from elocute.data.types import AudioRef, Example, Utterance
from elocute.errors import InputError
from elocute.models.csm_prompt import NO_TEXT, CsmTemplate, load_template
from elocute.models.frames import FrameLM, StackedHead
from elocute.models.layout import Tokens
from elocute.models.speech_lm import load_network, units_of
from elocute.speech.mimi import MimiCodec


class Answer:
    """One answer as it grows, as models/layout.py has it: frames, up to the one that ends it.

    units: the frames' codes [T][codebooks]; broken: why this is no proper answer, or None.
    """

    stage = 0
    text_ids: Sequence[int] = ()

    def __init__(self, codebooks: int, end: int):
        self._codebooks, self._end = codebooks, end
        self.frames: list[tuple[int, ...]] = []
        self.broken: str | None = None
        self.done = False

    def forced(self) -> tuple[None, ...]:
        return (None,) * self._codebooks

    def push(self, *cells: int) -> None:
        """Take the next frame. It is the end as transformers has it: whatever stands in the last codebook."""
        self.frames.append(tuple(map(int, cells)))
        self.done = all(cell == self._end for cell in cells[:-1])

    def close(self) -> None:
        """No more frames will come: an answer without an end is broken, and so is one without a sound."""
        if not self.done:
            self.broken, self.done = "no end: the answer was cut at the longest length allowed", True
        elif not self.units:
            self.broken = "empty audio"

    def tokens(self) -> Tokens:
        ids = torch.tensor([code for frame in self.frames for code in frame], dtype=torch.int64)
        return Tokens(ids, torch.zeros(len(ids), dtype=torch.bool), torch.ones(len(ids), dtype=torch.bool))

    @property
    def units(self) -> list[tuple[int, ...]]:
        ended = self.frames and all(cell == self._end for cell in self.frames[-1][:-1])
        return self.frames[:-1] if ended else self.frames


@dataclass(frozen=True)
class Layout:
    """What an answer's cells are, as models/layout.py has it. end: the code that ends the speech."""

    codebooks: int
    end: int
    writes = False
    text_end = None

    def cursor(self) -> Answer:
        """An answer that has not begun."""
        return Answer(self.codebooks, self.end)

    def read(self, ids: Sequence[int]) -> Answer:
        """Replay an answer's cells; of a frame that is not whole nothing is taken."""
        answer, cells = self.cursor(), list(map(int, ids))
        for start in range(0, len(cells) - self.codebooks + 1, self.codebooks):
            if answer.done:
                break
            answer.push(*cells[start : start + self.codebooks])
        return answer


class CsmLM(FrameLM):
    """A CSM that reads aloud. Its prompts are int64 [P, 1 + codebooks], see models/csm_prompt.py."""

    reads_aloud, takes_questions = True, False
    load_template = staticmethod(load_template)

    def __init__(self, network, template: CsmTemplate, codec: MimiCodec, folder: Path):
        config = template.config
        super().__init__(network, Layout(config.num_codebooks, config.codebook_eos_token_id), codec, {})
        self.template, self.folder, self.streams = template, folder, (config.num_codebooks,)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "CsmLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        template = load_template(folder)
        codec = MimiCodec.load(folder, template.config.num_codebooks)
        network = load_network(folder, dtype, CsmForConditionalGeneration)
        del network.codec_model  # stays in float32, is never trained, and no adapter may find its layers
        return cls(network, template, codec, folder)

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio | None = None) -> torch.Tensor:
        """The row up to where the answer begins. InputError names the row and what it has no place for.

        audio: for context; not needed where there is none.
        """
        cells = self.template.encode_row(example, audio)
        self.check_length(f"{example.where}: messages", len(cells) + 1)
        return cells

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        where = f"{example.where}: {name}_audio"
        if ref is None:
            raise InputError(f"{where}: expected the text's speech")
        if ref.cut:
            raise InputError(f"{where}: it was cut before its end; this model's answers must end")
        codes = torch.from_numpy(units_of(example, f"{name}_audio", ref, audio))
        end = torch.full((1, self.layout.codebooks), self.layout.end)
        answer = self.layout.read(torch.cat([codes, end]).flatten())
        if len(answer.frames) <= len(codes):
            raise InputError(f"{where}: its frame {len(answer.frames) - 1} is the one that ends an answer")
        prompt = self.encode_prompt(example, audio)
        self.check_length(where, len(prompt) + len(answer.frames))
        return answer.tokens()

    # tokens out

    def _judged(self, example: Example, utterance: Utterance) -> JudgedAnswer:
        """Its text is the one that should be heard."""
        return JudgedAnswer(example, replace(utterance, text=example.messages[-1].content))

    # the network

    def head(self) -> torch.nn.Module:
        """Codebook 0's."""
        return self.core().lm_head

    def trunk(self):
        """The backbone."""
        return self.core().backbone_model

    def depth_heads(self) -> list[torch.nn.Module]:
        """Of codebook 1, 2 …"""
        heads = self.core().depth_decoder.codebooks_head
        return [StackedHead(lambda cell=cell: heads.weight[cell].T) for cell in range(heads.num_codebooks - 1)]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Frames [B, T, codebooks]: the sum of their codes."""
        return self.core().backbone_model.embed_tokens(ids)

    def embed_prompt(self, cells: torch.Tensor) -> torch.Tensor:
        """Text where there is one, else the frame."""
        text = cells[..., 0]
        written = self.core().embed_text_tokens(text.clamp(min=0))
        return torch.where((text == NO_TEXT)[..., None], self.embed(cells[..., 1:]), written)

    def depth(self, hidden: torch.Tensor, cells: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The backbone's state is what the depth decoder reads first, before the frame's cells."""
        model = self.core().depth_decoder.model
        known = 0 if cache is None else cache.get_seq_length()
        place = torch.arange(cells.shape[1], device=cells.device) + max(known - 1, 0)
        embeds = model.embed_tokens(cells + place * model.vocab_size)
        if known == 0:
            embeds = torch.cat([hidden[:, None], embeds], 1)
        mask = cells.new_ones(len(cells), known + embeds.shape[1])  # without one, transformers fails where n = m + 1
        out = model(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
        states = out.last_hidden_state
        return states[:, 1:] if known == 0 else states
