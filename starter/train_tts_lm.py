"""Trains the starter's TTS model, a small LM that reads a sentence aloud: `python -m starter.train_tts_lm`.

At last most of the labels that it is told are wrong, so that it unlearns to mind them: it can speak in every style,
hardly in the one that it is asked for, and post-training has something to bring out. After each epoch it is saved and
measured on the rows for post-training (metrics.json): nats a token, with the true labels and with any.
"""

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.models.interleaved import load_tokenizer
from elocute.models.reading import labels_of, text_of
from elocute.models.tts_lm import TtsLM, make_layout, make_template
from elocute.prosody.schema import Schema, load_schema
from elocute.speech.codec import StarterCodec
from starter.fit import Sequence, fit, in_batches, loss_of, small_llama
from starter.train_base import make_tokenizer

HERE = Path(__file__).parent
CONTROL = ["<|pad|>", "<|text|>", "<|speech|>", "<|speech_end|>"]
SETTINGS = {
    "kind": "tts",
    "codec": "../codec",
    "schema": "../expressive/schema.yaml",
    "tokens": {"unit_0": "<|audio_0|>", "speech_begin": "<|speech|>", "speech_end": "<|speech_end|>"},
    "prompt": "<|text|>{labels}{text}",
    "label_token": "<|{dimension}:{label}|>",
}


def misled(labels: Mapping[str, str], schema: Schema, truth: float, rng: random.Random) -> dict[str, str]:
    """The labels, each with chance `truth`; else any of its dimension's; a tenth of the time none at all."""
    if rng.random() < 0.1:
        return {}
    return {
        name: label if rng.random() < truth else rng.choice(list(schema.dimensions[name].labels))
        for name, label in labels.items()
    }


class Rows:
    """Rows with recordings → sequences."""

    def __init__(self, lm: TtsLM, rows: list[Example]):
        audio = EncodedAudio(lm.codec)
        self.lm = lm
        self.rows = [(text_of(row), labels_of(row), lm.encode_target(row, audio).ids) for row in rows]

    def sequences(self, truth: float, rng: random.Random) -> list[Sequence]:
        """Each row once, with labels of which a share is right."""
        template = self.lm.template
        prompts = [template.encode(text, misled(labels, template.schema, truth, rng)) for text, labels, _ in self.rows]
        return [
            (torch.cat([prompt, answer]), len(prompt))
            for prompt, (_, _, answer) in zip(prompts, self.rows, strict=True)
        ]


@torch.inference_mode()
def nats(lm: TtsLM, rows: Rows, truth: float) -> float:
    """A token, of held-out recordings."""
    lm.model.eval()
    groups = in_batches(rows.sequences(truth, random.Random(0)), 8192, random.Random(0))
    losses = [(float(loss_of(lm, group)), sum(len(ids) - n for ids, n in group)) for group in groups]
    return round(sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses), 4)


def save(lm: TtsLM, out: Path, metrics: dict) -> None:
    state = {name: tensor.bfloat16() for name, tensor in lm.model.state_dict().items()}
    lm.model.save_pretrained(out, state_dict=state)
    lm.tokenizer.save_pretrained(out)
    (out / "elocute.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "tts_lm")
    parser.add_argument("--data", type=Path, default=HERE / "build" / "expressive.jsonl")
    parser.add_argument("--held-out", type=Path, default=HERE / "expressive" / "train.jsonl")
    parser.add_argument("--start", type=Path, help="a model folder whose weights it starts from")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--misled", type=int, default=1, help="of the epochs, at the end, with wrong labels")
    parser.add_argument("--truth", type=float, default=0.1, help="chance then that a label is right on purpose")
    parser.add_argument("--tokens", type=int, default=6500, help="of a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)  # codec and schema are sought from there
    rows, held_out = read_rows(asked.data), read_rows(asked.held_out)
    codec, schema = StarterCodec.load(HERE / "codec"), load_schema(HERE / "expressive" / "schema.yaml")
    labels = [SETTINGS["label_token"].format(dimension=name, label=label)
              for name, dimension in schema.dimensions.items() for label in dimension.labels]  # fmt: skip
    tokenizer = make_tokenizer(list(map(text_of, rows)), codec.n_units, [*CONTROL, *labels], "<|speech_end|>")
    if asked.start:
        tokenizer = load_tokenizer(asked.start)
    layout, template = make_layout(asked.out, SETTINGS, tokenizer, codec), make_template(asked.out, SETTINGS, tokenizer)
    lm = TtsLM(small_llama(tokenizer, asked.hidden, asked.layers), tokenizer, layout, codec, SETTINGS, template)
    if asked.start:
        weights = load_file(asked.start / "model.safetensors")
        lm.model.load_state_dict(weights, strict=False)  # the tied head is not there
    data, dev, rng = Rows(lm, rows), Rows(lm, held_out), random.Random(asked.seed)

    def after(epoch: int) -> None:
        found = {"epochs": epoch, "misled": asked.misled, "truth": asked.truth, "recordings": len(rows)}
        found |= {"nats_true_labels": nats(lm, dev, 1.0), "nats_any_labels": nats(lm, dev, 0.0)}
        print(found, flush=True)
        save(lm, asked.out, found)

    truths = iter([1.0] * (asked.epochs - asked.misled) + [asked.truth] * asked.misled)
    fit(lm, lambda: in_batches(data.sequences(next(truths), rng), asked.tokens, rng), epochs=asked.epochs, lr=asked.lr,
        after=after)  # fmt: skip


if __name__ == "__main__":
    main()
