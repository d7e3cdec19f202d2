"""MiniCPM-o 2.6 as a speech LM: an LLM writes, a decoder speaks what it wrote (models/minicpm_o has their parts).

The published folder loads as it is. An answer has two stages: the LLM's tokens, one cell a step, up to its terminator;
then the speech decoder's frames, four cells a step, up to the first that holds the end in any codebook. All of them are
sampled, so the voice can be trained: what RLAIF-SPA's released code could not. The decoder reads the answer's text and
a voice, the LLM's state at `<|spk|>`, through which gradients flow into the LLM. Rows with `labels` are read aloud; the
text of their answers may also be forced (minicpm_o/aloud.py).

Where nobody says, the LLM is sampled at 0.7 and the codebooks at 0.1 and 0.3 by turns, as the published model is. What
else the original has for its demonstrations (docs/minicpm-o.md) is not built: nothing is banned and nothing penalised,
what is sampled is what is trained.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import BertTokenizerFast

from elocute.data.audio import resample
from elocute.data.cache import EncodedAudio
from elocute.data.rows import AUDIO_MARK
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError
from elocute.models import one_stream
from elocute.models.batch import Batch, States
from elocute.models.control import check_text
from elocute.models.layout import Tokens
from elocute.models.minicpm_o import MiniCPMO
from elocute.models.minicpm_o.aloud import ChatTemplate, make_template
from elocute.models.minicpm_o.audio import SAMPLE_RATE, fill, hear, log_mel
from elocute.models.minicpm_o.model import make_parts, open_folder
from elocute.models.minicpm_o.prompt import (
    Prompt,
    Recording,
    Turn,
    lay_out,
    load_tokenizer,
    spans,
    speaker_place,
)
from elocute.models.minicpm_o.reply import SPEAKS, Answer, Layout
from elocute.models.minicpm_o.spoken import load_text_tokenizer, target_codes, text_slots
from elocute.models.minicpm_o.tts import SpeechCache
from elocute.models.reading import has_labels, text_of
from elocute.models.speech_lm import SpeechLM, check_answer, sound_of, units_of
from elocute.speech.chat_tts import ChatTTSCodec, check_codec

CODES = (0.1, 0.3)
"""Temperatures of the published decoder, of one codebook and the next."""


class MiniCPMLM(SpeechLM):
    """A MiniCPM-o 2.6 that answers in text and speech, and reads aloud."""

    reads_aloud = True
    apart = ("vpm.", "resampler.", "apm.", "tts.dvae.", "tts.model.embed_tokens.weight")

    def __init__(self, network: MiniCPMO, template: ChatTemplate, reader, codec: ChatTTSCodec):
        config, control = network.config, template.tokens
        super().__init__(network, Layout(control, config.tts.num_vq, config.tts.eos), codec, {})
        self.config, self.tokenizer, self.control, self.reader = config, template.tokenizer, control, reader
        self.template, self.streams = template, (1, config.tts.num_vq)
        self.temperature = (0.7, *(CODES[number % 2] for number in range(config.tts.num_vq)))

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "MiniCPMLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        template, reader = load_vocabulary(folder)
        network = MiniCPMO.load(folder, dtype=dtype)
        network.apm.requires_grad_(False)
        return cls(network, template, reader, ChatTTSCodec.load(folder))

    @classmethod
    def load_template(cls, folder: Path) -> ChatTemplate:
        """All of a folder but weights and sound, checked; how its prompts to read aloud are made."""
        return load_vocabulary(folder)[0]

    def save(self, folder: str | Path) -> None:
        """Write a folder as the published one (LoRA merged)."""
        self.plain_model().save(folder)

    @property
    def context(self) -> int:
        """The LLM's: the most tokens that a prompt and what is written may have together."""
        return self.config.llm.max_position_embeddings

    @property
    def longest_answer(self) -> int:
        """The decoder's: it has positions for no more frames."""
        return self.config.tts.most_frames

    def check_fits(self, what: str, prompt: Prompt, answer: Tokens) -> None:
        """InputError, about `what`: the LLM reads the prompt and what is written, the decoder the frames alone."""
        written = int(answer.text.sum())
        self.check_length(what, len(prompt) + written)
        if (frames := (len(answer) - written) // self.layout.codebooks) > self.longest_answer:
            raise InputError(f"{what}: too long: {frames} frames, the speech decoder holds {self.longest_answer}")

    def lora_modules(self, targets: Sequence[str]) -> list[str]:
        """Modules whose names end so, but for the audio encoder's, which is frozen."""
        names = (name for name, _ in self.core().named_modules() if not name.startswith("apm."))
        return [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> Prompt:
        """The conversation up to where the answer begins, or a text with its labels, to be read aloud.

        InputError names the row and what it has no place for.
        """
        if has_labels(example):
            return self.template.encode_row(example)
        texts = [message.content for message in example.messages]
        check_text(self.template.control, f"{example.where}: messages", *texts)
        refs, turns, mels = iter(example.audios), [], []
        for message in example.messages:
            parts: list[str | Recording] = []
            for index, piece in enumerate(message.content.split(AUDIO_MARK)):
                if index:
                    waveform = resample(*sound_of(example, next(refs)), SAMPLE_RATE)
                    parts.append(Recording(len(waveform)))
                    mels.append(tuple(log_mel(waveform, self.config.audio.num_mel_bins)))
                parts += [piece.strip()] if piece.strip() else []
            turns.append(Turn(message.role, parts))
        try:
            ids = self.tokenizer.encode(lay_out(turns, self.config, speak=True), add_special_tokens=False)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error
        return Prompt(torch.tensor(ids), tuple(mels))

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`; a row to read aloud need not say its text twice."""
        given = self._given(example)
        if has_labels(example):
            text = text or text_of(example)
        check_answer(example, name, text, ref)
        check_text(self.template.control, f"{example.where}: {name}_text", text)
        written = self.template.written(text)
        if given is not None and written != given.tolist():
            raise InputError(f"{example.where}: {name}_text: expected the text to speak, which is forced")
        codes = target_codes(torch.from_numpy(units_of(example, f"{name}_audio", ref, audio)), self.layout.end)
        return self.layout.read([*written, *codes.flatten().tolist()], given).tokens()

    def _begun(self, example: Example) -> Answer:
        return self.layout.cursor(self._given(example))

    def _given(self, example: Example) -> torch.Tensor | None:
        """What its answer has to write, int64 [N]; None where that is sampled."""
        return self.template.encode_row(example).given if has_labels(example) else None

    # the network

    def cursor(self, prompt: Prompt) -> Answer:
        """An answer to a prompt that has not begun."""
        return self.layout.cursor(prompt.given)

    def head(self) -> torch.nn.Module:
        """The LLM's."""
        return self.core().llm.lm_head

    def heads(self) -> list[torch.nn.Module]:
        """The LLM's and the codebooks'."""
        return [self.head(), *self.core().tts.head_code]

    def trunk(self):
        """Below the LLM's head."""
        return self.core().llm.model

    def prompt_inputs(self, prompts: Sequence[Prompt], device) -> dict[str, torch.Tensor]:
        """Prompts on the right of padding, as embeddings: what was heard stands between its marks."""
        inputs = super().prompt_inputs([prompt.ids for prompt in prompts], device)
        ids = inputs.pop("input_ids")
        core, longest, rows = self.core(), ids.shape[1], []
        embedded = core.llm.get_input_embeddings()(ids)
        for prompt, row in zip(prompts, embedded, strict=True):
            if prompt.mels:
                start = longest - len(prompt)
                bounds = spans(prompt.ids, self.control.audio_start, self.control.audio_end)
                heard = [torch.cat(self._hear([mel.to(device) for mel in pieces])) for pieces in prompt.mels]
                places = [(start + a, start + b) for a, b in bounds]
                row = fill(row, places, torch.cat(heard))
            rows.append(row)
        return inputs | {"inputs_embeds": torch.stack(rows)}

    def _hear(self, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        core = self.core()
        return hear(core.apm, core.audio_projection_layer, pieces)

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells: of the LLM, then of each codebook."""
        rows = zip(batch.answer_ids, batch.answer_mask.bool(), strict=True)
        answers = [self.layout.read(ids[mask]) for ids, mask in rows]
        device = batch.answer_ids.device
        written = torch.tensor([len(answer.written) for answer in answers], device=device)
        voice, hidden = self._written(batch, answers)
        in_text = batch.columns < written[batch.rows]
        [where] = in_text.nonzero(as_tuple=True)
        found = [States(hidden[batch.rows[where], batch.columns[where]], self.head(), where)]
        spoken = self._spoken(answers, voice) if any(answer.frames for answer in answers) else None
        cell = (batch.columns - written[batch.rows]).clamp(min=0)
        count = self.layout.codebooks
        for number, head in enumerate(self.core().tts.head_code if spoken is not None else ()):
            [where] = (~in_text & (cell % count == number)).nonzero(as_tuple=True)
            found.append(States(spoken[batch.rows[where], cell[where] // count], head, where))
        return found

    def _written(self, batch: Batch, answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
        """The voice [B, D] of each answer, and the LLM's states [B, N, D] before each of its tokens."""
        device = batch.answer_ids.device
        inputs = self.prompt_inputs(batch.prompts, device)
        texts, mask = one_stream.right_padded([answer.written for answer in answers], device)
        embedded = self.core().llm.get_input_embeddings()(texts)
        whole = torch.cat([inputs["attention_mask"][batch.owner], mask], 1)
        hidden, _ = self.hidden(
            inputs_embeds=torch.cat([inputs["inputs_embeds"][batch.owner], embedded], 1),
            attention_mask=whole,
            position_ids=(whole.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
        start = inputs["attention_mask"].shape[1]
        places = self._voices(batch.prompts, start).to(device)[batch.owner]
        return hidden[torch.arange(len(answers), device=device), places], hidden[:, start - 1 : -1]

    def _voices(self, prompts: Sequence[Prompt], longest: int) -> torch.Tensor:
        """Where each prompt's voice stands once it is padded on the left."""
        return torch.tensor([longest - len(prompt) + speaker_place(prompt.ids, self.control) for prompt in prompts])

    def _slots(self, answers: Sequence[Answer], device) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder reads of each answer: its slots [B, R + 2] and how many are filled [B]."""
        texts = [self.tokenizer.decode(answer.text_ids) for answer in answers]
        slots, lengths = zip(*(text_slots(text, self.reader, self.config.tts) for text in texts), strict=True)
        return torch.stack(slots).to(device), torch.tensor(lengths, device=device)

    def _spoken(self, answers: Sequence[Answer], voice: torch.Tensor) -> torch.Tensor:
        """The decoder's states [B, T, D] that give each frame's codes."""
        tts, slots = self.core().tts, self._slots(answers, voice.device)
        longest = max(len(answer.frames) for answer in answers)
        frames = torch.zeros(len(answers), longest, self.layout.codebooks, dtype=torch.long, device=voice.device)
        for row, answer in zip(frames, answers, strict=True):
            if answer.frames:
                row[: len(answer.frames)] = torch.tensor(answer.frames, device=voice.device)
        with self.computing():
            states = tts(*slots, voice, frames)
        return states.to(tts.head_code[0].weight.dtype)

    def decoders(self, prompts: Sequence[Prompt], group_size: int, cursors: Sequence[Answer]) -> Iterator:
        """The LLM, then the speech decoder for the answers that came to their terminator."""
        writer = one_stream.Decoder(self, prompts, group_size)
        longest = writer.prompt.shape[1]
        places = self._voices(prompts, longest).to(writer.prompt.device)
        voice = writer.prompt[torch.arange(len(prompts)), places].repeat_interleave(group_size, 0)
        yield writer
        rows = [row for row, cursor in enumerate(cursors) if cursor.stage == SPEAKS and not cursor.done]
        if rows:
            yield SpeechDecoder(self, rows, self._slots([cursors[row] for row in rows], voice.device), voice[rows])


class SpeechDecoder:
    """Speech that grows, as models/one_stream.py has it; hidden: [rows, D], once for each codebook."""

    def __init__(self, lm: MiniCPMLM, rows: list[int], slots: tuple[torch.Tensor, torch.Tensor], voice: torch.Tensor):
        self.lm, self.tts, self.rows = lm, lm.core().tts, rows
        self.heads = list(self.tts.head_code)
        text, length = slots
        most = int(length.max())
        self.cache = SpeechCache(most)
        valid = torch.arange(most, device=text.device) < length[:, None]
        with lm.computing():
            self.tts.read_text(self.cache, text[:, :most], valid, voice)
        self._read(None)

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next frames, int64 [rows, codebooks]."""
        self._read(ids)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        self.cache.layers.batch_select_indices(rows)
        self.cache.valid = self.cache.valid[rows]

    def _read(self, ids: torch.Tensor | None) -> None:
        with self.lm.computing():
            states = self.tts.read_frame(self.cache, ids)
        self.hidden = [states.to(self.heads[0].weight.dtype)] * len(self.heads)


def load_vocabulary(folder: Path) -> tuple[ChatTemplate, BertTokenizerFast]:
    """All of a folder but weights and sound. InputError names what is missing or does not fit."""
    config, source = open_folder(folder)
    make_parts(config, source)
    check_codec(folder)
    return make_template(folder, config, *load_tokenizer(folder, config)), load_text_tokenizer(folder, config.tts)
