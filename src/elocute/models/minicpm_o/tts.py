"""ConditionalChatTTS, MiniCPM-o 2.6's speech decoder: a text and a voice in, four codebooks a frame out.

    positions   0 [Stts] · 1 [spk_emb] · 2 … R+1 text, [Etts], [PAD]s · R+2 [Ptts] · R+3+j audio frame j     (R = 300)
    voice       the embedding at 1 is s/‖s‖, s = W2·ReLU(W1·v + b1) + b2, v the LLM's last hidden state at <|spk|>
    frame       Σ_q embedding_q[code_q]; the state at R+2+j gives the four codes of frame j, each by its own head
    attention   text to text: causal. From audio position p: to audio positions R+3 … p, and to those text positions k
                that hold something and that are already due, k < min(c·⌈(p−R)/50⌉, R) + 2                  (c = 10)

Audio never attends to R+2, not even R+2 itself. Text is due before audio asks for it, so that reading it in pieces
between frames changes nothing: one pass over a whole utterance gives what was computed step by step.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import DynamicCache, LlamaModel

from elocute.models.minicpm_o.config import ChatTTSConfig
from elocute.models.minicpm_o.mask import additive

_AUDIO_CHUNK = 50
"""Frames that see the same text. The original's mask has it as a default that its caller never sets."""


