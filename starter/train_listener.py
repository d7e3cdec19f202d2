"""Trains the starter's listeners, small classifiers that hear emotion and speed: `python -m starter.train_listener`.

They are who evaluates the TTS model's labels, and no reward: audio spectrogram transformers (Gong et al. 2021) from
nothing, on joe's recordings as the codec gives them back. They are measured on recordings they were not trained on
(metrics.json).
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.models.reading import labels_of
from elocute.prosody.schema import Dimension, load_schema
from elocute.speech.codec import StarterCodec
from starter.fit import fit_one_cycle

HERE = Path(__file__).parent
FRAMES = 400
"""Of 10 ms: what is longer is cut, what is shorter is padded."""


def heard(rows: list[Example], codec: StarterCodec, extractor: ASTFeatureExtractor) -> torch.Tensor:
    """Features [N, FRAMES, mels] of recordings as the codec gives them back."""
    audio, found = EncodedAudio(codec), []
    for row in rows:
        waveform = codec.decode(audio.units(row.target_audio))
        found.append(extractor(waveform, sampling_rate=codec.sample_rate, return_tensors="np").input_values[0])
    return torch.from_numpy(np.stack(found))


def train(
    dimension: Dimension, features: torch.Tensor, wanted: torch.Tensor, epochs: int, lr: float
) -> ASTForAudioClassification:
    """Batches of 32."""
    names = list(dimension.labels)
    config = ASTConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_length=FRAMES,
        num_mel_bins=features.shape[-1],
        frequency_stride=16,
        time_stride=16,
        id2label=dict(enumerate(names)),
        label2id={name: n for n, name in enumerate(names)},
    )
    model, steps = ASTForAudioClassification(config), len(features) // 32

    def losses() -> Iterator[torch.Tensor]:
        for rows in torch.randperm(len(features))[: steps * 32].view(-1, 32):
            yield torch.nn.functional.cross_entropy(model(features[rows]).logits, wanted[rows])

    told = f"{dimension.name}: "
    fit_one_cycle(model, losses, steps=steps, epochs=epochs, lr=lr, weight_decay=0.05, rising=0.1, name=told)
    return model


def targets(rows: list[Example], dimension: Dimension) -> torch.Tensor:
    names = list(dimension.labels)
    return torch.tensor([names.index(labels_of(row)[dimension.name]) for row in rows])


@torch.inference_mode()
def accuracy(model: ASTForAudioClassification, features: torch.Tensor, wanted: torch.Tensor) -> float:
    said = torch.cat([model(part).logits.argmax(-1) for part in features.split(32)])
    return round(float((said == wanted).double().mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "expressive" / "listener")
    parser.add_argument("--data", type=Path, default=HERE / "build" / "expressive.jsonl")
    parser.add_argument("--held-out", type=Path, default=HERE / "expressive" / "train.jsonl")
    parser.add_argument("--rows", type=int, default=3600)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    rows = random.Random(asked.seed).sample(read_rows(asked.data), asked.rows)
    unheard = read_rows(asked.held_out)
    codec, schema = StarterCodec.load(HERE / "codec"), load_schema(HERE / "expressive" / "schema.yaml")
    extractor = ASTFeatureExtractor(max_length=FRAMES, num_mel_bins=64, do_normalize=False)
    features, held_out = (heard(of, codec, extractor) for of in (rows, unheard))
    extractor.do_normalize, extractor.mean, extractor.std = True, float(features.mean()), float(features.std())
    features, held_out = (extractor.normalize(of) for of in (features, held_out))
    metrics = {"recordings": len(rows)}
    for name, dimension in schema.dimensions.items():
        model = train(dimension, features, targets(rows, dimension), asked.epochs, asked.lr)
        metrics[f"accuracy_{name}"] = accuracy(model, held_out, targets(unheard, dimension))
        model.save_pretrained(asked.out / name)
        extractor.save_pretrained(asked.out / name)
    print(metrics)
    (asked.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
