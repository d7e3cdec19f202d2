"""How MiniCPM-o 2.6 hears: 16 kHz → log-mel → Whisper's encoder with a chunk mask → projector → 25 embeddings a second.

    mel      80 bins at 100 Hz, of pieces of at most 30 s, each padded to 30 s for Whisper's normalisation and cut again
    encoder  GELU(conv), GELU(conv, stride 2), + positions, layers, last norm; S = (F−1)//2 + 1 frames at 50 Hz.
             Frame i sees frames below (i//c + 1)·c, c = 50·audio_chunk_length: its chunk and all before it.
    project  W2·ReLU(W1·h), then the mean of every `audio_pool_step` frames

In a batch the original masks frame j of a shorter clip from j = F on, F counting *mel* frames, not frames of the
encoder: a clip sees the padding behind it. That is kept, for it is how the model was trained; alone, a clip has none.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from elocute.models.minicpm_o.mask import additive

SAMPLE_RATE = 16000
_PIECE = 30 * SAMPLE_RATE


def log_mel(waveform: np.ndarray, bins: int = 80) -> list[torch.Tensor]:
    """Float mono [samples] at 16 kHz → for every 30 s of it float32 [bins, F], F = ⌈samples/160⌉."""
    extract = WhisperFeatureExtractor(feature_size=bins, sampling_rate=SAMPLE_RATE)
    pieces = [waveform[start : start + _PIECE] for start in range(0, len(waveform), _PIECE)]
    if not pieces:
        return []
    mel = extract(pieces, sampling_rate=SAMPLE_RATE, padding="max_length", return_tensors="pt").input_features
    return [rows[:, : -(-len(piece) // extract.hop_length)] for rows, piece in zip(mel, pieces, strict=True)]


def embedding_count(samples: int, pool_step: int = 2) -> int:
    """How many embeddings a recording of so many samples at 16 kHz becomes, its pieces of 30 s together."""
    whole, rest = divmod(samples, _PIECE)
    return whole * _pooled(3000, pool_step) + (_pooled(-(-rest // 160), pool_step) if rest else 0)


class AudioEncoder(WhisperEncoder):
    """`apm.`: Whisper's encoder over recordings of any length up to 30 s, chunk by chunk."""

    def __init__(self, config: WhisperConfig, chunk: int = 50):
        super().__init__(config)
        self.chunk = chunk

    def forward(self, mel: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """mel [B, bins, F], zeros behind each clip's own frames int64 [B] → [B, S, D]."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = additive(chunk_mask(hidden.shape[1], frames, self.chunk), hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.layer_norm(hidden)


def chunk_mask(length: int, frames: torch.Tensor, chunk: int) -> torch.Tensor:
    """Which frames each frame sees, bool [B, 1, S, S]; frames int64 [B]: the clips' *mel* frames, see the module."""
    place = torch.arange(length, device=frames.device)
    due = place[None] < (place[:, None] // chunk + 1) * chunk
    return (due & (place[None] < frames[:, None])[:, None])[:, None]


class AudioProjector(nn.Module):
    """`audio_projection_layer.`: the encoder's frames [B, S, D] → the LLM's embeddings of each clip."""

    def __init__(self, width: int, llm_width: int, pool_step: int = 2):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, llm_width), nn.Linear(llm_width, llm_width)
        self.pool_step = pool_step

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor) -> list[torch.Tensor]:
        """frames int64 [B]: mel frames. For each clip [n, llm width], n from its own length."""
        projected = self.linear2(F.relu(self.linear1(hidden))).transpose(1, 2)
        if projected.shape[2] < self.pool_step:  # under 30 ms: nothing to take a mean of
            return [row.T[:0] for row in projected]
        pooled = F.avg_pool1d(projected, self.pool_step, self.pool_step).transpose(1, 2)
        return [row[: _pooled(int(count), self.pool_step)] for row, count in zip(pooled, frames, strict=True)]


def hear(encoder: AudioEncoder, projector: AudioProjector, mels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Clips [bins, F], in one batch → for each [n, llm width]; see the module about what a clip sees of its batch."""
    frames = torch.tensor([mel.shape[1] for mel in mels], device=encoder.conv1.weight.device)
    batch = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
    return projector(encoder(batch.to(encoder.conv1.weight), frames), frames)


def fill(embedded: torch.Tensor, bounds: Sequence[tuple[int, int]], heard: torch.Tensor) -> torch.Tensor:
    """One row's embeddings [T, D] with what was heard [n, D] in the places of its bounds, in order; a new tensor.

    ValueError when the bounds do not hold exactly n places.
    """
    places = [place for start, stop in bounds for place in range(start, stop)]
    if len(places) != len(heard):
        raise ValueError(f"the prompt has {len(places)} places for audio, {len(heard)} embeddings were heard")
    return embedded.index_copy(0, torch.tensor(places, dtype=torch.long, device=embedded.device), heard)


def _pooled(frames: int, pool_step: int) -> int:
    """Mel frames → embeddings."""
    return ((frames - 1) // 2 + 1 - pool_step) // pool_step + 1
