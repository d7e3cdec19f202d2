"""Units back to sound: a small convolutional net shapes a harmonic source and noise (DDSP, Engel et al. 2020).

The net sees no samples: for every 5 ms it gives two smooth spectral envelopes, one for a pulse train that follows F0
and one for noise. Each 10 ms piece of the sources passes its minimum-phase filter and the pieces are added up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from elocute.speech import features
from elocute.speech.features import N_MELS, SAMPLE_RATE

FRAME = 80  # samples, 5 ms
PATCH_STEPS = features.HOP * features.PATCH_FRAMES // FRAME  # 4 frames to a spectral unit
BLOCK_STEPS = features.BLOCK // FRAME  # 16 frames to a block
_FFT = 512
_LOUDEST, _SILENT = 3.0, -20.0  # log amplitudes: far above full scale but far below overflow; and below hearing
_NEPER = np.log(10) / 20  # amplitude in dB → natural logarithm


@dataclass(frozen=True)
class Shape:
    """The decoder's sizes."""

    codebook: int = 1024
    embedding: int = 64
    channels: int = 192
    layers: int = 5
    kernel: int = 5


class Decoder(nn.Module):
    """Spectral units, pitch and energy → envelopes and F0 → waveform."""

    def __init__(self, shape: Shape, codebook: torch.Tensor):
        """`codebook` float32 [codebook, PATCH_DIM]: the patches that the spectral units stand for."""
        super().__init__()
        self.register_buffer("codebook", codebook)
        self.embedding = nn.Embedding(shape.codebook, shape.embedding)
        self.embedding.weight.data *= 0.1
        inputs = features.PATCH_DIM + shape.embedding + 3 + features.BLOCK_PATCHES
        self.enter = nn.Conv1d(inputs, shape.channels, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(shape.channels, shape.channels, shape.kernel, padding=shape.kernel // 2),
                nn.GELU(),
                nn.Conv1d(shape.channels, shape.channels, 1),
            )
            for _ in range(shape.layers)
        )
        self.leave = nn.Conv1d(shape.channels, PATCH_STEPS * (2 * N_MELS + 1), 1)
        self.leave.weight.data *= 0.1
        nn.init.zeros_(self.leave.bias)
        self.register_buffer("_cosines", torch.tensor(features.cosines().T, dtype=torch.float32), persistent=False)

    def forward(self, spectral, log_f0, voiced, energy):
        """spectral int64 [N, 4B]; by block [N, B]: log_f0 (ln Hz, filled where unvoiced), voiced (0/1), energy (dB).

        → harmonic and noise log amplitude at the mel points [N, 16B, 40] each, and F0's correction [N, 16B] in (−1, 1).
        """
        batch, units = spectral.shape
        patch = self.codebook[spectral]  # [N, U, PATCH_DIM]
        per_unit = torch.stack([(log_f0 - 5.0), voiced, (energy + 30.0) / 20.0], -1)
        per_unit = per_unit.repeat_interleave(features.BLOCK_PATCHES, 1)
        place = torch.eye(features.BLOCK_PATCHES).repeat(units // features.BLOCK_PATCHES, 1).expand(batch, -1, -1)
        hidden = torch.cat([patch / 30.0, self.embedding(spectral), per_unit, place], -1).transpose(1, 2)
        hidden = self.enter(hidden)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        out = self.leave(hidden).transpose(1, 2).reshape(batch, units * PATCH_STEPS, 2 * N_MELS + 1)
        # The net corrects the patch that the unit stands for, raised to the block's energy.
        cepstra = patch[..., : features.PATCH_FRAMES * features.CEPSTRA].reshape(batch, -1, features.CEPSTRA)
        envelope = (cepstra @ self._cosines).repeat_interleave(PATCH_STEPS // features.PATCH_FRAMES, 1)
        base = (envelope + energy.repeat_interleave(BLOCK_STEPS, 1)[..., None]) * _NEPER
        harmonic, noise = (torch.clamp(base + part, max=_LOUDEST) for part in (out[..., :N_MELS], out[..., N_MELS:-1]))
        return harmonic, noise, torch.tanh(out[..., -1])

    def without_buzz(self, spectral, harmonic, noise):
        """Gives the pulses' power to the noise where the spectral unit stands for an unvoiced patch.

        The log spectra that the net learns from do not tell weak pulses from noise; in fricatives they would buzz.
        """
        voicing = self.codebook[spectral][..., -features.PATCH_FRAMES :].flatten(1)
        unvoiced = (voicing < features.VOICING_WEIGHT / 2).repeat_interleave(PATCH_STEPS // features.PATCH_FRAMES, 1)
        both = 0.5 * torch.logaddexp(2 * harmonic, 2 * noise)
        silent = torch.full_like(harmonic, _SILENT)
        return torch.where(unvoiced[..., None], silent, harmonic), torch.where(unvoiced[..., None], both, noise)


class Synthesizer(nn.Module):
    """Envelopes and sources → waveform: a linear time-varying filter, differentiable."""

    def __init__(self):
        super().__init__()
        points = features.mel_points(N_MELS + 2)[1:-1]
        hz = np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT
        spread = np.stack([np.interp(hz, points, row) for row in np.eye(N_MELS)])  # [40, bins]
        spread = _minimum_phase(spread)
        parts = torch.tensor(np.stack([spread.real, spread.imag]), dtype=torch.float32)  # [2, 40, bins]
        self.register_buffer("spread", parts, persistent=False)
        self.register_buffer("window", torch.hann_window(2 * FRAME), persistent=False)

    def forward(self, harmonic, noise, pulses, hiss):
        """Log amplitudes [N, T, 40] twice, sources [N, T·80] twice → [N, T·80]."""
        spectrum = self._filtered(harmonic, pulses) + self._filtered(noise, hiss)
        pieces = torch.fft.irfft(spectrum, _FFT)
        batch, steps, _ = pieces.shape
        pieces = F.pad(pieces, (0, -_FFT % FRAME)).view(batch, steps, -1, FRAME)
        hops = pieces.shape[2]
        total = sum(F.pad(pieces[:, :, hop], (0, 0, hop, hops - hop)) for hop in range(hops))
        return total.reshape(batch, -1)[:, FRAME // 2 : FRAME // 2 + steps * FRAME]

    def _filtered(self, log_amplitude, source):
        framed = F.pad(source, (FRAME // 2, FRAME // 2)).unfold(1, 2 * FRAME, FRAME) * self.window
        real, imaginary = (log_amplitude @ part for part in self.spread)
        return torch.fft.rfft(framed, _FFT) * exponential(real, imaginary)


def exponential(real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    """exp(real + i·imaginary); torch.exp of complex numbers takes ten times as long."""
    size = real.exp()
    return torch.complex(size * imaginary.cos(), size * imaginary.sin())


def _minimum_phase(log_magnitude: np.ndarray) -> np.ndarray:
    """Real log magnitude [..., bins] → complex log spectrum of the minimum-phase filter (the cepstrum folded)."""
    cepstrum = np.fft.irfft(log_magnitude, _FFT)
    fold = np.zeros(_FFT)
    fold[0] = fold[_FFT // 2] = 1
    fold[1 : _FFT // 2] = 2
    return np.fft.rfft(cepstrum * fold, _FFT)


def pulse_train(f0: np.ndarray) -> np.ndarray:
    """F0 in Hz at every frame, all positive, float64 [T] → band-limited pulses of unit power, float32 [T·80].

    Each sample is the sum of all cosines k·phase below the Nyquist frequency (Dirichlet's kernel).
    """
    steps = len(f0)
    per_sample = np.interp(np.arange(steps * FRAME), np.arange(steps) * FRAME + FRAME / 2, f0)
    turns = np.cumsum(per_sample / SAMPLE_RATE) % 1.0
    count = np.floor(SAMPLE_RATE / 2 / per_sample)
    half = np.pi * turns
    sine = np.sin(half)
    at_pulse = np.abs(sine) < 1e-6
    kernel = np.where(at_pulse, count, np.sin((2 * count + 1) * half) / np.where(at_pulse, 1.0, 2 * sine) - 0.5)
    return (kernel * np.sqrt(2.0 / count)).astype(np.float32)


def contour(values: np.ndarray, known: np.ndarray, per_value: int, otherwise: float) -> np.ndarray:
    """One value a block, held for the blocks' centres, linear between known ones: [B], bool [B] → [B · per_value]."""
    if not known.any():
        return np.full(len(values) * per_value, otherwise)
    centres = np.arange(len(values)) * per_value + (per_value - 1) / 2
    return np.interp(np.arange(len(values) * per_value), centres[known], values[known])
