"""ChatTTS's DVAE as MiniCPM-o 2.6 has it: log-mel ⇄ four codes of 625 every two mel frames (46.875 frames a second).

    decode   codes of group g → its two residual codes as vectors: digit_k = (index // 5^k) mod 5, value (digit − 2)/2;
             z_g = value(first) + value(second)/4, W_g·z_g + b_g; both groups side by side, [1024, T]
             → mel frame 2t is the first 512 channels of frame t, 2t+1 the last → ConvNeXt stack → conv → · coef
    encode   mel / coef → two convs with GELU, the second of stride 2 → ConvNeXt stack → per group four numbers
             z = W'_g·x + b'_g, q(z) = round(2.002·tanh z)/2, first = q(z), second = q((z − first)/(1/4));
             index = Σ (2q + 2)·5^k

The published names do not show whether an activation follows the second of the two convs; as in ChatTTS, GELU does.
Groups and residuals: codebook 2g + r. (Finite scalar quantisation: Mentzer et al. 2023; ConvNeXt: Liu et al. 2022.)
One utterance at a time: the convolutions would see the padding of another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

_LEVELS = 5
_RESIDUALS = 2
_BOUND = (_LEVELS - 1) / 2 * 1.001  # a hair above 2, so that the outermost levels can be reached


@dataclass(frozen=True)
class DvaeShape:
    """Sizes; the defaults are those of the published weights, in which the original fixes them.

    width: channels of a mel frame in the decoder, half of those of a code frame. digits: of a code, so 5^digits codes.
    """

    bins: int = 100
    width: int = 512
    hidden: int = 256
    bottleneck: int = 128
    layers: int = 12
    groups: int = 2
    digits: int = 4

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> "DvaeShape":
        """By the shapes of published weights. KeyError when one that tells is missing."""
        bottleneck, width, _ = shapes["decoder.conv_in.0.weight"]
        return cls(
            bins=shapes["coef"][1],
            width=width,
            hidden=shapes["decoder.conv_in.2.weight"][0],
            bottleneck=bottleneck,
            layers=_count(shapes, "decoder.decoder_block."),
            groups=_count(shapes, "vq_layer.quantizer.rvqs."),
            digits=shapes["vq_layer.quantizer.rvqs.0.project_in.weight"][0],
        )


class Dvae(nn.Module):
    """Both directions, under the names of the published weights (`tts.dvae.` before them)."""

    def __init__(self, shape: DvaeShape = DvaeShape()):
        super().__init__()
        self.shape = shape
        self.codebooks, self.n_codes = shape.groups * _RESIDUALS, _LEVELS**shape.digits
        width, whole = shape.width, 2 * shape.width
        self.coef = nn.Parameter(torch.ones(1, shape.bins, 1))
        self.downsample_conv = nn.Sequential(
            nn.Conv1d(shape.bins, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, width, 4, 2, padding=1), nn.GELU()
        )
        self.encoder, self.decoder = ConvNeXt(shape, whole), ConvNeXt(shape, width)
        self.out_conv = nn.Conv1d(width, shape.bins, 3, padding=1, bias=False)
        self.vq_layer = nn.Module()
        self.vq_layer.quantizer = nn.Module()
        self.vq_layer.quantizer.rvqs = nn.ModuleList(
            Projections(whole // shape.groups, shape.digits) for _ in range(shape.groups)
        )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [T, codebooks] in 0 … n_codes − 1 → log-mel [bins, 2T]. ValueError for any other code."""
        if len(codes) and not (0 <= int(codes.min()) and int(codes.max()) < self.n_codes):
            raise ValueError(f"codes: expected 0 … {self.n_codes - 1}, got {int(codes.min())} … {int(codes.max())}")
        x = torch.cat([self._value(g, codes) for g in range(self.shape.groups)], -1)  # [T, 2·width]
        x = x.view(2 * len(codes), self.shape.width).T[None]
        return (self.out_conv(self.decoder(x)) * self.coef)[0]

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """Log-mel [bins, F] → int64 [F // 2, codebooks]; F is at least 2."""
        x = self.encoder(self.downsample_conv(mel[None] / self.coef))[0].T
        parts = x.chunk(self.shape.groups, -1)
        codes = [
            code
            for part, p in zip(parts, self.vq_layer.quantizer.rvqs, strict=True)
            for code in quantise(p.project_in(part))
        ]
        return torch.stack(codes, -1)

    def _value(self, group: int, codes: torch.Tensor) -> torch.Tensor:
        """The channels [T, 2·width / groups] that a group's codes stand for."""
        first = _RESIDUALS * group
        z = sum(self._digits(codes[:, first + r]) / (_LEVELS - 1) ** r for r in range(_RESIDUALS))
        return self.vq_layer.quantizer.rvqs[group].project_out(z)

    def _digits(self, index: torch.Tensor) -> torch.Tensor:
        """Codes [T] → their numbers in −1 … 1, [T, digits]."""
        powers = _LEVELS ** torch.arange(self.shape.digits, device=index.device)
        middle = (_LEVELS - 1) / 2
        return ((index[:, None] // powers % _LEVELS - middle) / middle).to(self.coef.dtype)


def quantise(z: torch.Tensor) -> list[torch.Tensor]:
    """Numbers [T, digits] → the codes of both residuals, int64 [T] each."""
    codes, rest, middle = [], z, (_LEVELS - 1) / 2
    powers = _LEVELS ** torch.arange(z.shape[-1], device=z.device)
    for r in range(_RESIDUALS):
        scale = (_LEVELS - 1) ** -r
        levels = torch.round(_BOUND * torch.tanh(rest / scale))  # −2 … 2
        codes.append(((levels + middle).long() * powers).sum(-1))
        rest = rest - levels / middle * scale
    return codes


class Projections(nn.Module):
    """A group's way into its four numbers and out again."""

    def __init__(self, width: int, digits: int):
        super().__init__()
        self.project_in, self.project_out = nn.Linear(width, digits), nn.Linear(digits, width)


class ConvNeXt(nn.Module):
    """[1, width, T] → [1, out, T]."""

    def __init__(self, shape: DvaeShape, out: int):
        super().__init__()
        self.conv_in = nn.Sequential(
            nn.Conv1d(shape.width, shape.bottleneck, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(shape.bottleneck, shape.hidden, 3, padding=1),
        )
        self.decoder_block = nn.ModuleList(Block(shape.hidden) for _ in range(shape.layers))
        self.conv_out = nn.Conv1d(shape.hidden, out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.decoder_block:
            x = block(x)
        return self.conv_out(x)


class Block(nn.Module):
    """x + coef · MLP(LN(depthwise conv of width 7, dilated by 2))."""

    def __init__(self, width: int):
        super().__init__()
        self.coef = nn.Parameter(torch.ones(width))
        self.dwconv = nn.Conv1d(width, width, 7, padding=6, dilation=2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.pwconv2(F.gelu(self.pwconv1(y))) * self.coef
        return x + y.transpose(1, 2)


def _count(names: Iterable[str], prefix: str) -> int:
    """How many parts are numbered behind a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})
