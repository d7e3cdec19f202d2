"""Trains the starter's ear, a small recogniser of letters: `python -m starter.train_ear`.

It knows the text: how likely it finds it rewards the TTS model's words (`form: likelihood`). A conformer with CTC from
nothing (wav2vec 2.0-BERT, Seamless Communication et al. 2023), on joe's recordings as the codec gives them back,
measured on recordings it was not trained on (metrics.json).
"""

import argparse
import json
import random
import string
from itertools import islice
from pathlib import Path

import jiwer
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertProcessor,
    Wav2Vec2CTCTokenizer,
)

from elocute.data.cache import EncodedAudio
from elocute.data.normalise import normalise
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.models.reading import text_of
from elocute.speech.codec import StarterCodec
from starter.fit import fit_one_cycle

HERE = Path(__file__).parent
BATCH = 32
NOISE = 0.2
"""Standard deviation of what is added to the normalised features, so that no recording is learned by heart."""


def make_processor(out: Path) -> Wav2Vec2BertProcessor:
    """80 mel bands, two frames of 10 ms at a time; letters, the apostrophe and a space."""
    letters = ["<pad>", "<unk>", "|", *string.ascii_lowercase, "'"]
    (out / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(out / "vocab.json"), bos_token=None, eos_token=None)
    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16_000, stride=2)
    return Wav2Vec2BertProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def heard(rows: list[Example], processor: Wav2Vec2BertProcessor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features [F, mels] of the recordings as the codec gives them back, and the letters of their texts."""
    codec, found = StarterCodec.load(HERE / "codec"), []
    audio = EncodedAudio(codec)
    for row in rows:
        waveform = codec.decode(audio.units(row.target_audio))
        features = processor(waveform, sampling_rate=codec.sample_rate, return_tensors="pt", padding=False)
        letters = processor.tokenizer(normalise(text_of(row))).input_ids
        found.append((features.input_features[0], torch.tensor(letters)))
    return found


def batches(items: list, rng: random.Random) -> list[list]:
    """Shuffled, in batches of like length."""
    ordered = sorted(items, key=lambda item: len(item[0]) + rng.uniform(0, 20))
    found = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    return rng.sample(found, len(found))


def logits_and_loss(model: Wav2Vec2BertForCTC, batch: list, noise: float = 0.0):
    features = pad_sequence([own for own, _ in batch], batch_first=True)
    mask = pad_sequence([torch.ones(len(own), dtype=torch.long) for own, _ in batch], batch_first=True)
    letters = pad_sequence([own for _, own in batch], batch_first=True, padding_value=-100)
    found = model(features + noise * torch.randn_like(features), attention_mask=mask, labels=letters)
    return found.logits.masked_fill(~mask[..., None].bool(), -torch.inf), found.loss


@torch.inference_mode()
def word_error_rate(model: Wav2Vec2BertForCTC, processor: Wav2Vec2BertProcessor, items: list) -> float:
    said, wanted = [], []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        logits, _ = logits_and_loss(model.eval(), batch)
        said += processor.batch_decode(logits.argmax(-1))
        wanted += [processor.tokenizer.decode(letters, group_tokens=False) for _, letters in batch]
    return round(jiwer.wer(wanted, said), 4)


def train(items: list, letters: int, epochs: int, lr: float, rng: random.Random) -> Wav2Vec2BertForCTC:
    config = Wav2Vec2BertConfig(
        vocab_size=letters, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384,
        feature_projection_input_dim=160, conv_depthwise_kernel_size=15, position_embeddings_type=None, pad_token_id=0,
        ctc_loss_reduction="mean", ctc_zero_infinity=True, mask_time_prob=0.15, mask_time_length=5, layerdrop=0.0,
        hidden_dropout=0.1, attention_dropout=0.1, feat_proj_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    model = Wav2Vec2BertForCTC(config)
    fit_one_cycle(
        model,
        lambda: (logits_and_loss(model, batch, NOISE)[1] for batch in batches(items, rng)),
        steps=-(-len(items) // BATCH), epochs=epochs, lr=lr, weight_decay=0.01, rising=0.15,
    )  # fmt: skip
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "expressive" / "ear")
    parser.add_argument("--data", type=Path, default=HERE / "build" / "expressive.jsonl")
    parser.add_argument("--held-out", type=Path, default=HERE / "expressive" / "train.jsonl")
    parser.add_argument("--rows", type=int, default=2400, help="the first ones")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    processor = make_processor(asked.out)
    items = heard(list(islice(read_rows(asked.data), asked.rows)), processor)
    unheard = heard(read_rows(asked.held_out), processor)
    model = train(items, len(processor.tokenizer), asked.epochs, asked.lr, random.Random(asked.seed))
    metrics = {"recordings": len(items), "word_error_rate": word_error_rate(model, processor, unheard)}
    print(metrics)
    model.half().save_pretrained(asked.out)
    processor.save_pretrained(asked.out)
    (asked.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
