"""Qwen2.5-Omni as a speech LM: a thinker writes, a talker speaks what it wrote (models/omni has their parts).

The published folder loads as it is. An `elocute.json` in it may name another speaker than the default, Chelsie:

    {"kind": "qwen2_5_omni", "speaker": "Ethan"}

An answer has two stages: the thinker's tokens, one cell a step, up to its terminator; then the talker's codes, one cell
a step, up to one of its end codes. All of them are sampled. The talker reads the prompt and what was written as the
thinker's last states plus the embeddings of its tokens (of heard audio: the states alone), then, behind the speaker's
mark, one written token a step beside the code before; where the text ends, its end once and padding from then on.
(The first two codes are the talker's own marks. transformers 5.23's generate leaves them out for a prompt without
padding, whose mask of ones it drops, and has them for a padded one; here they are always there.)

What the talker reads is detached: speech trains the talker, text the thinker, each by its own scope. A reward of how
something is said must not move what is said behind the back of the text's own KL; and a step on speech alone needs no
activations of the thinker.

Both stages are sampled with nothing banned and nothing penalised: what is sampled is what is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example
from elocute.errors import InputError, naming
from elocute.models import one_stream
from elocute.models.batch import Batch, States
from elocute.models.control import check_text, control_tokens
from elocute.models.growing_cache import give_room
from elocute.models.layout import Tokens
from elocute.models.omni import ChatTemplate, Layout, Omni, Reply
from elocute.models.omni.network import make_network
from elocute.models.omni.reply import SPEAKS
from elocute.models.speech_lm import SpeechLM, check_answer, read_settings, sound_of, units_of
from elocute.speech.qwen_omni import Ear, Voice, make_ear, make_voice
from elocute.speech.qwen_omni.voice import SPEAKER


@dataclass(frozen=True)
class Prompt:
    """ids int64 [P]; heard [n, D]: what takes the place of its n audio tokens, in order."""

    ids: torch.Tensor
    heard: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


class OmniLM(SpeechLM):
    """A Qwen2.5-Omni that answers in text and speech."""

    streams = (1, 1)
    apart = ("thinker.audio_tower.", "thinker.visual.", "token2wav.")

    def __init__(self, network: Omni, template: ChatTemplate, ear: Ear, voice: Voice):
        talker = network.config.talker_config
        ends = (talker.tts_codec_end_token_id, talker.tts_codec_pad_token_id)
        super().__init__(network, Layout(template.ends, ends, voice.n_units), voice, {})
        self.config, self.template, self.tokenizer, self.ear = network.config, template, template.tokenizer, ear
        self._refused = control_tokens(template.tokenizer)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> "OmniLM":
        """Load a published folder, or one that `save` wrote. InputError names what is missing or does not fit."""
        folder = Path(folder)
        settings, template = load_vocabulary(folder)
        ear, voice = Ear.load(folder, dtype=dtype), Voice.load(folder, settings.get("speaker", SPEAKER))
        return cls(Omni.load(folder, dtype=dtype), template, ear, voice)

    def save(self, folder: str | Path) -> None:
        """Write a folder as the published one (LoRA merged)."""
        self.plain_model().save(folder)

    @property
    def context(self) -> int:
        """The most tokens that a prompt and a stage of its answer may have together."""
        talker = self.config.talker_config.max_position_embeddings - 2  # the speaker's mark and the first word
        return min(self.config.thinker_config.text_config.max_position_embeddings, talker)

    # tokens in

    def encode_prompt(self, example: Example, audio: EncodedAudio) -> Prompt:
        """The conversation up to where the answer begins. InputError names the row and what it has no place for."""
        check_text(self._refused, f"{example.where}: messages", *(message.content for message in example.messages))
        heard = [self._hear(example, ref) for ref in example.audios]
        try:
            ids = self.template.ids(example.messages, [len(states) for states in heard])
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error
        width = self.config.thinker_config.text_config.hidden_size
        return Prompt(torch.tensor(ids), torch.cat([torch.zeros(0, width), *heard]))

    def _hear(self, example: Example, ref: AudioRef) -> torch.Tensor:
        waveform, rate = sound_of(example, ref)
        with naming(f"{example.where}: audios: {ref}"):
            return self.ear.hear(waveform, rate).float()

    def _encode_answer(
        self, example: Example, name: str, text: str | None, ref: AudioRef | None, audio: EncodedAudio
    ) -> Tokens:
        """name: of the row's fields, less `_text` and `_audio`."""
        check_answer(example, name, text, ref)
        check_text(self._refused, f"{example.where}: {name}_text", text)
        written = self.tokenizer.encode(text, add_special_tokens=False)
        codes = units_of(example, f"{name}_audio", ref, audio)
        ids = [*written, self.layout.text_end, *codes.tolist(), self.layout.code_ends[0]]
        return self.layout.read(ids).tokens()

    # the thinker

    def head(self) -> torch.nn.Module:
        """The thinker's."""
        return self.core().thinker.lm_head

    def heads(self) -> list[torch.nn.Module]:
        """The thinker's and the talker's."""
        return [self.head(), self.core().talker.codec_head]

    def trunk(self):
        """Below the thinker's head."""
        return self.core().thinker.model

    def prompt_inputs(self, prompts: Sequence[Prompt], device) -> dict[str, torch.Tensor]:
        """Prompts on the right of padding, as embeddings: what was heard stands in its place."""
        ids, mask = one_stream.padded([prompt.ids for prompt in prompts], device)
        embedded = self.trunk().get_input_embeddings()(ids)
        heard = torch.cat([prompt.heard for prompt in prompts]).to(device, embedded.dtype)
        places = (ids == self.template.audio) & mask.bool()
        return {"inputs_embeds": embedded.masked_scatter(places[..., None], heard), "attention_mask": mask}

    # the talker

    def states(self, batch: Batch, *, share_prompts: bool) -> list[States]:
        """What predicts a batch's selected cells: of the thinker, then of the talker."""
        device, rows = batch.answer_ids.device, zip(batch.answer_ids, batch.answer_mask.bool(), strict=True)
        replies = [self.layout.read(ids[mask]) for ids, mask in rows]
        written = torch.tensor([len(reply.written) for reply in replies], device=device)
        in_text = batch.columns < written[batch.rows]
        ids, mask = one_stream.right_padded([reply.written for reply in replies], device)
        writes, speaks = bool(in_text.any()), bool((~in_text).any())
        with torch.set_grad_enabled(torch.is_grad_enabled() and (writes or self.divided)):
            texts = replace(batch, answer_ids=ids, answer_mask=mask)
            asked, before = one_stream.run(self, texts, share_prompts=share_prompts)
        [where] = in_text.nonzero(as_tuple=True)
        hidden = before[batch.rows[where], batch.columns[where]]
        found = [States(hidden, self.head(), where)]
        [where] = (~in_text).nonzero(as_tuple=True)
        if speaks:
            speaking = [row for row, reply in enumerate(replies) if reply.codes]
            spoken = self._spoken(batch, replies, speaking, asked, before, share_prompts)
            index = torch.zeros(len(replies), dtype=torch.long, device=device)
            index[speaking] = torch.arange(len(speaking), device=device)
            cells = batch.columns[where] - written[batch.rows[where]]
            found.append(States(spoken[index[batch.rows[where]], cells], self.core().talker.codec_head, where))
        return found

    def _spoken(self, batch: Batch, replies, speaking, asked, before, share_prompts: bool) -> torch.Tensor:
        """The talker's states before each code of those that speak [R, T, D]. asked, before: one_stream.run's."""
        device, owner = before.device, batch.owner[speaking]
        start = [self.config.talker_config.tts_codec_pad_token_id, self.config.talker_config.tts_codec_start_token_id]
        codes, mask = one_stream.right_padded([[*start, *replies[row].codes[:-1]] for row in speaking], device)
        lines = [self.lines(replies[row], before[row, 1:]) for row in speaking]
        tail = self.talker_inputs(lines, codes, 0)
        prompts, prompt_mask = self.talker_prompts(batch.prompts, asked, batch.owner)
        whole = torch.cat([prompt_mask[owner], mask], 1)
        if share_prompts:
            _, cache = self.talk(prompts, prompt_mask)
            cache.batch_select_indices(owner)
            hidden, _ = self.talk(tail, whole, cache)
        else:
            hidden, _ = self.talk(torch.cat([prompts[owner], tail], 1), whole, keep=False)
        return hidden[:, -codes.shape[1] + 1 :]

    @torch.no_grad()
    def talker_prompts(self, prompts: Sequence[Prompt], states: torch.Tensor, owner: torch.Tensor):
        """What the talker reads of each prompt [P, S, D], and where it stands. states [B, S, D]: the thinker's, of
        answers whose prompts are `owner`."""
        ids, mask = one_stream.padded([prompt.ids for prompt in prompts], states.device)
        embedded = self.trunk().get_input_embeddings()(ids) * (ids != self.template.audio)[..., None]
        own = torch.zeros(len(prompts), dtype=torch.long, device=states.device)
        own[owner] = torch.arange(len(owner), device=states.device)
        return states[own] + embedded, mask

    @torch.no_grad()
    def lines(self, reply: Reply, states: torch.Tensor) -> torch.Tensor:
        """What the talker reads of an answer of n words, line by line, the last one for ever after [n + 3, D].

        states: the thinker's after each word [≥n, D].
        """
        talker, words = self.config.talker_config, reply.text_ids
        marks = [self.codec.speaker.bos, *words, talker.tts_text_end_token_id, talker.tts_text_pad_token_id]
        lines = self.trunk().get_input_embeddings()(torch.tensor(marks, device=states.device))
        lines[1 : len(words) + 1] += states[: len(words)]
        return lines

    def talker_inputs(self, lines: Sequence[torch.Tensor], codes: torch.Tensor, start: int) -> torch.Tensor:
        """The talker's inputs at steps from `start` on, [R, L, D]: a line, and the code int64 [R, L] said before."""
        steps = torch.arange(start, start + codes.shape[1], device=codes.device)
        read = torch.stack([row[steps.clamp(max=len(row) - 1)] for row in lines])
        return read + self.core().talker.get_input_embeddings()(codes)

    def talk(self, inputs: torch.Tensor, mask: torch.Tensor, cache=None, *, keep: bool = True):
        """Run the talker on [R, L, D], the last L of mask [R, ≥L]: its states, and keys and values if kept."""
        talker, head = self.core().talker, self.core().talker.codec_head.weight
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        with torch.autocast(head.device.type, self.compute, enabled=self.compute is not None):
            out = talker.model(
                inputs_embeds=talker.thinker_to_talker_proj(inputs), attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=keep,
            )  # fmt: skip
        return out.last_hidden_state.to(head.dtype), out.past_key_values

    def decoders(self, prompts: Sequence[Prompt], group_size: int, cursors: Sequence[Reply]) -> Iterator:
        """The thinker, then the talker for the answers that came to their terminator."""
        thinker = ThinkerDecoder(self, prompts, group_size)
        yield thinker
        rows = [row for row, cursor in enumerate(cursors) if cursor.stage == SPEAKS and not cursor.done]
        if rows:
            yield TalkerDecoder(self, prompts, group_size, rows, cursors, thinker)


