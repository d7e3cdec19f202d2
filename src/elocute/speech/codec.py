"""The starter codec: 16 kHz speech ⇄ blocks of 80 ms: one prosody unit, four spectral units (62.5 units a second).

A flat id is spectral (0 … 1023: which 20 ms spectrum, relative to its block's energy) or prosody (from 1024: pitch bin
× energy bin). Block by block: prosody, spectral, spectral, spectral, spectral. Spectral ids do not depend on loudness.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soxr
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from elocute.errors import InputError
from elocute.prosody import pitch
from elocute.speech import decoder, features
from elocute.speech.decoder import Decoder, Shape, Synthesizer, contour, pulse_train
from elocute.speech.units import BrokenUnits, as_mono

_WEIGHTS, _SETTINGS = "codec.safetensors", "codec.json"
_FORMAT = "elocute-starter-codec-1"
BLOCK_UNITS = 1 + features.BLOCK_PATCHES
PITCH_BINS, ENERGY_BINS = 16, 8  # pitch bin 0 is unvoiced
_LEAST_VOICED = 2  # voiced 10 ms frames that make a block voiced
UNVOICED_HZ = 120.0  # where the (silent) pulse train runs if nothing is voiced
_NOISE_SEED = 0


class StarterCodec:
    """Waveform ⇄ units; deterministic, on the CPU. Load one with `StarterCodec.load(folder)`."""

    sample_rate = features.SAMPLE_RATE
    units_per_second = BLOCK_UNITS * features.SAMPLE_RATE / features.BLOCK

    def __init__(self, shape: Shape, decoder_net: Decoder, digest: str = ""):
        self.shape = shape
        self.decoder = decoder_net.eval().requires_grad_(False)
        self.synthesizer = Synthesizer()
        self.digest = digest
        self.n_units = shape.codebook + PITCH_BINS * ENERGY_BINS
        self.parts = {"spectral": range(shape.codebook), "prosody": range(shape.codebook, self.n_units)}

    # ---- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | Path) -> "StarterCodec":
        """Reads what `save` wrote. A missing, foreign or damaged folder is an InputError."""
        weights, settings = Path(folder) / _WEIGHTS, Path(folder) / _SETTINGS
        try:
            said = json.loads(settings.read_text(encoding="utf-8"))
            if said.get("format") != _FORMAT:
                raise ValueError(f"{_SETTINGS} should say format {_FORMAT!r}, it says {said.get('format')!r}")
            shape = Shape(**said["shape"])
            tensors = load_file(weights)
            net = Decoder(shape, torch.zeros(shape.codebook, features.PATCH_DIM))
            net.load_state_dict(tensors)
            digest = hashlib.sha256(settings.read_bytes() + weights.read_bytes()).hexdigest()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{folder}: not a starter codec: {str(error).splitlines()[0]}") from error
        return cls(shape, net, digest)

    def save(self, folder: str | Path) -> None:
        """Writes safetensors and JSON, the same bytes for the same codec; sets `digest`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.decoder.state_dict().items()}, folder / _WEIGHTS)
        settings = {"format": _FORMAT, "shape": asdict(self.shape), "sample_rate": self.sample_rate}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self.digest = self.load(folder).digest

    # ---- waveform → units ------------------------------------------------------------------------------------------

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """Float mono [samples] in [-1, 1] at any rate → int64 [5 · blocks]; the last block is padded with silence."""
        waveform = as_mono(waveform)
        if sample_rate != self.sample_rate:
            waveform = soxr.resample(waveform, sample_rate, self.sample_rate)
        if len(waveform) == 0:
            return np.zeros(0, dtype=np.int64)
        measured = features.measure(features.whole_blocks(waveform))
        spectral = nearest(measured.patches, self.decoder.codebook.numpy())
        prosody = self.shape.codebook + prosody_bins(measured)
        units = np.concatenate([prosody[:, None], spectral.reshape(-1, features.BLOCK_PATCHES)], axis=1)
        return units.reshape(-1).astype(np.int64)

    # ---- units → waveform ------------------------------------------------------------------------------------------

    def decode(self, units) -> np.ndarray:
        """Flat ids [m] → float32 [1280 · (m // 5)] in [-1, 1]; deterministic. A trailing incomplete block is dropped.

        An id of the wrong kind for its place is BrokenUnits.
        """
        spectral, log_f0, voiced, energy = self.split(units)
        if len(voiced) == 0:
            return np.zeros(0, dtype=np.float32)
        filled = contour(log_f0, voiced, 1, np.log(UNVOICED_HZ))
        with torch.inference_mode():
            patches = torch.from_numpy(spectral)[None]
            harmonic, noise, correction = self.decoder(
                patches,
                *(torch.from_numpy(row.astype(np.float32))[None] for row in (filled, voiced, energy)),
            )
            harmonic, noise = self.decoder.without_buzz(patches, harmonic, noise)
            path = contour(log_f0, voiced, decoder.BLOCK_STEPS, np.log(UNVOICED_HZ))
            f0 = np.exp(path + PITCH_STEP * correction[0].numpy())
            hiss = np.random.default_rng(_NOISE_SEED).standard_normal(len(f0) * decoder.FRAME, dtype=np.float32)
            sources = (torch.from_numpy(source)[None] for source in (pulse_train(f0), hiss))
            waveform = self.synthesizer(harmonic, noise, *sources)[0].numpy()
        return np.clip(waveform, -1.0, 1.0)

    def split(self, units) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Flat ids → spectral ids [4B], and for each block ln F0 (0 if unvoiced) [B], voiced [B], energy in dB [B]."""
        units = np.asarray(units, dtype=np.int64).reshape(-1)
        blocks = units[: len(units) // BLOCK_UNITS * BLOCK_UNITS].reshape(-1, BLOCK_UNITS)
        prosody, spectral = blocks[:, 0] - self.shape.codebook, blocks[:, 1:]
        good = np.concatenate(
            [
                ((prosody >= 0) & (prosody < PITCH_BINS * ENERGY_BINS))[:, None],
                (spectral >= 0) & (spectral < self.shape.codebook),
            ],
            axis=1,
        ).reshape(-1)
        if not good.all():
            place = int(np.flatnonzero(~good)[0])
            kind = "a prosody" if place % BLOCK_UNITS == 0 else "a spectral"
            raise BrokenUnits(f"unit {place} is {units[place]}, expected {kind} unit", place)
        pitch_bin, energy_bin = prosody // ENERGY_BINS, prosody % ENERGY_BINS
        log_f0, voiced = pitch_of(pitch_bin)
        return spectral.reshape(-1), log_f0, voiced, energy_of(energy_bin)


# ---- prosody: pitch bins, equal in log F0, and energy bins, equal in dB --------------------------------------------

_LOWEST = np.log(pitch.FLOOR_HZ)
PITCH_STEP = (np.log(pitch.CEILING_HZ) - _LOWEST) / (PITCH_BINS - 1)
_ENERGY_STEP = (features.HIGHEST_DB - features.LOWEST_DB) / (ENERGY_BINS - 1)


def prosody_bins(measured: features.Measured) -> np.ndarray:
    """int64 [B] in 0 … PITCH_BINS · ENERGY_BINS − 1: the median F0 of the block's voiced frames, and its energy."""
    f0 = measured.f0.reshape(-1, features.BLOCK_FRAMES)
    voiced = (f0 > 0).sum(axis=1) >= _LEAST_VOICED
    median = [np.median(row[row > 0]) if some else pitch.FLOOR_HZ for row, some in zip(f0, voiced, strict=True)]
    tone = np.clip(np.floor((np.log(median) - _LOWEST) / PITCH_STEP), 0, PITCH_BINS - 2)
    pitch_bin = np.where(voiced, 1 + tone, 0)
    energy_bin = np.clip(np.rint((measured.energy - features.LOWEST_DB) / _ENERGY_STEP), 0, ENERGY_BINS - 1)
    return (pitch_bin * ENERGY_BINS + energy_bin).astype(np.int64)


def pitch_of(pitch_bin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pitch bins [B] → ln F0 at the bins' centres (0 where unvoiced), voiced (bool)."""
    voiced = pitch_bin > 0
    return np.where(voiced, _LOWEST + (pitch_bin - 0.5) * PITCH_STEP, 0.0), voiced


def energy_of(energy_bin: np.ndarray) -> np.ndarray:
    """Energy bins [B] → dB below full scale."""
    return features.LOWEST_DB + energy_bin * _ENERGY_STEP


def nearest(patches: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Which codebook row is nearest to each patch: [n, d], [k, d] → int64 [n]. In parts, to need little memory."""
    norms = (codebook**2).sum(axis=1)
    parts = [norms - 2.0 * rows @ codebook.T for rows in np.array_split(patches, max(1, len(patches) // 4096))]
    return np.concatenate([part.argmin(axis=1) for part in parts])