class ConditionalChatTTS(nn.Module):
    """The decoder, under the names of the published weights, `tts.` before them; the DVAE is apart.

    Left out is `tts.model.embed_tokens.weight`: the original keeps it and never uses it.
    """

    def __init__(self, config: ChatTTSConfig):
        super().__init__()
        self.config = config
        self.projector = SpeakerProjector(config.llm_dim, config.hidden_size)
        self.emb_text = nn.Embedding(config.num_text_tokens, config.hidden_size)
        self.emb_code = nn.ModuleList(
            nn.Embedding(config.num_audio_tokens, config.hidden_size) for _ in range(config.num_vq)
        )
        self.head_code = nn.ModuleList(
            weight_norm(nn.Linear(config.hidden_size, config.num_audio_tokens, bias=False))
            for _ in range(config.num_vq)
        )
        self.model = LlamaModel(config.llama())
        self.model.embed_tokens = None

    def forward(
        self, text: torch.Tensor, text_length: torch.Tensor, speaker: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """Whole utterances in one pass: the states that give each frame's codes, [B, T, D]; see `logits`.

        text int64 [B, R+2] with its length int64 [B] as `spoken.text_slots` gives them; speaker [B, llm_dim]; codes
        int64 [B, T, num_vq]: what the frames are, the last is not read. What stands behind a row's end is not seen.
        """
        slots = int(text_length.max())  # nothing sees those behind
        audio = torch.cat([self._audio_bos(len(codes)), self.embed_codes(codes[:, :-1])], 1)
        text_positions = torch.arange(slots, device=text.device)
        positions = torch.cat(
            [text_positions, self.config.audio_start + torch.arange(audio.shape[1], device=text.device)]
        )
        valid = text_positions < text_length[:, None]
        mask = visible(positions, positions, _with_audio(valid, audio.shape[1]), self.config)
        states = self.model(
            inputs_embeds=torch.cat([self.embed_text(text[:, :slots], speaker), audio], 1),
            position_ids=positions[None],
            attention_mask=additive(mask, audio.dtype),
            use_cache=False,
        ).last_hidden_state
        return states[:, slots : slots + codes.shape[1]]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., D] → what each codebook's code is drawn from, [..., num_vq, num_audio_tokens]."""
        return torch.stack([head(states) for head in self.head_code], -2)

    def embed_text(self, text: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """The first slots, int64 [B, n ≥ 2] from [Stts] on, and the voice [B, llm_dim] → [B, n, D]."""
        embedded = self.emb_text(text)
        return torch.cat([embedded[:, :1], self.projector(speaker)[:, None], embedded[:, 2:]], 1)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Frames, int64 [B, T, num_vq] → the sum of their codes' embeddings [B, T, D]."""
        return sum(table(codes[..., q]) for q, table in enumerate(self.emb_code))

    # step by step

    @torch.no_grad()
    def read_text(self, cache: "SpeechCache", text: torch.Tensor, valid: torch.Tensor, speaker=None) -> None:
        """Take the next slots of the text, int64 [B, n]; valid bool [B, n]: which hold something.

        The first call has at least [Stts] and [spk_emb], and the voice `speaker` [B, llm_dim].
        """
        first = cache.text_read
        embedded = self.emb_text(text) if first else self.embed_text(text, speaker)
        self._extend(cache, embedded, torch.arange(first, first + text.shape[1], device=text.device), valid)
        cache.text_read += text.shape[1]

    @torch.no_grad()
    def read_frame(self, cache: "SpeechCache", codes: torch.Tensor | None) -> torch.Tensor:
        """Take the frame before, int64 [B, num_vq] (None: there is none yet); the next one's state [B, D].

        ValueError when the frame may see text that was not read: c·⌈(p−R)/50⌉ slots are due behind the first two.
        """
        place = self.config.audio_start + cache.frames_read
        if cache.text_read < min(text_due(place, self.config), cache.text_length):
            raise ValueError(f"frame {cache.frames_read} needs more than {cache.text_read} slots of the text")
        rows = cache.valid.shape[0]
        embedded = self._audio_bos(rows) if codes is None else self.embed_codes(codes[:, None])
        position = torch.tensor([place], device=embedded.device)
        states = self._extend(cache, embedded, position, cache.valid.new_ones(rows, 1))
        cache.frames_read += 1
        return states[:, -1]

    def _extend(self, cache: "SpeechCache", embedded: torch.Tensor, positions, valid: torch.Tensor) -> torch.Tensor:
        if cache.positions is None:
            cache.positions, cache.valid = positions, valid
        else:
            cache.positions = torch.cat([cache.positions, positions])
            cache.valid = torch.cat([cache.valid, valid], 1)
        mask = visible(positions, cache.positions, cache.valid, self.config)
        return self.model(
            inputs_embeds=embedded,
            position_ids=positions[None],
            attention_mask=additive(mask, embedded.dtype),
            past_key_values=cache.layers,
            use_cache=True,
        ).last_hidden_state

    def _audio_bos(self, rows: int) -> torch.Tensor:
        return self.emb_text.weight[self.config.audio_bos_token_id].expand(rows, 1, -1)


@dataclass
class SpeechCache:
    """Keys and values of what was read, in the order of reading.

    text_length: the slots that the longest text fills; while text still streams in, any upper bound of it.
    positions int64 [K] and valid bool [B, K] of each key; text_read slots and frames_read so far.
    """

    text_length: int
    layers: DynamicCache = field(default_factory=DynamicCache)
    positions: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    text_read: int = 0
    frames_read: int = 0


class SpeakerProjector(nn.Module):
    """The LLM's state at <|spk|> [B, llm_dim], in any type → the voice's embedding [B, D], of length 1."""

    def __init__(self, llm_dim: int, width: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(llm_dim, width), nn.Linear(width, width)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        state = state.to(self.linear1.weight.dtype)  # the decoder may be in float32 behind an LLM in bfloat16
        return F.normalize(self.linear2(F.relu(self.linear1(state))), dim=-1)


def text_due(position: int | torch.Tensor, config: ChatTTSConfig) -> int | torch.Tensor:
    """How many slots of the text, [Stts] and [spk_emb] among them, an audio position may see."""
    chunks = -(-(position - config.streaming_text_reserved_len) // _AUDIO_CHUNK)
    slots = config.streaming_text_chunk_size * chunks
    if isinstance(slots, torch.Tensor):
        return slots.clamp(max=config.streaming_text_reserved_len) + 2
    return min(slots, config.streaming_text_reserved_len) + 2


def visible(queries: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, config: ChatTTSConfig) -> torch.Tensor:
    """Which keys a query sees, bool [B, 1, Q, K]; int64 positions [Q] and [K]; valid bool [B, K]: no padding."""
    query, key = queries[:, None], keys[None]
    start = config.audio_start
    text_key = key < start
    from_text = (query < start) & text_key & (key <= query)
    audio_to_text = (query >= start) & text_key & (key < text_due(query, config))
    audio_to_audio = (query >= start) & (key > start) & (key <= query)
    return (from_text | audio_to_audio | audio_to_text & valid[:, None])[:, None]


def _with_audio(valid: torch.Tensor, frames: int) -> torch.Tensor:
    return torch.cat([valid, valid.new_ones(len(valid), frames)], 1)
