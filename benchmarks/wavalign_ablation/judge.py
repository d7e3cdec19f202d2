"""A judge that hears: which of the world's answers does this sound say? A small network on mel bands.

    python benchmarks/wavalign_ablation/judge.py      # trains it, about a minute, and says how often it is right

It knows nothing of the text that the model wrote, and it is not the recogniser that evaluates. It learns from the
shipped answers, re-synthesised from units of which some were replaced, and from garbled ones (cut, shuffled, spliced,
corrupted), a class of their own. `heard_right` is the probability that the right answer was said; `heard_right_15` and
`_30` give the opposite score, 1 − p, to 15 and 30 % of the answers: a judge that is wrong at a known rate.
"""

import hashlib
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from elocute.data.normalise import normalise
from elocute.data.units import UnitStore
from elocute.speech.codec import StarterCodec
from elocute.speech.features import N_MELS, SAMPLE_RATE, log_mel

WEIGHTS = Path("runs/wavalign_ablation/judge.safetensors")
ANSWERS = Path("starter/data/answers.safetensors")
FRAMES = 320  # 3.2 s: no answer is longer
CLEAN, GARBLED = 24, 6  # takes of each answer


class Listener(torch.nn.Module):
    """Mel bands float [B, FRAMES, N_MELS] → logits [B, answers + 1]; the last class is "garbled"."""

    def __init__(self, n_answers: int):
        super().__init__()
        layers, width = [], N_MELS
        for out in (64, 96, 128):
            layers += [torch.nn.Conv1d(width, out, 5, stride=2, padding=2), torch.nn.BatchNorm1d(out), torch.nn.ReLU()]
            width = out
        self.convolutions = torch.nn.Sequential(*layers)
        self.out = torch.nn.Linear(width * FRAMES // 8, n_answers + 1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(self.convolutions(mels.mT).flatten(1)))


def bands(waveform: np.ndarray) -> torch.Tensor:
    """float [samples] at 16 kHz → float32 [FRAMES, N_MELS], level and silence at both ends taken away."""
    mels = log_mel(waveform[: FRAMES * SAMPLE_RATE // 100])
    loud = mels.max(1) > mels.max() - 35 if len(mels) else np.zeros(0, bool)
    if not loud.any():
        return torch.zeros(FRAMES, N_MELS)
    first, last = np.flatnonzero(loud)[[0, -1]]
    mels = np.maximum(mels[first : last + 1] - mels.max(), -60) / 30 + 1
    return torch.nn.functional.pad(torch.from_numpy(mels).float(), (0, 0, 0, FRAMES - len(mels)), value=-1.0)


def corrupted(units: np.ndarray, share: float, rng: random.Random) -> np.ndarray:
    """The units with a share of the spectral ones (four of each block of five) replaced by any other."""
    units = units.copy()
    for place in range(len(units)):
        if place % 5 and rng.random() < share:
            units[place] = rng.randrange(1024)
    return units


def garbled(units: np.ndarray, other: np.ndarray, rng: random.Random) -> np.ndarray:
    """Cut short, blocks in disorder, spliced with another answer, or mostly noise."""
    blocks = units.reshape(-1, 5)
    kind = rng.randrange(4)
    if kind == 0:
        return blocks[: max(1, int(len(blocks) * rng.uniform(0.2, 0.6)))].reshape(-1)
    if kind == 1:
        return blocks[rng.sample(range(len(blocks)), len(blocks))].reshape(-1)
    if kind == 2:
        return np.concatenate([blocks[: len(blocks) // 2], other.reshape(-1, 5)[: len(other) // 10]]).reshape(-1)
    return corrupted(units, rng.uniform(0.5, 1.0), rng)


def make_takes(codec: StarterCodec, store: UnitStore, keys: list[str], rng: random.Random):
    """(bands [N, FRAMES, N_MELS], classes [N])."""
    units = {key: np.asarray(store.get(key)) for key in keys}
    features, classes = [], []
    for index, key in enumerate(keys):
        for take in range(CLEAN + GARBLED):
            if take < CLEAN:
                made = corrupted(units[key], rng.choice([0, 0.05, 0.15, 0.25]), rng)
            else:
                made = garbled(units[key], units[rng.choice(keys)], rng)
            features.append(bands(codec.decode(made)))
            classes.append(index if take < CLEAN else len(keys))
    return torch.stack(features), torch.tensor(classes)


def train(weights: Path, *, seed: int = 0, epochs: int = 12) -> float:
    """Train and save the listener; returns the share of a second, unseen set of takes that it gets right."""
    torch.manual_seed(seed)
    codec, store = StarterCodec.load("starter/codec"), UnitStore(ANSWERS)
    keys = sorted(store.keys())
    mels, classes = make_takes(codec, store, keys, random.Random(seed))
    listener = Listener(len(keys))
    optimizer = torch.optim.AdamW(listener.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(epochs):
        for piece in torch.randperm(len(mels)).split(64):
            noisy = mels[piece] + 0.1 * torch.randn_like(mels[piece])
            torch.nn.functional.cross_entropy(listener(noisy), classes[piece]).backward()
            optimizer.step()
            optimizer.zero_grad()
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(listener.state_dict(), weights, metadata={"answers": "\n".join(keys)})
    mels, classes = make_takes(codec, store, keys, random.Random(seed + 1))
    listener.eval()
    with torch.no_grad():
        return float((listener(mels).argmax(1) == classes).float().mean())


@cache
def load() -> tuple[Listener, list[str]]:
    """The trained listener and the answers it knows, as normalised text."""
    keys = sorted(UnitStore(ANSWERS).keys())
    listener = Listener(len(keys))
    listener.load_state_dict(load_file(WEIGHTS))
    return listener.eval(), [normalise(key.replace("_", " ")) for key in keys]


@torch.no_grad()
def heard_right(waveforms, answer, **_) -> list[float]:
    """P(the right answer was said | the sound), 0–1; `answer` is the row's column of accepted answers."""
    listener, known = load()
    mels = torch.stack([bands(np.asarray(waveform)) for waveform in waveforms])
    probabilities = torch.softmax(listener(mels).double(), 1)
    right = [{normalise(str(text)) for text in accepted} for accepted in answer]
    says = torch.tensor([[text in accepted for text in known] + [False] for accepted in right])
    return (probabilities * says).sum(1).clamp(0, 1).tolist()


def with_noise(share: float) -> Callable[..., list[float]]:
    """`heard_right`, the opposite for a `share` of the answers, drawn from the batch's own sound."""

    def judge(waveforms, answer, **columns) -> list[float]:
        content = hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in waveforms)).digest()
        wrong = np.random.default_rng(list(content)).random(len(waveforms)) < share
        return [1 - p if flip else p for p, flip in zip(heard_right(waveforms, answer), wrong, strict=True)]

    return judge


heard_right_15, heard_right_30 = with_noise(0.15), with_noise(0.30)


if __name__ == "__main__":
    print(f"right on {train(WEIGHTS):.1%} of unseen takes")
