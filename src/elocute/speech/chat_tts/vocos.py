"""Vocos, log-mel → waveform at 24 kHz by one inverse Fourier transform a frame (Siuzdak 2023).

    x  = LN(conv(mel)) → ConvNeXt blocks → LN → W·x + b = (log magnitude, phase),   magnitude = min(exp(·), 100)
    y  = Σ_frames hann·irfft(magnitude·e^(i·phase)) / Σ_frames hann²,   (n_fft − hop)/2 samples cut at each end

This is the "same" padding, 256 samples a frame, not the "center" of the vocoder that Vocos's authors published. The
file is theirs: a plain state dict, saved with torch.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from elocute.data.shards import check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.chat_tts.mel import LogMel
from elocute.speech.torch_file import read_torch

_LOUDEST = 100.0


class Vocos(nn.Module):
    """The vocoder, under the names of the published weights. `feature_extractor` is the mel that it was trained on."""

    def __init__(self, bins: int = 100, width: int = 512, inner: int = 1536, layers: int = 8, n_fft: int = 1024):
        super().__init__()
        self.feature_extractor = nn.Module()
        self.feature_extractor.mel_spec = LogMel(bins, n_fft)
        self.backbone = Backbone(bins, width, inner, layers)
        self.head = Head(width, n_fft)

    @classmethod
    def load(cls, file: str | Path) -> "Vocos":
        """`assets/Vocos.pt`, read without running anything that it may hold. InputError for anything else."""
        state = read_torch(Path(file), "a file of weights")
        try:
            bins, width = state["backbone.embed.weight"].shape[1::-1]
            inner = len(state["backbone.convnext.0.pwconv1.bias"])
            layers = len({name.split(".")[2] for name in state if name.startswith("backbone.convnext.")})
            n_fft = len(state["head.out.bias"]) - 2
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: not the weights of a Vocos: {error}") from error
        vocos = without_weights(lambda: cls(bins, width, inner, layers, n_fft))
        check_fit(vocos, {name: tensor.shape for name, tensor in state.items()}, str(file))
        vocos.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        return vocos.eval()

    def save(self, file: str | Path) -> None:
        """Write what `load` reads."""
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: tensor.cpu() for name, tensor in self.state_dict().items()}, file)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Log-mel [bins, F] → [hop · F], hop = n_fft/4."""
        return self.head(self.backbone(mel[None]))[0]


class Backbone(nn.Module):
    """[1, bins, F] → [1, F, width]."""

    def __init__(self, bins: int, width: int, inner: int, layers: int):
        super().__init__()
        self.embed = nn.Conv1d(bins, width, 7, padding=3)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.convnext = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class Block(nn.Module):
    """x + gamma · MLP(LN(depthwise conv of width 7))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).transpose(1, 2)))))
        return x + (self.gamma * y).transpose(1, 2)


class Head(nn.Module):
    """[1, F, width] → [1, hop · F]."""

    def __init__(self, width: int, n_fft: int):
        super().__init__()
        self.out = nn.Linear(width, n_fft + 2)
        self.istft = nn.Module()
        self.istft.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        magnitude, phase = self.out(x).transpose(1, 2).chunk(2, 1)
        return inverse_stft(torch.polar(magnitude.exp().clamp(max=_LOUDEST), phase), self.istft.window)


def inverse_stft(spectrum: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Complex [B, n_fft/2 + 1, F] → [B, hop · F], hop = n_fft/4: overlap-add, "same" padding."""
    n_fft, count = len(window), spectrum.shape[2]
    hop = n_fft // 4
    cut = (n_fft - hop) // 2

    def overlap(frames: torch.Tensor) -> torch.Tensor:  # [B, n_fft, F]
        whole = F.fold(frames, (1, (count - 1) * hop + n_fft), (1, n_fft), stride=(1, hop))
        return whole[:, 0, 0, cut:-cut]

    frames = torch.fft.irfft(spectrum, n_fft, dim=1) * window[:, None]
    return overlap(frames) / overlap(window.square()[None, :, None].expand(1, -1, count))
