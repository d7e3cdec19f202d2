"""Units → log-mel spectrum by conditional flow matching (Lipman et al. 2023), as in CosyVoice (Du et al. 2024).

    μ = stretch(Linear(conformer(embedding[units])))          frames = int(units / 12.5 · 22050 / 256)
    s = Linear(speaker / ‖speaker‖): the zero speaker's voice is the bias
    v(x, t) = (1 + g) · f(x, μ, s, c, t) − g · f(x, 0, 0, 0, t)
    x ← x + (t' − t) · v(x, t)  from noise, over t = 1 − cos(u · π/2), u = 0, 1/S, …, 1

The whole utterance at once, without a prompt: c = 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from elocute.speech.glm4voice.encoder import BlockConformer, LengthRegulator
from elocute.speech.glm4voice.estimator import Estimator

_MEL_RATE, _MEL_HOP = 22050, 256
"""The spectrum that the original's flow is made for, whatever its config says."""


class Flow(nn.Module):
    """Units → log-mel spectrum. The names are those of the published weights.

    config: the `flow` of config.yaml. n_units: units are 0 … n_units − 1.
    """

    def __init__(self, config: dict):
        super().__init__()
        width, mel = config["input_size"], config["output_size"]
        self.n_units, self.unit_rate = config["vocab_size"], float(config["input_frame_rate"])
        self.input_embedding = nn.Embedding(self.n_units, width)
        self.spk_embed_affine_layer = nn.Linear(config["spk_embed_dim"], mel)
        self.encoder = BlockConformer(config["encoder"])
        self.encoder_proj = nn.Linear(self.encoder.width, mel)
        regulator = config["length_regulator"]
        self.length_regulator = LengthRegulator(regulator["channels"], len(regulator["sampling_ratios"]))
        self.decoder = Velocity(config["decoder"])

    def frames(self, units: int) -> int:
        """How many spectral frames so many units give."""
        return int(units / self.unit_rate * _MEL_RATE / _MEL_HOP)

    def forward(
        self, units: torch.Tensor, generator: torch.Generator, steps: int, speaker: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Units int64 [N], a speaker's embedding [S] (none: zeros) → log-mel [mel, frames(N)].

        The generator is the CPU's: the same noise on every device. steps: Euler steps, the original's are 10.
        """
        mean = self.mean(units)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return self.decoder(noise, mean, self.voice(speaker), steps)[0]

    def mean(self, units: torch.Tensor) -> torch.Tensor:
        """Units int64 [N] → [1, mel, frames(N)]."""
        states = self.encoder_proj(self.encoder(self.input_embedding(units.clamp(min=0))[None]))
        return self.length_regulator(states.transpose(1, 2), self.frames(len(units)))

    def voice(self, speaker: torch.Tensor | None = None) -> torch.Tensor:
        """A speaker's embedding [S], of any length that is not 0 → [1, mel]."""
        layer = self.spk_embed_affine_layer
        if speaker is None:
            speaker = layer.weight.new_zeros(layer.in_features)
        return layer(F.normalize(speaker.to(layer.weight)[None]))


class Velocity(nn.Module):
    """The flow's velocity field and its integration. guidance: the g above."""

    def __init__(self, config: dict):
        super().__init__()
        self.guidance = float(config["cfm_params"]["content"]["inference_cfg_rate"])
        self.estimator = Estimator(config["estimator"])

    def forward(self, x: torch.Tensor, mean: torch.Tensor, voice: torch.Tensor, steps: int) -> torch.Tensor:
        """Noise and mean [1, mel, T], voice [1, mel] → log-mel [1, mel, T]."""
        condition = torch.cat([mean, voice[..., None].expand_as(mean), torch.zeros_like(mean)], 1)
        times = time_grid(steps, x)
        for now, then in zip(times[:-1], times[1:], strict=True):
            x = x + (then - now) * self.velocity(x, condition, now)
        return x

    def velocity(self, x: torch.Tensor, condition: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[1, mel, T] at a time [], under a condition [1, 3 · mel, T] → [1, mel, T]."""
        both = torch.cat([condition, torch.zeros_like(condition)])
        guided, free = self.estimator(torch.cat([x.expand(2, -1, -1), both], 1), time.expand(2)).chunk(2)
        return (1 + self.guidance) * guided - self.guidance * free


def time_grid(steps: int, like: torch.Tensor) -> torch.Tensor:
    """t = 1 − cos(u · π/2) for u = 0, 1/steps, …, 1: [steps + 1]."""
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device) * 0.5 * math.pi)
