"""Trains the starter codec: `python -m starter.train_codec --out starter/codec`. Deterministic by its seed.

1. Speak the corpus (starter/codec_corpus.py).  2. k-means over 20 ms patches makes the codebook.  3. The decoder
learns, on units and the true F0, to give back spectra at three resolutions.  4. Held-out sentences are measured.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from elocute.speech import decoder, features
from elocute.speech.codec import (
    ENERGY_BINS,
    PITCH_STEP,
    UNVOICED_HZ,
    StarterCodec,
    energy_of,
    nearest,
    pitch_of,
    prosody_bins,
)
from elocute.speech.decoder import Decoder, Shape, Synthesizer, contour, pulse_train
from starter.codec_corpus import Line, training_lines
from starter.measure_codec import measure_codec

SEGMENT = 14  # blocks of a training segment
BATCH = 6
_EDGE = 2 * features.BLOCK  # samples at a segment's ends that the net sees without context: not in the loss


def k_means(patches: torch.Tensor, clusters: int, rounds: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [n, d] → centres [clusters, d]. Lloyd's algorithm; an empty cluster starts anew at a random patch."""
    centres = patches[torch.randperm(len(patches), generator=generator)[:clusters]].clone()
    for _ in range(rounds):
        nearest_centre = torch.from_numpy(nearest(patches.numpy(), centres.numpy()))
        counts = torch.bincount(nearest_centre, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest_centre, patches)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = patches[torch.randint(len(patches), (int(empty.sum()),), generator=generator)]
    return centres


class Segments:
    """The corpus as one long row of blocks: what the decoder sees, its sources, and the waveform it should give."""

    def __init__(self, lines: list[Line], measured: list[features.Measured], codebook: np.ndarray):
        self.rows = [self._row(line.waveform, m, codebook) for line, m in zip(lines, measured, strict=True)]
        self.long = [index for index, row in enumerate(self.rows) if len(row["energy"]) >= SEGMENT]

    @staticmethod
    def _row(waveform: np.ndarray, measured: features.Measured, codebook: np.ndarray) -> dict[str, np.ndarray]:
        pitch_bin, energy_bin = np.divmod(prosody_bins(measured), ENERGY_BINS)
        log_f0, voiced = pitch_of(pitch_bin)
        silent_pitch = np.log(UNVOICED_HZ)
        known = measured.f0 > 0
        # From every 10 ms to every 5 ms; where F0 is unknown the track runs on between its neighbours.
        true = contour(np.log(np.where(known, measured.f0, 1.0)), known, features.HOP // decoder.FRAME, silent_pitch)
        return {
            "spectral": nearest(measured.patches, codebook),
            "log_f0": contour(log_f0, voiced, 1, silent_pitch).astype(np.float32),
            "voiced": voiced.astype(np.float32),
            "energy": energy_of(energy_bin).astype(np.float32),
            "pulses": pulse_train(np.exp(true)),
            "waveform": features.whole_blocks(waveform).astype(np.float32),
            "off_bin": (true - contour(log_f0, voiced, decoder.BLOCK_STEPS, silent_pitch)).astype(np.float32),
            "known": np.repeat(known, features.HOP // decoder.FRAME) & np.repeat(voiced, decoder.BLOCK_STEPS),
        }

    def batch(self, draw: np.random.Generator) -> dict[str, torch.Tensor]:
        parts = []
        for index in draw.choice(self.long, BATCH):
            row = self.rows[index]
            blocks = len(row["energy"])
            start = int(draw.integers(blocks - SEGMENT + 1))
            parts.append({name: _blocks(values, blocks, start) for name, values in row.items()})
        return {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}


def _blocks(values: np.ndarray, blocks: int, start: int) -> np.ndarray:
    """SEGMENT blocks from block `start` of a row that has `blocks` of them, whatever its values per block."""
    per_block = len(values) // blocks
    return values[start * per_block : (start + SEGMENT) * per_block]


def spectral_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT loss (Yamamoto et al. 2020) on [N, samples]: log magnitudes and relative magnitudes."""
    loss = made.new_zeros(())
    for size in (512, 1024, 2048):
        window = torch.hann_window(size)
        first, second = (torch.stft(x, size, size // 4, window=window, return_complex=True).abs() for x in (made, true))
        floor = 1e-3 * size**0.5
        loss = loss + ((first + floor).log() - (second + floor).log()).abs().mean()
        loss = loss + 0.5 * (first - second).abs().sum() / second.sum().clamp(min=1.0)
    return loss


def train_decoder(net: Decoder, segments: Segments, steps: int, seed: int, learning_rate: float = 1.5e-3) -> None:
    draw, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    synthesizer = Synthesizer()
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    start, running = time.monotonic(), 0.0
    for step in range(steps):
        part = segments.batch(draw)
        harmonic, hiss_envelope, correction = net(part["spectral"], part["log_f0"], part["voiced"], part["energy"])
        hiss = torch.randn(part["waveform"].shape, generator=noise)
        made = synthesizer(harmonic, hiss_envelope, part["pulses"], hiss)
        loss = spectral_loss(made[:, _EDGE:-_EDGE], part["waveform"][:, _EDGE:-_EDGE])
        pitch_error = (correction - (part["off_bin"] / PITCH_STEP).clamp(-1, 1)).abs() * part["known"]
        loss = loss + pitch_error.sum() / part["known"].sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            print(f"decoder: step {step + 1}/{steps}, loss {running:.3f}, {time.monotonic() - start:.0f} s", flush=True)


def train(lines: list[Line], seed: int, steps: int) -> StarterCodec:
    torch.manual_seed(seed)
    shape = Shape()
    measured = [features.measure(features.whole_blocks(line.waveform)) for line in lines]
    patches = torch.from_numpy(np.concatenate([m.patches for m in measured]))
    print(f"corpus: {len(lines)} sentences, {len(patches) / 50 / 60:.1f} min", flush=True)
    codebook = k_means(patches, shape.codebook, rounds=20, generator=torch.Generator().manual_seed(seed))
    error = ((patches - codebook[torch.from_numpy(nearest(patches.numpy(), codebook.numpy()))]) ** 2).sum(1).mean()
    rms = float(error / features.N_MELS / features.PATCH_FRAMES) ** 0.5
    print(f"codebook: {shape.codebook} units, rms error {rms:.2f} dB a band", flush=True)
    net = Decoder(shape, codebook)
    train_decoder(net, Segments(lines, measured, codebook.numpy()), steps, seed)
    return StarterCodec(shape, net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the codec")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1500, help="decoder updates")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # small tensors: threads only wait for each other
    torch.set_flush_denormal(True)  # the decaying tails of the filters are ten times slower without
    torch.use_deterministic_algorithms(True)
    codec = train(list(training_lines(asked.seed)), asked.seed, asked.steps)
    codec.save(asked.out)
    measure_codec(StarterCodec.load(asked.out), asked.out, asked.seed)


if __name__ == "__main__":
    main()
