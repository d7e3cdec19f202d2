"""BigVGAN (Lee et al. 2023): mel spectrogram → waveform, snake activations at twice the rate against aliasing.

    snake(x) = x + sin²(αx) / (β + 1e-9),  α and β a channel's own, kept as logarithms
    A(x)     = downsample(snake(upsample(x))),  both by 2 with a Kaiser-windowed sinc of 12 taps
    block    : x + conv(A(dilated conv(A(x)))), once for each dilation
    stage    : x = mean of blocks(upsampling convolution(x))
    sound    = tanh or clamp (conv_post(A(x)))

Published as `config.json` and `model.pt`, {"generator": state} with weight norm in two parts; the sinc's taps lie among
the weights.
"""

import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from elocute.data.files import read_json
from elocute.data.shards import check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.kimi.torch_file import read_state
from elocute.speech.unit_vocoder import folded

_NEEDED = (
    "num_mels", "sampling_rate", "upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel",
    "resblock_kernel_sizes", "resblock_dilation_sizes",
)  # fmt: skip
_TAPS = 12


class BigVGAN(nn.Module):
    """Log-mel [N, num_mels, T] → sound [N, hop · T] in [−1, 1]. Frozen; named as the published weights are."""

    def __init__(self, config: dict):
        super().__init__()
        rates, width = config["upsample_rates"], config["upsample_initial_channel"]
        self.config, self.folder = config, None
        self.sample_rate, self.n_mels, self.hop = config["sampling_rate"], config["num_mels"], math.prod(rates)
        log = config.get("snake_logscale", True)
        self.conv_pre = nn.Conv1d(self.n_mels, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(rates, config["upsample_kernel_sizes"], strict=True), 1):
            wide, narrow = width >> (stage - 1), width >> stage
            up = nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.ModuleList([up]))
            shapes = zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
            self.resblocks.extend(Block(narrow, size, dilations, log) for size, dilations in shapes)
        self.activation_post = Activation(narrow, log)
        self.conv_post = nn.Conv1d(narrow, 1, 7, padding=3, bias=config.get("use_bias_at_final", True))

    @classmethod
    def load(cls, folder: str | Path) -> "BigVGAN":
        """A folder with config.json and model.pt; on the CPU, in float32. InputError for anything else."""
        folder = Path(folder)
        unfilled, state = cls.opened(folder)
        vocoder = cls(unfilled.config)
        vocoder.load_state_dict(dict(vocoder.named_buffers()) | folded(state))
        vocoder.folder = folder
        return vocoder.float().eval().requires_grad_(False)

    @classmethod
    def opened(cls, folder: Path) -> tuple["BigVGAN", dict[str, torch.Tensor]]:
        """The vocoder without its weights, and those, mapped. InputError unless they fit."""
        config, state = _read_config(folder / "config.json"), read_state(folder / "model.pt", "generator")
        try:
            vocoder = without_weights(lambda: cls(config))
            plain = dict(vocoder.named_buffers()) | folded({name: tensor.to("meta") for name, tensor in state.items()})
        except (RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError, AttributeError) as error:
            raise InputError(f"{folder}: does not fit its config.json: {' '.join(str(error).split())[:300]}") from error
        check_fit(
            vocoder, {name: tensor.shape for name, tensor in plain.items()}, f"{folder}: does not fit its config.json"
        )
        return vocoder, state

    def save(self, folder: str | Path) -> None:
        """Copy the files that it was loaded from: nothing in it is trained."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.pt"):
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                shutil.copyfile(self.folder / name, Path(folder) / name)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(mel)
        blocks = len(self.resblocks) // len(self.ups)
        for stage, [up] in enumerate(self.ups):
            x = up(x)
            x = sum(block(x) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]) / blocks
        x = self.conv_post(self.activation_post(x))[:, 0]
        return torch.tanh(x) if self.config.get("use_tanh_at_final", True) else x.clamp(-1, 1)


class Block(nn.Module):
    """x + conv(A(dilated conv(A(x)))), once for each dilation; the activations of all convolutions in one list."""

    def __init__(self, width: int, kernel: int, dilations: list[int], log: bool):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations = nn.ModuleList(Activation(width, log) for _ in range(2 * len(dilations)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, between = self.activations[::2], self.activations[1::2]
        for dilated, plain, first, second in zip(self.convs1, self.convs2, before, between, strict=True):
            x = x + plain(second(dilated(first(x))))
        return x


class Activation(nn.Module):
    """Snake at twice the rate: [N, C, T] → [N, C, T]."""

    def __init__(self, width: int, log: bool):
        super().__init__()
        self.act, self.upsample, self.downsample = Snake(width, log), Taps(), nn.Module()
        self.downsample.lowpass = Taps()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half, channels = _TAPS // 2, x.shape[1]
        x = F.pad(x, (half - 1, half - 1), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.upsample.filter.expand(channels, -1, -1), stride=2, groups=channels)
        edge = 3 * (half - 1)
        x = F.pad(self.act(x[..., edge:-edge]), (half - 1, half), mode="replicate")
        return F.conv1d(x, self.downsample.lowpass.filter.expand(channels, -1, -1), stride=2, groups=channels)


class Snake(nn.Module):
    def __init__(self, width: int, log: bool):
        super().__init__()
        self.log = log
        self.alpha, self.beta = (nn.Parameter(torch.zeros(width) if log else torch.ones(width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha, beta = self.alpha[:, None], self.beta[:, None]
        if self.log:
            alpha, beta = alpha.exp(), beta.exp()
        return x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)


class Taps(nn.Module):
    """The low-pass filter for a factor of 2, [1, 1, 12], its sum 1."""

    def __init__(self):
        super().__init__()
        cutoff, width = 0.25, 0.3
        attenuation = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * width + 7.95  # Kaiser's formula, dB
        window = torch.kaiser_window(_TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
        taps = window * torch.sinc(2 * cutoff * (torch.arange(_TAPS) - _TAPS / 2 + 0.5))
        self.register_buffer("filter", (taps / taps.sum())[None, None])


def _read_config(file: Path) -> dict:
    said = read_json(file, "the config of a BigVGAN")
    if missing := [key for key in _NEEDED if not said.get(key)]:
        raise InputError(f"{file}: {missing[0]}: missing (a BigVGAN has it)")
    for key, expected in {"resblock": "1", "activation": "snakebeta"}.items():
        if str(said.get(key, expected)) != expected:
            raise InputError(f"{file}: {key}: expected {expected}, got {said[key]!r}")
    return said
