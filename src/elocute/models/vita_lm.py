"""VITA-Audio as a speech LM: text and speech interleaved in one stream (models/vita has its parts).

The published folder loads as it is. GLM-4-Voice's codec, with which it speaks (and Boost and Balance hear), lies beside
it, in `glm-4-voice-tokenizer` and `glm-4-voice-decoder`, or where an `elocute.json` in the folder says:

    {"kind": "vita_audio", "speech_tokenizer": "/where/glm-4-voice-tokenizer", "speech_decoder": "/where/…-decoder",
     "mtp": "boost", "ratio": [1, 10, 4, 10]}

Every token of an answer is sampled, markers and the turn's end, too; padding behind the vocabulary never is. What Plus
hears comes from its own encoder, which is frozen as in the original's training; the projector behind it is trained
wherever the LLM's own weights are, and stays as it is beside an adapter.

`mtp` says which head samples which token: "off" (the main head all of them), "turbo", "boost", "balance" or a schedule
(vita/decoding.py); where it is not said, generation_config.json's `mtp_inference_mode`, and Vanilla has nothing but the
main head. Each token of an answer, sampled or to be learnt from, is scored by the very head that says it, without the
original's detaching: its log-prob is a function of the main layers, too. With "off" multi-token prediction stays as it
is, and is saved again.

`ratio` says in which order the text and speech of an answer to learn stand (vita/interleave.py); where it is not said,
the schedule of generation_config.json is also that, for training wrote it there, and where that holds no speech, as
Vanilla's [8192, 0], [1, 10, 4, 10].
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.files import link_folder
from elocute.data.rows import AUDIO_MARK
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError
from elocute.models import one_stream, vita
from elocute.models.batch import Batch, States
from elocute.models.control import check_text, control_tokens
from elocute.models.layout import Tokens
from elocute.models.speech_lm import SpeechLM, beside, check_answer, read_settings, sound_of, units_of
from elocute.speech.glm4voice.codec import Glm4VoiceCodec
from elocute.speech.glm4voice.decoder import SpeechDecoder, check_knows
from elocute.speech.glm4voice.tokenizer import SpeechTokenizer, check_units

PARTS = {"speech_tokenizer": "glm-4-voice-tokenizer", "speech_decoder": "glm-4-voice-decoder"}


@dataclass(frozen=True)
class Prompt:
    """ids int64 [P]; states [places, size]: what Plus's encoder made of the heard, for its `<|context_of_audio|>`."""

    ids: torch.Tensor
    states: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.ids)


class Answer:
    """One answer as it grows, as models/layout.py has it. Nothing is forced, nor is where text and speech stand.

    text_ids, units: of what has come so far; broken: why this is no proper answer, or None.
    """

    stage = 0

    def __init__(self, tokens: vita.VitaTokens):
        self._tokens = tokens
        self.ids: list[int] = []
        self.broken: str | None = None
        self.done = False

    def forced(self) -> tuple[None]:
        return (None,)

    def push(self, token: int) -> None:
        """Take the next token."""
        self.ids.append(int(token))
        self.done = token in self._tokens.stops

    def close(self) -> None:
        """No more tokens will come: an answer without an end is broken."""
        if not self.done:
            self.broken, self.done = "no end: the answer was cut at the longest length allowed", True

    def tokens(self) -> Tokens:
        ids = torch.tensor(self.ids, dtype=torch.int64)
        return Tokens(ids, self._tokens.is_text(ids), torch.ones(len(ids), dtype=torch.bool))

    @property
    def text_ids(self) -> list[int]:
        return self._heard().text

    @property
    def units(self) -> list[int]:
        return self._heard().units

    def _heard(self) -> vita.Heard:
        return self._tokens.read(self.ids)


@dataclass(frozen=True)
class Layout:
    """What an answer's tokens are, as models/layout.py has it."""

    vocabulary: vita.VitaTokens
    writes = True

    @property
    def text_end(self) -> int:
        return self.vocabulary.text_end

    def cursor(self) -> Answer:
        """An answer that has not begun."""
        return Answer(self.vocabulary)

    def read(self, ids: Sequence[int]) -> Answer:
        """Replay an answer's tokens."""
        answer = self.cursor()
        for token in ids:
            if answer.done:
                break
            answer.push(int(token))
        return answer


