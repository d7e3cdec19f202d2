"""Trains what gives units prosody again: `python -m starter.train_units --out starter/units`. Seeded, deterministic.

1. Speak sentences by joe, half of them of stories.  2. The starter codec encodes them: spectral units, their durations
once repeats are removed, each block's pitch and energy bin.  3. A small net learns to predict the latter from the
former.  4. Held-out sentences are re-synthesised from their units alone and measured (metrics.json).
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch.nn.functional import cross_entropy, mse_loss

from elocute.rewards.pocketsphinx_ear import PocketSphinxEar
from elocute.speech.codec import BLOCK_UNITS, ENERGY_BINS, StarterCodec
from elocute.speech.repeats import without_repeats
from elocute.speech.starter_units import LONGEST, Prosody, Shape, StarterUnits
from starter.codec_corpus import Line, held_out_lines, spoken
from starter.make_stories import STORIES
from starter.measure_codec import Listener, compare_pitch, words
from starter.sentences import sentences
from starter.stories import draw_stories, sentences_of
from starter.telling import record, told
from starter.voices import voice_named

JOE = voice_named("joe")


class Example:
    """One sentence: units [U] and durations [U] in patches; pitch and energy bins of its blocks [B]."""

    def __init__(self, codec: StarterCodec, waveform: np.ndarray):
        blocks = codec.encode(waveform, codec.sample_rate).reshape(-1, BLOCK_UNITS)
        units, durations = without_repeats(blocks[:, 1:].reshape(-1))
        pitch, energy = np.divmod(blocks[:, 0] - codec.shape.codebook, ENERGY_BINS)
        self.units, self.durations, self.pitch, self.energy = map(torch.from_numpy, (units, durations, pitch, energy))


def loss_of(net: Prosody, example: Example) -> torch.Tensor:
    """Squared error of ln(duration + 1), as HiFi-GAN's unit vocoder learns it, and cross-entropy of the bins."""
    logs, _, pitch, energy = net(example.units, example.durations)
    durations = mse_loss(logs, (example.durations.clamp(max=LONGEST) + 1).float().log())
    return durations + 0.2 * (cross_entropy(pitch, example.pitch) + cross_entropy(energy, example.energy))


def train(codec: StarterCodec, waveforms: list[np.ndarray], epochs: int, batch: int, seed: int) -> StarterUnits:
    torch.manual_seed(seed)
    examples = [Example(codec, waveform) for waveform in waveforms]
    kept = sum(len(e.units) for e in examples) / sum(int(e.durations.sum()) for e in examples)
    print(f"{len(examples)} sentences; {kept:.0%} of the units stay when repeats are removed", flush=True)
    net = Prosody(Shape(units=codec.shape.codebook))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    steps = epochs * (len(examples) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for epoch in range(epochs):
        order, total = torch.randperm(len(examples)).tolist(), 0.0
        for first in range(0, len(order) // batch * batch, batch):
            loss = sum(loss_of(net, examples[index]) for index in order[first : first + batch]) / batch
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(order) // batch)
        print(f"epoch {epoch + 1}/{epochs}, loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return StarterUnits(codec, Shape(units=codec.shape.codebook), net)


def training_lines(count: int, seed: int) -> list[np.ndarray]:
    """Waveforms at 16 kHz, half of them sentences from templates, half of training stories."""
    own = random.Random(seed).sample(sentences_of(draw_stories("train", STORIES["train"])), count // 2)
    record(own, processes=2)
    templates = sentences(count - count // 2, seed)
    return [*(spoken(text, JOE, 1.0, 1.0).waveform for text in templates), *(told([text]) for text in own)]


def held_out_story_lines(seed: int, count: int = 60) -> list[Line]:
    """Sentences of test stories that no training story says."""
    said = set(sentences_of(draw_stories("train", STORIES["train"])))
    fresh = [text for text in sentences_of(draw_stories("test", STORIES["test"])) if text not in said]
    texts = random.Random(seed).sample(fresh, count)
    record(texts, processes=2)
    return [Line(text, JOE.name, 1.0, told([text])) for text in texts]


def measure(units: StarterUnits, lines: list[Line], hear: Callable[[np.ndarray], str]) -> dict:
    """Words, length and pitch of held-out sentences after re-synthesis from units without repeats."""
    texts = [words(line.text) for line in lines]
    codes = [units.encode(line.waveform, units.sample_rate) for line in lines]
    made = [units.decode(row) for row in codes]
    seconds = np.array([[len(line.waveform), len(m)] for line, m in zip(lines, made, strict=True)]) / units.sample_rate
    same = [min(len(line.waveform), len(m)) for line, m in zip(lines, made, strict=True)]
    pitch = compare_pitch([x.waveform[:n] for x, n in zip(lines, same, strict=True)],
                          [m[:n] for m, n in zip(made, same, strict=True)])  # fmt: skip
    return {
        "sentences": len(lines),
        "units_per_second": round(sum(map(len, codes)) / float(seconds[:, 0].sum()), 1),
        "wer_original": round(jiwer.wer(texts, [words(hear(line.waveform)) for line in lines]), 4),
        "wer_resynthesis": round(jiwer.wer(texts, [words(hear(waveform)) for waveform in made]), 4),
        "length_ratio": round(float(seconds[:, 1].sum() / seconds[:, 0].sum()), 3),
        "length_error": round(float(np.abs(seconds[:, 1] / seconds[:, 0] - 1).mean()), 3),
        "f0_correlation_of_the_unaligned": pitch["f0_correlation"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("starter/units"))
    parser.add_argument("--codec", default="../codec", help="the codec's folder, seen from --out")
    parser.add_argument("--sentences", type=int, default=1800)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # small tensors: threads only wait for each other
    asked.out.mkdir(parents=True, exist_ok=True)  # the codec is sought from there
    codec = StarterCodec.load(asked.out / asked.codec)
    units = train(codec, training_lines(asked.sentences, asked.seed), asked.epochs, asked.batch, asked.seed)
    units.save(asked.out, asked.codec)
    units = StarterUnits.load(asked.out)
    ear = PocketSphinxEar(sentences_of(draw_stories("train", STORIES["train"])))
    found = {
        "template_sentences": measure(units, held_out_lines(asked.seed), Listener(asked.seed).hear),
        "story_sentences": measure(
            units, held_out_story_lines(asked.seed), lambda sound: ear.transcribe([sound], units.sample_rate)[0]
        ),
    }
    print(json.dumps(found, indent=2))
    (asked.out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
