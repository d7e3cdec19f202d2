"""A unit HiFi-GAN: discrete units → waveform, each unit's duration predicted (Polyak et al. 2021; Lee et al. 2022).

    d(u)   = max(1, round(exp(p) − 1)),  p = W·LN(ReLU(conv(LN(ReLU(conv(e))))) over the units' embeddings e
    x      = conv_pre(e, each repeated d times)
    stage  : x = mean of residual blocks(upsample(leaky 0.1 (x)))
    sound  = tanh(conv_post(leaky 0.01 (x))),   hop · Σd samples

The published layout is read as it is – `{"generator": state}` with weight norm in two parts (`weight_g`, `weight_v`)
and the JSON of its training – and so is what `save` writes: safetensors with plain weights, and the same JSON.
One utterance at a time: padding would get durations, too.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from elocute.data.files import read_json
from elocute.errors import InputError
from elocute.speech.torch_file import read_torch

_PUBLISHED = "a published unit vocoder ({'generator': weights})"
_CONDITIONS = ("multispkr", "multistyle", "embedder_params", "f0")
_NEEDED = (
    "num_embeddings", "embedding_dim", "dur_predictor_params", "sampling_rate", "upsample_rates",
    "upsample_kernel_sizes", "upsample_initial_channel", "resblock_kernel_sizes", "resblock_dilation_sizes",
)  # fmt: skip


class UnitVocoder(nn.Module):
    """Units → sound of one voice. On the first GPU if there is one. The names are those of the published weights."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        rates, width = config["upsample_rates"], config["upsample_initial_channel"]
        self.n_units, self.sample_rate = config["num_embeddings"], config["sampling_rate"]
        self.hop = math.prod(rates)
        self.dict = nn.Embedding(config["num_embeddings"], config["embedding_dim"])
        self.dur_predictor = Durations(config["dur_predictor_params"])
        self.conv_pre = nn.Conv1d(config.get("model_in_dim", config["embedding_dim"]), width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(rates, config["upsample_kernel_sizes"], strict=True), 1):
            wide, narrow = width >> (stage - 1), width >> stage
            self.ups.append(nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2))
            shapes = zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
            self.resblocks.extend(ResidualBlock(narrow, size, dilations) for size, dilations in shapes)
        self.conv_post = nn.Conv1d(narrow, 1, 7, padding=3)

    @classmethod
    def load(cls, weights: Path, config: Path) -> "UnitVocoder":
        """Published weights (.pt) or ours (.safetensors) with their JSON. InputError for anything else."""
        said = _read_config(config)
        state = (
            _read_safetensors(weights)
            if weights.suffix == ".safetensors"
            else read_torch(weights, _PUBLISHED, "generator")
        )
        try:
            vocoder = cls(said)
            vocoder.load_state_dict(folded(state))
        except (RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError, AttributeError) as error:
            raise InputError(f"{weights}: does not fit {config}: {' '.join(str(error).split())[:300]}") from error
        return vocoder.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")

    def save(self, folder: Path) -> None:
        """Write `vocoder.safetensors` and `vocoder.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / "vocoder.safetensors")
        (folder / "vocoder.json").write_text(json.dumps(self.config, indent=2) + "\n")

    @torch.inference_mode()
    def forward(self, units: np.ndarray) -> np.ndarray:
        """int64 [U] in 0 … n_units − 1 → float32 [hop · Σ durations] in [−1, 1]."""
        embedded = self.dict(torch.from_numpy(units).to(self.dict.weight.device))
        return self.sound(embedded, self.dur_predictor(embedded)).cpu().numpy()

    def sound(self, embedded: torch.Tensor, durations: torch.Tensor) -> torch.Tensor:
        """Embeddings [U, E], int64 durations [U] in frames → [hop · Σ durations]."""
        x = self.conv_pre(embedded.repeat_interleave(durations, 0).T[None])
        blocks = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(block(x) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]) / blocks
        return torch.tanh(self.conv_post(F.leaky_relu(x, 0.01)))[0, 0]


class ResidualBlock(nn.Module):
    """x + conv(leaky(dilated conv(leaky(x)))), once for each dilation."""

    def __init__(self, width: int, kernel: int, dilations: list[int]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Durations(nn.Module):
    """Embeddings [U, E] → int64 durations [U] in frames, at least 1."""

    def __init__(self, sizes: dict):
        super().__init__()
        width, kernel = sizes["var_pred_hidden_dim"], sizes["var_pred_kernel_size"]
        enter = nn.Conv1d(sizes["encoder_embed_dim"], width, kernel, padding=(kernel - 1) // 2)
        self.conv1 = nn.Sequential(enter, nn.ReLU())
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        x = self.ln1(self.conv1(embedded.T).T)
        x = self.ln2(self.conv2(x.T).T)
        return (torch.exp(self.proj(x)[:, 0]) - 1).round().long().clamp(min=1)


def folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights without weight norm: weight = g · v / ‖v‖, the norm over all but the first axis."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(("weight_g", "weight_v"))}
    for name in state:
        if name.endswith("weight_g"):
            direction = state[name[:-1] + "v"]
            length = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
            plain[name.removesuffix("_g")] = direction * (state[name] / length)
    return plain


def _read_config(file: Path) -> dict:
    said = read_json(file, "the JSON of a unit vocoder")
    if missing := [key for key in _NEEDED if not said.get(key)]:
        raise InputError(f"{file}: {missing[0]}: missing (a unit HiFi-GAN with a duration predictor has it)")
    if more := [key for key in _CONDITIONS if said.get(key)]:
        raise InputError(f"{file}: {more[0]}: expected a vocoder of one voice and style, without pitch input")
    if str(said.get("resblock", "1")) != "1":
        raise InputError(f"{file}: resblock: expected 1, got {said['resblock']!r}")
    return said


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a vocoder's safetensors file: {error}") from error