class ThinkerDecoder(one_stream.Decoder):
    """Text that grows, and the states that the talker will read. said: of each row, [D] after each of its words."""

    def __init__(self, lm: OmniLM, prompts: Sequence[Prompt], group_size: int):
        super().__init__(lm, prompts, group_size)
        self.said: list[list[torch.Tensor]] = [[] for _ in self.rows]
        self._growing = list(self.rows)

    def step(self, ids: torch.Tensor) -> None:
        super().step(ids)
        for row, state in zip(self._growing, self.hidden[0], strict=True):
            self.said[row].append(state)

    def keep(self, rows: torch.Tensor) -> None:
        super().keep(rows)
        self._growing = [self._growing[row] for row in rows.tolist()]


class TalkerDecoder:
    """Speech that grows, as models/one_stream.py has it. A prompt is read once, its group gets copies of the cache."""

    def __init__(self, lm: OmniLM, prompts, group_size: int, rows: list[int], cursors, thinker: ThinkerDecoder):
        self.lm, self.rows, self.heads = lm, rows, [lm.core().talker.codec_head]
        device, config = thinker.prompt.device, lm.config.talker_config
        read, mask = lm.talker_prompts(prompts, thinker.prompt, torch.arange(len(prompts), device=device))
        _, self.cache = lm.talk(read, mask)
        owner = torch.tensor([row // group_size for row in rows], device=device)
        self.cache.batch_select_indices(owner)
        give_room(self.cache)
        self.mask, self._step = mask[owner], 0
        self.lines = [lm.lines(cursors[row], torch.stack(thinker.said[row])) for row in rows]
        start = torch.tensor([[config.tts_codec_pad_token_id, config.tts_codec_start_token_id]], device=device)
        self.step(start.expand(len(rows), -1))

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next codes, int64 [rows, 1]."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        hidden, _ = self.lm.talk(self.lm.talker_inputs(self.lines, ids, self._step), self.mask, self.cache)
        self._step += ids.shape[1]
        self.hidden = [hidden[:, -1]]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        self.cache.batch_select_indices(rows)
        self.mask, self.lines = self.mask[rows], [self.lines[row] for row in rows.tolist()]


def load_settings(folder: Path) -> dict:
    """The folder's elocute.json, or what stands for one."""
    settings = read_settings(folder)
    if unknown := set(settings) - {"kind", "speaker"}:
        raise InputError(f"{folder}/elocute.json: {sorted(unknown)[0]}: unknown key")
    return settings


def check_codes(folder: Path, config, n_units: int) -> None:
    """InputError unless the talker has a code for every row of the voice's table, and its marks lie behind them."""
    talker = config.talker_config
    marks = {name: getattr(talker, f"tts_codec_{name}_token_id") for name in ("start", "end", "pad", "mask")}
    for name, code in marks.items():
        if not n_units <= code < talker.vocab_size:
            raise InputError(
                f"{folder}: tts_codec_{name}_token_id: expected {n_units} … {talker.vocab_size - 1}, behind the codes "
                f"that the voice knows, got {code}"
            )


def load_vocabulary(folder: Path) -> tuple[dict, ChatTemplate]:
    """All of a folder but weights and sound. InputError names what is missing or does not fit."""
    settings, network = load_settings(folder), make_network(folder)
    make_ear(folder)
    voice, *_ = make_voice(folder, settings.get("speaker", SPEAKER))
    check_codes(folder, network.config, len(voice.code2wav_dit_model.text_embed.codec_embed.weight))
    return settings, ChatTemplate.load(folder, network.config)