class VitaLM(SpeechLM):
    """A VITA-Audio that answers in text and speech."""

    apart = ("model.audio_model.", "model.mtp_")

    def __init__(self, network, tokens: vita.VitaTokens, codec, ears: vita.UserAudio | None, folder: Path):
        super().__init__(network, Layout(tokens), codec, {})
        self.tokens, self.tokenizer, self.ears, self.folder = tokens, tokens.tokenizer, ears, folder
        self.mode, self.ratio, self._said = read_orders(folder, network.config)
        self._control = control_tokens(tokens.tokenizer)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "VitaLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        tokens = load_vocabulary(folder)
        tokenizer, decoder = (beside(folder, key, name) for key, name in PARTS.items())
        codec = Glm4VoiceCodec(SpeechTokenizer.load(tokenizer), SpeechDecoder.load(decoder))
        ears = None if tokens.context is None else vita.UserAudio.load(folder, dtype=dtype)
        network = vita.load_network(folder, dtype=dtype)
        vita.drop_padding(network, tokens.size)
        return cls(network, tokens, codec, ears, folder)

    def save(self, folder: str | Path) -> None:
        """Write a folder as it was published (LoRA merged), the codec in it: it can be moved anywhere."""
        folder = Path(folder)
        vita.save(folder, self.folder, self.plain_model())
        for key, name in PARTS.items():
            link_folder(beside(self.folder, key, name), folder / name)
        said = {"kind": "vita_audio"} | self._said
        (folder / "elocute.json").write_text(json.dumps(said, indent=2) + "\n")

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> Prompt:
        """The conversation up to where the answer begins. InputError names the row and what it has no place for."""
        check_text(self._control, f"{example.where}: messages", *(message.content for message in example.messages))
        refs, places, states = iter(example.audios), [], []
        for message in example.messages:
            for _ in range(message.content.count(AUDIO_MARK)):
                if message.role == "assistant":
                    raise InputError(f"{example.where}: messages: an earlier answer comes as text here, without sound")
                ref = next(refs)
                if self.ears is None:
                    places.append(units_of(example, "audios", ref, audio).tolist())
                else:
                    states.append(self._hear(example, ref))
                    places.append(len(states[-1]))
        messages = [{"role": message.role, "content": message.content} for message in example.messages]
        ids = self.tokens.encode_chat(messages, places)
        return Prompt(ids, torch.cat(states) if states else None)

    def _hear(self, example: Example, ref: AudioRef) -> torch.Tensor:
        """What the frozen encoder makes of one recording, [F + 4, size]."""
        [states] = self.ears.states([self.ears.features(*sound_of(example, ref))])
        return states.cpu()

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        check_answer(example, name, text, ref)
        check_text(self._control, f"{example.where}: {name}_text", text)
        units = units_of(example, f"{name}_audio", ref, audio).tolist()
        # As it was trained: a newline stands between an answer's text and its speech.
        ids = self.tokens.lay_out(f"{text}\n", units, self.ratio, where=f"{example.where}: {name}")
        return self.layout.read(ids).tokens()

    # the network

    def layers(self) -> Sequence[torch.nn.Module]:
        """The main ones."""
        return self.trunk().layers[: self.core().config.n_main]

    def prompt_inputs(self, prompts: Sequence[Prompt], device) -> dict[str, torch.Tensor]:
        """Prompts on the right of padding, as embeddings: what was heard stands at its places."""
        inputs = super().prompt_inputs([prompt.ids for prompt in prompts], device)
        ids = inputs.pop("input_ids")
        embeds = self.core().get_input_embeddings()(ids)
        if self.ears is not None:
            projector = self.core().model.audio_projection
            nothing = torch.zeros(0, self.core().config.audio_state_size)
            heard = torch.cat([nothing, *(prompt.states for prompt in prompts if prompt.states is not None)])
            # Nothing, too: where processes add up their gradients, every weight has one, be it 0.
            with self.computing():
                features = projector(heard.to(device, projector.mlp[0].weight.dtype))
            embeds = vita.write_audio(embeds, (ids == self.tokens.context) & inputs["attention_mask"].bool(), features)
        return inputs | {"inputs_embeds": embeds}

    def idle(self, parameter: str) -> bool:
        """Whether it is of a depth that says no token."""
        config = self.core().config
        deepest = vita.deepest_of(self.mode, config.n_mtp) if self.mode else 0
        return vita.depth_of(parameter, config.n_main) > deepest

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells: of the main layers, or of the depth that says each of them."""
        if self.mode is None:
            return super().states(batch, share_prompts=share_prompts)
        prompt, answer = one_stream.run(self, batch, share_prompts=share_prompts)
        ids, mask = one_stream.padded([of.ids for of in batch.prompts], batch.answer_ids.device)
        ids = torch.cat([ids[batch.owner], batch.answer_ids[:, :-1]], 1)
        mask = torch.cat([mask[batch.owner], batch.answer_mask[:, :-1]], 1)
        depths = list(islice(vita.depths_of(self.mode, self.core().n_mtp), batch.answer_ids.shape[1]))
        with self.computing():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            states = self.core().depths(ids, torch.cat([prompt[:, :-1], answer], 1), positions, mask, max(depths))
        said = vita.said_by(states, depths, prompt.shape[1])[batch.rows, batch.columns]
        return [States(said.to(self.head().weight.dtype), self.head())]

    def decoders(self, prompts: Sequence[Prompt], group_size: int, cursors: Sequence[Answer]) -> Iterator:
        """One, by the main head or by the schedule."""
        if self.mode is None:
            yield from super().decoders(prompts, group_size, cursors)
        else:
            yield DepthsDecoder(self, prompts, group_size)


class DepthsDecoder:
    """Answers that grow by the main head and the depths in turn, as models/one_stream.py has it."""

    def __init__(self, lm: VitaLM, prompts: Sequence[Prompt], group_size: int):
        self.lm, self.heads = lm, [lm.head()]
        self.rows = range(len(prompts) * group_size)
        self._decoding = vita.Decoding(lm.core(), lm.mode)
        device = lm.head().weight.device
        ids, _ = one_stream.padded([prompt.ids for prompt in prompts], device)
        inputs = lm.prompt_inputs(prompts, device)
        with lm.computing():
            states = self._decoding.prefill(ids, inputs["attention_mask"], inputs["inputs_embeds"])
        self._decoding.repeat(group_size)
        self._say(states.repeat_interleave(group_size, 0))

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next cells, int64 [rows, 1]."""
        with self.lm.computing():
            states = self._decoding.step(ids[:, 0])
        self._say(states)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        self._decoding.keep(rows)

    def _say(self, states: torch.Tensor) -> None:
        self.hidden = [states.to(self.lm.head().weight.dtype)]


