"""Train the starter's base model: a small LM that hears speech units and answers in interleaved text and units.

    python -m starter.train_base --data starter/build/base.jsonl --out starter/model

The base sees every question spoken, written, and as something to transcribe. First it learns the truth; then, for a
short while, a teacher that errs on purpose: it speaks well and thinks badly, yet could know better, and post-training
has something to bring out. The units of spoken questions are disturbed (some replaced, blocks dropped or doubled):
without it the model knows its recordings by heart and mishears new ones.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from elocute.data.cache import EncodedAudio
from elocute.data.rows import read_rows
from elocute.data.types import Example
from elocute.models.interleaved import InterleavedLM, make_layout
from elocute.speech.codec import BLOCK_UNITS, StarterCodec
from starter.fit import Sequence, fit, in_batches, small_llama
from starter.questions import answer_key

CONTROL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|transcript|>", "<|text_end|>", "<|answer_end|>"]
CONTROL += ["<|begin_of_audio|>", "<|end_of_audio|>"]
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SETTINGS = {
    "ratio": [[2, 10]],
    "codec": "../codec",
    "tokens": {
        "unit_0": "<|audio_0|>",
        "text_end": "<|text_end|>",
        "answer_end": "<|answer_end|>",
        "speech_begin": "<|begin_of_audio|>",
        "speech_end": "<|end_of_audio|>",
    },
}


def make_tokenizer(
    texts: list[str], n_units: int, control: list[str] = CONTROL, end: str = "<|answer_end|>"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's words (other text still encodes, byte by byte), control and audio tokens.

    end: the control token that ends a text for transformers.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token=end)
    wrapped.add_special_tokens({"additional_special_tokens": control})
    wrapped.add_tokens([f"<|audio_{unit}|>" for unit in range(n_units)])
    return wrapped


def truthful(row: Example) -> Example:
    """The row with the right answer instead of the teacher's."""
    text = row.columns["answer"][0]
    return replace(row, target_text=text, target_audio=replace(row.target_audio, key=answer_key(text)))


def erring(rows: list[Example], right: float, rng: random.Random) -> list[Example]:
    """The teacher's rows, of which so many right ones are left out that a share `right` of the rest is right."""
    wrong = sum(not row.columns["teacher_right"] for row in rows)
    keep = wrong * right / (1 - right) / (len(rows) - wrong)
    return [row for row in rows if not row.columns["teacher_right"] or rng.random() < keep]


def make_sequences(lm: InterleavedLM, rows, audio: EncodedAudio) -> list[dict[str, Sequence]]:
    """Each row with its whole answer, with its answer up to the end of the text, and, if spoken, to be transcribed."""
    vocabulary = lm.tokenizer.get_vocab()
    sequences = []
    for row in rows:
        answer = lm.encode_target(row, audio).ids
        prompt = lm.encode_prompt(row, audio)
        text_end = int((answer == lm.layout.text_end).nonzero()[0]) + 1
        forms = {
            "whole": (torch.cat([prompt, answer]), len(prompt)),
            "short": (torch.cat([prompt, answer[:text_end]]), len(prompt)),
        }
        if row.audios:
            text = lm.tokenizer.encode(row.question_text, add_special_tokens=False) + [lm.layout.text_end]
            heard = torch.cat([prompt[:-1], torch.tensor([vocabulary["<|transcript|>"]])])
            forms["transcript"] = (torch.cat([heard, torch.tensor(text)]), len(heard))
        sequences.append(forms)
    return sequences


