"""Kimi-Audio as a speech LM: text and speech in two parallel streams (models/kimi has its parts).

The published folder loads as it is. What it does not hold is the tokenizer of what is heard, GLM-4-Voice's: it lies in
`glm-4-voice-tokenizer` in the folder or beside it, or where an `elocute.json` in the folder says:

    {"kind": "kimi_audio", "speech_tokenizer": "/where/glm-4-voice-tokenizer"}

A step of an answer is two cells, audio and text (kimi/reply.py). What is heard comes in twice: as codes, and as
features of a frozen Whisper, which need the sound itself; a store of codes is not enough for a question.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.files import link_folder
from elocute.data.rows import AUDIO_MARK
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError
from elocute.models import kimi, one_stream
from elocute.models.batch import Batch, States
from elocute.models.growing_cache import give_room
from elocute.models.layout import Tokens
from elocute.models.speech_lm import SpeechLM, beside, check_answer, read_settings, sound_of, units_of
from elocute.speech.glm4voice.tokenizer import check_units
from elocute.speech.kimi.codec import KimiCodec
from elocute.speech.kimi.detokenizer import check_voice
from elocute.speech.kimi.whisper import WhisperFeatures, check_whisper

STREAMS = 2
TOKENIZER = "glm-4-voice-tokenizer"
WHISPER = "whisper-large-v3"


@dataclass(frozen=True)
class Prompt:
    """Both streams int64 [T, 2]; continuous bool [T], where speech is heard; features [continuous cells, A] of it."""

    ids: torch.Tensor
    continuous: torch.Tensor
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """An answer's two streams, as models/layout.py has it for one."""

    marks: kimi.Marks
    writes = True

    @property
    def text_end(self) -> int:
        return self.marks.text_eos

    def cursor(self) -> kimi.Reply:
        """An answer that has not begun."""
        return kimi.Reply(self.marks, speaks=True)

    def read(self, ids: Sequence[int]) -> kimi.Reply:
        """Replay an answer's cells [2·T]; the reply says what they are and whether they are a proper answer."""
        reply, cells = self.cursor(), iter(map(int, ids))
        for audio, text in zip(cells, cells, strict=True):
            if reply.done:
                break
            reply.push(audio, text)
        return reply