def read_orders(folder: Path, config: vita.VitaConfig) -> tuple[list[int] | None, Sequence[int], dict]:
    """The schedule of a folder's answers, None for the main head alone; the ratio of those to learn; what its
    elocute.json says of the two."""
    file, said = folder / "elocute.json", read_settings(folder)
    if unknown := set(said) - {"kind", "mtp", "ratio", *PARTS}:
        raise InputError(f"{file}: {sorted(unknown)[0]}: unknown key")
    own = {key: said[key] for key in ("mtp", "ratio") if said.get(key) is not None}
    try:
        mode = vita.sampling_mode(folder, config, own.get("mtp"))
    except InputError as error:
        raise InputError(f"{file}: {error}" if "mtp" in own else str(error)) from error
    try:
        return mode, vita.read_ratio(vita.published_mode(folder), own.get("ratio")), own
    except InputError as error:
        raise InputError(f"{file}: ratio: {error}") from error


def load_vocabulary(folder: Path) -> vita.VitaTokens:
    """All of a folder but weights. InputError names what is missing or does not fit, of what hears and speaks, too."""
    read_orders(folder, vita.check_network(folder))
    tokenizer, decoder = (beside(folder, key, name) for key, name in PARTS.items())
    tokens = vita.load_tokens(folder)
    if tokens.context is not None:
        vita.check_ears(folder)
    check_units(tokenizer, tokens.n_units, folder)
    check_knows(decoder, tokens.n_units, folder)
    return tokens