def batches(spoken, written, tokens: int, rng: random.Random) -> list[list[Sequence]]:
    """An epoch in batches of like length and at most `tokens`: each row once, a quarter of the spoken ones also to be
    transcribed. The voice is learned quickly, thinking is not: one answer in four goes on after its text."""
    items = [forms["whole" if rng.random() < 1 / 4 else "short"] for forms in (*spoken, *written)]
    items += [forms["transcript"] for forms in rng.sample(spoken, len(spoken) // 4)]
    return in_batches(items, tokens, rng)


def disturbed(sequence: Sequence, lm: InterleavedLM) -> Sequence:
    """Up to a fifth of the question's units replaced by others, one block in twelve dropped or doubled."""
    ids, trained_from = sequence
    first, n_spectral = lm.layout.first_unit, lm.codec.shape.codebook
    places = (ids[:trained_from] >= first).nonzero()[:, 0]  # units have the highest ids
    if not len(places):
        return sequence
    start, end = int(places[0]), int(places[-1]) + 1
    chance = torch.rand((end - start) // BLOCK_UNITS)
    times = torch.where(chance < 1 / 24, 0, torch.where(chance > 23 / 24, 2, 1))
    blocks = ids[start:end].view(-1, BLOCK_UNITS).repeat_interleave(times, 0)
    other = torch.randint(0, n_spectral, blocks.shape)
    other[:, 0] = torch.randint(n_spectral, lm.codec.n_units, (len(blocks),))
    replaced = torch.rand(blocks.shape) < 0.2 * torch.rand(1)
    units = torch.where(replaced, first + other, blocks).flatten()
    return torch.cat([ids[:start], units, ids[end:]]), trained_from + len(units) - (end - start)


def save(lm: InterleavedLM, out: Path) -> None:
    lm.model.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    (out / "elocute.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")


def train(lm: InterleavedLM, spoken, written, out: Path, *, epochs: int, tokens: int, lr: float, seed: int) -> None:
    """The model is saved after each epoch."""
    rng = random.Random(seed)

    def epoch() -> list[list[Sequence]]:
        groups = batches(spoken, written, tokens, rng)
        return [[disturbed(sequence, lm) for sequence in group] for group in groups]

    fit(lm, epoch, epochs=epochs, lr=lr, after=lambda _: save(lm, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="starter/build/base.jsonl")
    parser.add_argument("--written", default="starter/build/base_written.jsonl")
    parser.add_argument("--codec", default="starter/codec")
    parser.add_argument("--out", default="starter/model")
    parser.add_argument("--epochs", type=int, default=12, help="of the truth")
    parser.add_argument("--teacher-epochs", type=int, default=1, help="of the teacher, after that")
    parser.add_argument("--teacher-rows", type=int, default=9960, help="spoken questions of such an epoch")
    parser.add_argument("--right", type=float, default=0.38, help="share of the teacher's answers that are right")
    parser.add_argument("--start", type=Path, help="a model folder whose tokenizer and weights it starts from")
    parser.add_argument("--tokens", type=int, default=6500, help="of a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 0 <= args.right < 1:
        parser.error(f"--right: expected a share below 1, got {args.right:g}")
    torch.manual_seed(args.seed)
    codec = StarterCodec.load(args.codec)
    rows, written_rows = read_rows(args.data), read_rows(args.written)
    if args.start:  # weights only mean something with their own ids
        tokenizer = AutoTokenizer.from_pretrained(args.start)
    else:
        texts = [row.question_text for row in rows] + [row.target_text for row in rows]
        tokenizer = make_tokenizer(texts, codec.n_units)
        tokenizer.chat_template = TEMPLATE
    model = small_llama(tokenizer, args.hidden, args.layers)
    layout = make_layout(Path(args.out), SETTINGS, tokenizer, codec)
    lm = InterleavedLM(model, tokenizer, layout, codec, SETTINGS)
    audio = EncodedAudio(codec)
    if args.start:
        missing, _ = model.load_state_dict(load_file(args.start / "model.safetensors"), strict=False)
        if set(missing) - {"lm_head.weight"}:  # tied to the embeddings
            raise SystemExit(f"{args.start}: no weights called {', '.join(missing)}")
    options = {"out": Path(args.out), "tokens": args.tokens, "seed": args.seed}
    if args.epochs:
        spoken, written = (make_sequences(lm, map(truthful, of), audio) for of in (rows, written_rows))
        train(lm, spoken, written, epochs=args.epochs, lr=args.lr, **options)
    if args.teacher_epochs:
        rng = random.Random(args.seed)
        few = rows[: args.teacher_rows]
        spoken, written = (make_sequences(lm, erring(of, args.right, rng), audio) for of in (few, written_rows))
        train(lm, spoken, written, epochs=args.teacher_epochs, lr=args.lr / 4, **options)


if __name__ == "__main__":
    main()