class KimiLM(SpeechLM):
    """A Kimi-Audio that answers in text and speech."""

    streams = (STREAMS,)

    def __init__(self, network, tokenizer, marks: kimi.Marks, codec: KimiCodec, whisper: WhisperFeatures, folder: Path):
        super().__init__(network, Layout(marks), codec, {})
        self.tokenizer, self.whisper, self.folder = tokenizer, whisper, folder

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "KimiLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        tokenizer, marks, _ = load_vocabulary(folder)
        codec = KimiCodec.load(folder, speech_tokenizer(folder))
        whisper = WhisperFeatures.load(folder / WHISPER)
        return cls(kimi.load_network(folder, dtype=dtype), tokenizer, marks, codec, whisper, folder)

    def save(self, folder: str | Path) -> None:
        """Write a folder as it was published (LoRA merged), the tokenizer in it: it can be moved anywhere."""
        folder = Path(folder)
        kimi.save_network(self.plain_model(), self.folder, folder)
        link_folder(speech_tokenizer(self.folder), folder / TOKENIZER)
        (folder / "elocute.json").write_text(json.dumps({"kind": "kimi_audio"}, indent=2) + "\n")

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> Prompt:
        """The conversation up to where the answer begins. InputError names the row and what it has no place for."""
        refs, said, heard = iter(example.audios), [], []
        for message in example.messages:
            pieces = message.content.split(AUDIO_MARK)
            spoken = [next(refs) for _ in pieces[1:]]
            if message.role == "assistant":
                said.append(self._own(example, pieces, spoken, audio))
                continue
            for index, piece in enumerate(pieces):
                if index:
                    said.append(kimi.Said(message.role, codes=units_of(example, "audios", spoken[index - 1], audio)))
                    heard.append(self._features(example, spoken[index - 1], len(said[-1].codes)))
                if piece.strip():
                    said.append(kimi.Said(message.role, text=self.tokenizer.encode(piece.strip())))
        try:
            laid = kimi.lay_out_prompt(said, self.layout.marks, speaks=True)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error
        features = torch.cat(heard) if heard else torch.zeros(0, self.whisper.width)
        return Prompt(torch.stack([laid.audio, laid.text], 1), laid.continuous, features)

    def _own(self, example: Example, pieces: list[str], spoken: list[AudioRef], audio: EncodedAudio) -> kimi.Said:
        """An earlier answer: its text, and its speech if that is there."""
        if len(spoken) > 1:
            raise InputError(f"{example.where}: messages: an assistant's message holds {len(spoken)} recordings, not 1")
        text = self.tokenizer.encode("".join(pieces).strip())
        codes = units_of(example, "audios", spoken[0], audio) if spoken else None
        return kimi.Said("assistant", text=text, codes=codes)

    def _features(self, example: Example, ref: AudioRef, codes: int) -> torch.Tensor:
        """What Whisper hears in one recording, [codes, A]."""
        return kimi.fit_features([self.whisper.encode(*sound_of(example, ref))], [codes])

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        check_answer(example, name, text, ref)
        codes = units_of(example, f"{name}_audio", ref, audio)
        try:
            return kimi.lay_out_target(self.tokenizer.encode(text), codes, self.layout.marks).flat()
        except InputError as error:
            raise InputError(f"{example.where}: {name}: {error}") from error

    # the network

    def heads(self) -> list[torch.nn.Module]:
        """Of the audio stream, of the text stream."""
        return [self.core().mimo_output, self.core().lm_head]

    def layers(self) -> list[torch.nn.Module]:
        """The main ones, then the branch's."""
        return [*self.core().model.layers, *self.core().model.mimo_layers]

    def run(self, **inputs) -> kimi.KimiHidden:
        """Run everything below the heads, in the type that training computes in."""
        head = self.head().weight
        with self.computing():
            out = self.core().model(**inputs)
        return kimi.KimiHidden(out.audio.to(head.dtype), out.text.to(head.dtype), out.past_key_values)

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells, of the audio stream and of the text stream."""
        hidden = (self._shared if share_prompts else self._joined)(batch)
        step, stream = batch.columns // STREAMS, batch.columns % STREAMS
        found = []
        for number, (states, head) in enumerate(zip(hidden, self.heads(), strict=True)):
            [where] = (stream == number).nonzero(as_tuple=True)
            found.append(States(states[batch.rows[where], step[where]], head, where))
        return found

    def _shared(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """States [B, T, D] before each step, of both streams; every prompt is run once."""
        prompt = padded(batch.prompts, batch.answer_ids.device)
        out = self.run(**prompt, use_cache=True)
        first = out.audio[batch.owner, -1:], out.text[batch.owner, -1:]
        answer, mask = _steps(batch)
        if answer.shape[1] == 1:
            return first
        out.past_key_values.batch_select_indices(batch.owner)
        whole = torch.cat([prompt["attention_mask"][batch.owner], mask[:, :-1]], 1)
        rest = self.run(
            audio_ids=answer[:, :-1, 0],
            text_ids=answer[:, :-1, 1],
            attention_mask=whole,
            position_ids=one_stream.positions(whole)[:, prompt["attention_mask"].shape[1] :],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        return torch.cat([first[0], rest.audio], 1), torch.cat([first[1], rest.text], 1)

    def _joined(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in one pass, each answer behind its own copy of the prompt."""
        device = batch.answer_ids.device
        prompt = padded([batch.prompts[owner] for owner in batch.owner.tolist()], device)
        answer, mask = _steps(batch)
        start = prompt["audio_ids"].shape[1]
        whole = torch.cat([prompt["attention_mask"], mask], 1)
        out = self.run(
            audio_ids=torch.cat([prompt["audio_ids"], answer[..., 0]], 1),
            text_ids=torch.cat([prompt["text_ids"], answer[..., 1]], 1),
            features=prompt["features"],
            continuous=torch.nn.functional.pad(prompt["continuous"], (0, answer.shape[1])),
            attention_mask=whole,
            position_ids=one_stream.positions(whole),
        )
        return out.audio[:, start - 1 : -1], out.text[:, start - 1 : -1]

    def decoders(self, prompts: Sequence[Prompt], group_size: int, cursors: Sequence) -> Iterator["Decoder"]:
        """What grows `group_size` answers to each prompt."""
        yield Decoder(self, prompts, group_size)


