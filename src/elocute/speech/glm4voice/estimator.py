"""The velocity of the flow: a one-dimensional U-Net of residual blocks and transformer blocks.

    t    → e = linear_2(SiLU(linear_1(s(t)))),   s(t) = [sin(1000 t ω_k), cos(1000 t ω_k)],  ω_k = 10000^(−k / (K − 1))
    residual block    : h = block1(x) + Linear(Mish(e));  x = block2(h) + res_conv(x),  block = Mish ∘ norm ∘ conv
    transformer block : x += attention(norm1 x);  x += W_2 · gelu(W_1 · norm3 x)
    down, mid, up     : each a residual block and several transformer blocks; down and up end in a convolution

Only the last down and the last up block keep the length; the others halve and double it. The layout is that of
Matcha-TTS (Mehta et al. 2024), the transformer blocks' names are those of diffusers. From that layout, and from nothing
that the weights could show, come: Mish before the Linear of the time, sines before cosines, the order [x, skip] in the
up blocks.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

_GROUPS = 8
_TIME_SCALE = 1000


class Estimator(nn.Module):
    """[B, in_channels, T] and times [B] → velocity [B, out_channels, T]. Names as in the published weights."""

    def __init__(self, config: dict):
        super().__init__()
        widths, entering = config["channels"], config["in_channels"]
        self.time_width, time = entering, 4 * widths[0]
        self.time_mlp = nn.ModuleDict({"linear_1": nn.Linear(entering, time), "linear_2": nn.Linear(time, time)})
        heads, size = config["num_heads"], config["attention_head_dim"]

        def transformers(width: int) -> nn.ModuleList:
            return nn.ModuleList(TransformerBlock(width, heads, size) for _ in range(config["n_blocks"]))

        def same(width: int) -> nn.Module:
            return nn.Conv1d(width, width, 3, padding=1)

        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, (before, width) in enumerate(zip([entering, *widths], widths, strict=False), 1):
            last = same(width) if index == len(widths) else Halving(width)
            self.down_blocks.append(nn.ModuleList([ResidualBlock(before, width, time), transformers(width), last]))
        for _ in range(config["num_mid_blocks"]):
            middle = widths[-1]
            self.mid_blocks.append(nn.ModuleList([ResidualBlock(middle, middle, time), transformers(middle)]))
        for index, (before, width) in enumerate(zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True), 1):
            last = same(width) if index == len(widths) else Doubling(width)
            self.up_blocks.append(nn.ModuleList([ResidualBlock(2 * before, width, time), transformers(width), last]))
        self.final_block = ConvBlock(widths[0], widths[0])
        self.final_proj = nn.Conv1d(widths[0], config["out_channels"], 1)

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        time = self.time_mlp["linear_2"](F.silu(self.time_mlp["linear_1"](time_codes(times, self.time_width))))
        skips = []
        for residual, transformers, down in self.down_blocks:
            x = attend(residual(x, time), transformers)
            skips.append(x)
            x = down(x)
        for residual, transformers in self.mid_blocks:
            x = attend(residual(x, time), transformers)
        for residual, transformers, up in self.up_blocks:
            skip = skips.pop()
            x = torch.cat([x[:, :, : skip.shape[2]], skip], 1)  # doubling an odd length's half gives one frame more
            x = up(attend(residual(x, time), transformers))
        return self.final_proj(self.final_block(x))


def time_codes(times: torch.Tensor, width: int) -> torch.Tensor:
    """Times [B] in 0 … 1 → [B, width]."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=times.device) * -(math.log(10000) / (half - 1))).to(times.dtype)
    angles = _TIME_SCALE * times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def attend(x: torch.Tensor, blocks: nn.ModuleList) -> torch.Tensor:
    """[B, C, T] → [B, C, T] through transformer blocks."""
    x = x.transpose(1, 2)
    for block in blocks:
        x = block(x)
    return x.transpose(1, 2)


class ConvBlock(nn.Module):
    def __init__(self, entering: int, width: int):
        super().__init__()
        conv, norm = nn.Conv1d(entering, width, 3, padding=1), nn.GroupNorm(_GROUPS, width)
        self.block = nn.Sequential(conv, norm, nn.Mish())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    def __init__(self, entering: int, width: int, time: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, width))
        self.block1, self.block2 = ConvBlock(entering, width), ConvBlock(width, width)
        self.res_conv = nn.Conv1d(entering, width, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[B, C, T], time [B, E] → [B, width, T]."""
        return self.block2(self.block1(x) + self.mlp(time)[..., None]) + self.res_conv(x)


class Halving(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Doubling(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, head_size: int):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_size)
        self.ff = FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Every frame hears every frame."""

    def __init__(self, width: int, heads: int, head_size: int):
        super().__init__()
        self.heads, inner = heads, heads * head_size
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = self.to_q, self.to_k, self.to_v
        parts = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        return self.to_out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.net[0](x))


class Gelu(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x))
