"""Units → the mean that flow matching starts from: a conformer encoder and a stretch to the spectrum's frame rate.

    x = LayerNorm(Linear(embedded)) · √D
    block : x += attention(norm_mha x);  x += w_2 · SiLU(w_1 · norm_ff x)          no convolution, no second half
    score(i, j) = ((q_i + u) · k_j + (q_i + v) · W_p p(i − j)) / √d                (Dai et al. 2019)
    p(r) = [sin(r/τ_0), cos(r/τ_0), sin(r/τ_1), …],  τ_k = 10000^(2k/D)
    position i hears j if j ≤ i or both lie in one block of ten units

Sizes come with the checkpoint's config.yaml. That sine and cosine alternate in p, and that the distance is i − j with
both signs, is the conformer's convention (Gulati et al. 2020, as ESPnet has it), which config.yaml names
(`rel_pos_espnet`); no weight shows it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class BlockConformer(nn.Module):
    """Embedded units [1, N, E] → states [1, N, D]. The names are those of the published weights."""

    def __init__(self, config: dict):
        super().__init__()
        width, self.block = config["output_size"], config["block_size"]
        self.width = width
        self.embed = nn.ModuleDict(
            {"out": nn.Sequential(nn.Linear(config["input_size"], width), nn.LayerNorm(width, eps=1e-5))}
        )
        heads, inner = config["attention_heads"], config["linear_units"]
        self.encoders = nn.ModuleList(ConformerBlock(width, heads, inner) for _ in range(config["num_blocks"]))
        self.after_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        x = self.embed["out"](embedded) * math.sqrt(self.width)
        count = x.shape[1]
        distances = distance_codes(count, self.width).to(x)
        place = torch.arange(count, device=x.device)
        before, same = place[None] <= place[:, None], place[None] // self.block == place[:, None] // self.block
        for block in self.encoders:
            x = block(x, distances, before | same)
        return self.after_norm(x)


class ConformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = nn.ModuleDict({"w_1": nn.Linear(width, inner), "w_2": nn.Linear(inner, width)})
        self.norm_ff, self.norm_mha = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: torch.Tensor, distances: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """[1, N, D], codes of distances [2N − 1, D], bool [N, N] → [1, N, D]."""
        x = x + self.self_attn(self.norm_mha(x), distances, heard)
        return x + self.feed_forward["w_2"](F.silu(self.feed_forward["w_1"](self.norm_ff(x))))


class RelativeAttention(nn.Module):
    """Attention whose scores know how far apart two positions are."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: torch.Tensor, distances: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """[1, N, D], codes of distances [2N − 1, D], bool [N, N] → [1, N, D]."""
        query, key, value = (self._split(layer(x)) for layer in (self.linear_q, self.linear_k, self.linear_v))
        far = self._split(self.linear_pos(distances[None]))  # [1, H, 2N − 1, d]
        by_content = (query + self.pos_bias_u[:, None]) @ key.transpose(-1, -2)
        by_distance = at_distances((query + self.pos_bias_v[:, None]) @ far.transpose(-1, -2))
        scores = (by_content + by_distance) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~heard, -torch.inf).softmax(-1)
        return self.linear_out((weights @ value).transpose(1, 2).reshape(x.shape))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def distance_codes(count: int, width: int) -> torch.Tensor:
    """p(r) for r = count − 1 … 1 − count, float32 [2 · count − 1, width]."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = torch.arange(count - 1, -count, -1, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def at_distances(scores: torch.Tensor) -> torch.Tensor:
    """Scores against distances N − 1 … 1 − N, [1, H, N, 2N − 1] → [1, H, N, N]: row i, column j at distance i − j."""
    count = scores.shape[2]
    place = torch.arange(count, device=scores.device)
    columns = count - 1 - (place[:, None] - place)
    return scores.gather(-1, columns.expand(*scores.shape[:2], -1, -1))


class LengthRegulator(nn.Module):
    """[1, C, N] stretched to [1, C, T]: the nearest unit for every frame, then convolutions that smooth the steps."""

    def __init__(self, channels: int, smoothings: int):
        super().__init__()
        parts = []
        for _ in range(smoothings):
            parts += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*parts, nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        return self.model(F.interpolate(x, size=frames, mode="nearest"))
