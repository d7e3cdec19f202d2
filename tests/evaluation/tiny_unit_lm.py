"""A unit LM with random weights over a crude codec whose every sequence of units is a sound."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.data.audio import resample, save_wav
from elocute.models.layout import Layout, Tokens
from elocute.models.unit_lm import UnitLM, Vocabulary

BOS, FIRST, UNITS = 1, 2, 24
_FRAME = 800  # 50 ms


class LoudnessCodec:
    """50 ms frames → their loudness in 24 steps, repeats removed; back: a tone of that loudness, 50 ms a unit."""

    sample_rate, n_units, digest = 16_000, UNITS, "loudness-24"

    def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        waveform = resample(waveform, rate, self.sample_rate)
        frames = waveform[: len(waveform) // _FRAME * _FRAME].reshape(-1, _FRAME)
        units = np.minimum(np.abs(frames).mean(axis=1) * 2 * UNITS, UNITS - 1).astype(np.int64)
        return units[np.r_[True, units[1:] != units[:-1]]] if len(units) else units

    def decode(self, units) -> np.ndarray:
        return tone(np.asarray(units, dtype=np.float64) / UNITS)


def tiny_unit_lm(seed: int = 0, context: int = 256, eos: int | None = None) -> UnitLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=FIRST + UNITS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, pad_token_id=0, bos_token_id=None, eos_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    layout = Layout("speech-only", FIRST, UNITS, text_end=None, answer_end=eos, open_ended=True)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[:FIRST] *= 0.01  # seldom anything but a unit
    return UnitLM(model, Vocabulary(layout, BOS, LoudnessCodec(), {}, config, Path(), {}))


def tokens(ids) -> Tokens:
    ids = torch.tensor(list(ids), dtype=torch.long)
    return Tokens(ids, torch.zeros(len(ids), dtype=torch.bool), torch.ones(len(ids), dtype=torch.bool))


def tone(loudness: np.ndarray) -> np.ndarray:
    """float32: 50 ms of 220 Hz for each of the peaks in `loudness`."""
    peaks = np.repeat(loudness, _FRAME)
    return (peaks * np.sin(2 * np.pi * 220 * np.arange(len(peaks)) / LoudnessCodec.sample_rate)).astype(np.float32)


def record(path: Path, seed: int, seconds: float = 1.0) -> Path:
    """A tone whose loudness wanders, as a WAV: every seed gives other units."""
    save_wav(path, tone(np.random.default_rng(seed).uniform(0.1, 0.9, round(seconds * 20))), LoudnessCodec.sample_rate)
    return path