class Decoder:
    """Answers that grow, as models/one_stream.py has it; hidden: [rows, D] of the audio and of the text stream."""

    def __init__(self, lm: KimiLM, prompts: Sequence[Prompt], group_size: int):
        self.lm, self.heads = lm, lm.heads()
        self.rows = range(len(prompts) * group_size)
        inputs = padded(prompts, lm.head().weight.device)
        out = lm.run(**inputs, use_cache=True)
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(group_size)
        give_room(self.cache)
        self.mask = inputs["attention_mask"].repeat_interleave(group_size, 0)
        self.position = inputs["position_ids"][:, -1].repeat_interleave(group_size)
        self.hidden = [states[:, -1].repeat_interleave(group_size, 0) for states in (out.audio, out.text)]

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next cells, int64 [rows, 2]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        self.position = self.position + 1
        out = self.lm.run(
            audio_ids=ids[:, :1],
            text_ids=ids[:, 1:],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = [out.audio[:, -1], out.text[:, -1]]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def padded(prompts: Sequence[Prompt], device) -> dict[str, torch.Tensor]:
    """Prompts on the right of zeros, as the network takes them."""

    def pad(parts):
        return torch.nn.utils.rnn.pad_sequence(list(parts), True, padding_side="left").to(device)

    ids, mask = pad(prompt.ids for prompt in prompts), pad(torch.ones(len(prompt)).long() for prompt in prompts)
    return {
        "audio_ids": ids[..., 0],
        "text_ids": ids[..., 1],
        "features": torch.cat([prompt.features for prompt in prompts]).to(device),
        "continuous": pad(prompt.continuous for prompt in prompts),
        "attention_mask": mask,
        "position_ids": one_stream.positions(mask),
    }


def load_vocabulary(folder: Path) -> tuple[kimi.KimiTokenizer, kimi.Marks, kimi.KimiConfig]:
    """All of a folder but weights. InputError names what is missing or does not fit, of what hears and speaks, too."""
    heard_by = speech_tokenizer(folder)
    if unknown := set(read_settings(folder)) - {"kind", "speech_tokenizer"}:
        raise InputError(f"{folder / 'elocute.json'}: {sorted(unknown)[0]}: unknown key")
    kimi.check_network(folder)
    tokenizer, marks, config = kimi.load_vocabulary(folder)
    check_units(heard_by, marks.n_codes, folder)
    if (width := check_whisper(folder / WHISPER)) != (takes := config.kimia_adaptor_input_dim):
        raise InputError(f"{folder}: {WHISPER} gives features of {width}, kimia_adaptor_input_dim is {takes}")
    if (knows := check_voice(folder)) < marks.n_codes:
        raise InputError(f"{folder}: the voice knows {knows} codes, the model's vocabulary has {marks.n_codes}")
    return tokenizer, marks, config


def speech_tokenizer(folder: Path) -> Path:
    """The folder of the tokenizer of what is heard. InputError when there is none."""
    return beside(folder, "speech_tokenizer", TOKENIZER)


def _steps(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's answers step by step: ids [B, T, 2], mask [B, T]."""
    rows = len(batch.answer_ids)
    return batch.answer_ids.view(rows, -1, STREAMS), batch.answer_mask[:, ::STREAMS]
