"""The starter codec's spectral units with repeats removed, for textless models; duration, pitch and energy predicted.

A textless LM reads and writes units as TWIST does: no repeats, no prosody. To be heard again each unit gets its
duration from a small convolutional net (log durations as in Ren et al. 2021, FastSpeech 2), then each 80 ms block its
pitch and energy bin, and the starter codec makes the sound.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from elocute.errors import InputError
from elocute.speech.codec import ENERGY_BINS, PITCH_BINS, StarterCodec
from elocute.speech.features import BLOCK_PATCHES
from elocute.speech.repeats import merge_repeats
from elocute.speech.units import as_units

_WEIGHTS, _SETTINGS = "prosody.safetensors", "units.json"
_FORMAT = "elocute-starter-units-1"
LONGEST = 50
"""20 ms patches that one unit may last: a second."""


@dataclass(frozen=True)
class Shape:
    """The predictor's sizes."""

    units: int = 1024
    embedding: int = 64
    channels: int = 128
    layers: int = 3
    kernel: int = 5


class Prosody(nn.Module):
    """Units → durations; units at their durations → pitch and energy of each block."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embedding = nn.Embedding(shape.units, shape.embedding)
        self.enter = nn.Conv1d(shape.embedding, shape.channels, 1)
        self.by_unit = _layers(shape)
        self.duration = nn.Conv1d(shape.channels, 1, 1)
        self.by_block = _layers(shape)
        self.leave = nn.Conv1d(shape.channels, PITCH_BINS + ENERGY_BINS, 1)

    def forward(self, units: torch.Tensor, durations: torch.Tensor | None = None):
        """units int64 [U], durations int64 [U] in patches or None: the predicted ones.

        → ln(duration + 1) [U], durations [U], logits of the pitch bin [B, 16] and of the energy bin [B, 8].
        """
        hidden = _run(self.by_unit, self.enter(self.embedding(units).T[None]))
        logs = self.duration(hidden)[0, 0]
        if durations is None:
            durations = (logs.exp() - 1).round().long().clamp(1, LONGEST)
        patches = hidden[0].T.repeat_interleave(durations, 0)
        missing = -len(patches) % BLOCK_PATCHES
        patches = torch.cat([patches, patches[-1:].expand(missing, -1)])
        blocks = patches.view(-1, BLOCK_PATCHES, patches.shape[1]).mean(1)
        logits = self.leave(_run(self.by_block, blocks.T[None]))[0].T
        return logs, durations, logits[:, :PITCH_BINS], logits[:, PITCH_BINS:]


def _layers(shape: Shape) -> nn.ModuleList:
    def convolution():
        return nn.Conv1d(shape.channels, shape.channels, shape.kernel, padding=shape.kernel // 2)

    return nn.ModuleList(nn.Sequential(nn.GELU(), convolution()) for _ in range(shape.layers))


def _run(layers: nn.ModuleList, hidden: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        hidden = hidden + layer(hidden)
    return hidden


class StarterUnits:
    """Waveform → units without repeats → waveform; deterministic, on the CPU. `digest` names it in caches."""

    sample_rate = StarterCodec.sample_rate

    def __init__(self, codec: StarterCodec, shape: Shape, prosody: Prosody, digest: str = ""):
        self.codec, self.shape = codec, shape
        self.prosody = prosody.eval().requires_grad_(False)
        self.n_units = codec.shape.codebook
        self.digest = digest

    @classmethod
    def load(cls, folder: str | Path) -> "StarterUnits":
        """Reads what `save` wrote. A missing, foreign or damaged folder is an InputError."""
        folder = Path(folder)
        weights, settings = folder / _WEIGHTS, folder / _SETTINGS
        try:
            said = json.loads(settings.read_text(encoding="utf-8"))
            if said.get("format") != _FORMAT:
                raise ValueError(f"{_SETTINGS} should say format {_FORMAT!r}, it says {said.get('format')!r}")
            shape, place = Shape(**said["shape"]), said["codec"]
            net = Prosody(shape)
            net.load_state_dict(load_file(weights))
            own = json.dumps([_FORMAT, asdict(shape)]).encode() + weights.read_bytes()  # not where the codec lies
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{folder}: not the starter's units: {str(error).splitlines()[0]}") from error
        codec = StarterCodec.load(folder / place)
        return cls(codec, shape, net, hashlib.sha256(own + codec.digest.encode()).hexdigest())

    def save(self, folder: str | Path, codec: str | None = None) -> None:
        """Writes safetensors and JSON; the codec goes into a folder `codec` of its own unless it lies at `codec`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if codec is None:
            self.codec.save(folder / "codec")
        save_file({name: tensor.contiguous() for name, tensor in self.prosody.state_dict().items()}, folder / _WEIGHTS)
        settings = {"format": _FORMAT, "shape": asdict(self.shape), "codec": codec or "codec"}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self.digest = self.load(folder).digest

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] at any rate → int64 [U], no unit twice in a row."""
        spectral, *_ = self.codec.split(self.codec.encode(waveform, sample_rate))
        return merge_repeats(spectral)

    def decode(self, units) -> np.ndarray:
        """Units [U] (repeats are merged) → float32 [samples] in [-1, 1]. BrokenUnits for an id that is none."""
        units = as_units(units, self.n_units)
        if len(units) == 0:
            return np.zeros(0, dtype=np.float32)
        units = merge_repeats(units)
        with torch.inference_mode():
            _, durations, pitch, energy = self.prosody(torch.from_numpy(units))
        spectral = np.repeat(units, durations.numpy())
        spectral = np.concatenate([spectral, np.repeat(spectral[-1:], -len(spectral) % BLOCK_PATCHES)])
        prosody = self.n_units + pitch.argmax(1).numpy() * ENERGY_BINS + energy.argmax(1).numpy()
        blocks = np.concatenate([prosody[:, None], spectral.reshape(-1, BLOCK_PATCHES)], axis=1)
        return self.codec.decode(blocks.reshape(-1))
