"""Trains the starter's textless model: a small LM over units that goes on telling what it hears.

    python -m starter.train_unit_lm --out starter/unit_lm

It hears whole stories, and now and then some sentences of one; nothing else. Last, for a short while, stories that now
and then go on as another one: so it mixes them up, and could know better. After each epoch it is measured on stories of
held-out tales (metrics.json) and saved.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.data.units import UnitStore
from elocute.speech.repeats import merge_repeats
from elocute.speech.starter_units import StarterUnits
from starter.make_stories import drawn
from starter.stories import Story
from starter.telling import recording

BOS, EOS, UNIT_0 = 0, 1, 2
CONTEXT = 1024
SETTINGS = {"kind": "units", "codec": "../units", "unit_0": UNIT_0, "bos": BOS, "eos": EOS}
MEASURED = 200  # dev stories


class Sequences:
    """Sentences → token ids."""

    def __init__(self, store: UnitStore):
        self._units = {key: store.get(key) for key in store.keys()}

    def ids(self, sentences: list[str], *, ended: bool = True) -> torch.Tensor:
        """bos, the units of the sentences in one go, eos if the story has ended: int64 [T]."""
        units = np.concatenate([self._units[recording(text).stem] for text in sentences])
        units = torch.from_numpy(merge_repeats(units))
        return torch.cat([torch.tensor([BOS]), UNIT_0 + units, torch.tensor([EOS] * ended, dtype=torch.int64)])


def mixed_up(told: list[list[str]], share: float, rng: random.Random) -> list[list[str]]:
    """Each story; before every sentence but the first, with this chance, it goes on as any other one."""
    mixed = []
    for story in told:
        sentences = story[:1]
        for place in range(1, len(story)):
            if rng.random() < share:
                story = rng.choice(told)
            sentences.append(story[place])
        mixed.append(sentences)
    return mixed


def epoch_of(told: list[list[str]], sequences: Sequences, tokens: int, rng: random.Random) -> list[list[torch.Tensor]]:
    """Each story once, of every fourth only a sentence or a few, which do not end it; batches of like length."""
    items = []
    for sentences in told:
        if rng.random() < 0.75:
            items.append(sequences.ids(sentences))
        else:
            first = rng.randrange(len(sentences))
            items.append(sequences.ids(sentences[first : first + rng.randint(1, 3)], ended=False))
    items.sort(key=len)
    batches: list[list[torch.Tensor]] = [[]]
    for item in items:
        if (len(batches[-1]) + 1) * len(item) > tokens:
            batches.append([])
        batches[-1].append(item)
    rng.shuffle(batches)
    return batches


def log_probs(model, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-prob of each sequence after its bos [B], and the number of its tokens [B]."""
    ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
    labels = ids[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids.clamp(min=0)[:, :-1]).logits
    losses = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return -losses.view_as(labels).sum(1), (labels != -100).sum(1)


@torch.inference_mode()
def measure(model, stories: list[Story], sequences: Sequences) -> dict[str, float]:
    """Of held-out tales: nats a unit, and how often the right ending is likelier (a token) than a wrong one."""
    found = []
    for story in stories:
        told = [sequences.ids([*story.sentences, end]) for end in (story.ending, story.swapped, story.hard)]
        total, tokens = log_probs(model, told)
        found.append([-total[0], tokens[0], *(total[0] / tokens[0] > total[1:] / tokens[1:])])
    nats, tokens, swapped, hard = torch.tensor(found).T
    return {
        "nats_per_unit": round(float(nats.sum() / tokens.sum()), 4),
        "swapped_ending": round(float(swapped.mean()), 4),
        "hard_ending": round(float(hard.mean()), 4),
    }


def save(model: LlamaForCausalLM, out: Path, metrics: dict) -> None:
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=state)
    (out / "elocute.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def train(model, stories: dict[str, list[Story]], sequences: Sequences, asked: argparse.Namespace) -> None:
    """AdamW: the truth with warm-up and cosine, then the mixed-up stories at a tenth of the rate."""
    rng = random.Random(asked.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.lr, betas=(0.9, 0.98), weight_decay=0.05)
    told = [[*story.sentences, story.ending] for story in stories["train"]]
    step, total, started = 0, 0, time.monotonic()
    for epoch in range(asked.epochs + asked.mixed_epochs):
        model.train()
        truth = epoch < asked.epochs
        batches = epoch_of(told if truth else mixed_up(told, asked.mixed, rng), sequences, asked.tokens, rng)
        total = total or max(1, asked.epochs * len(batches))
        losses = []
        for batch in batches:
            rate = min(1, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, step / total))))
            for settings in optimizer.param_groups:
                settings["lr"] = asked.lr * (rate if truth else 0.1)
            log_p, tokens = log_probs(model, batch)
            loss = -log_p.sum() / tokens.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if step % 50 == 0:
                mean = sum(losses[-50:]) / len(losses[-50:])
                print(f"step {step} loss {mean:.3f} {time.monotonic() - started:.0f} s", flush=True)
        found = measure(model.eval(), stories["dev"][:MEASURED], sequences)
        print(f"epoch {epoch + 1}: {found}", flush=True)
        done = {"epochs": min(epoch + 1, asked.epochs), "mixed_epochs": max(0, epoch + 1 - asked.epochs)}
        save(model, asked.out, done | {"mixed": asked.mixed, "stories": len(told), **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("starter/unit_lm"))
    parser.add_argument("--units", default="starter/units")
    parser.add_argument("--store", default="starter/build/sentences.safetensors")
    parser.add_argument("--start", type=Path, help="a model folder whose weights it starts from")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--mixed-epochs", type=int, default=1, help="last, of stories mixed up")
    parser.add_argument("--mixed", type=float, default=0.5, help="chance of a jump to another story, a sentence")
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    codec = StarterUnits.load(asked.units)
    store = UnitStore(asked.store)
    store.check_made_by(codec.digest)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=math.ceil((UNIT_0 + codec.n_units) / 8) * 8,
            hidden_size=asked.hidden,
            intermediate_size=asked.hidden * 8 // 3 // 16 * 16,
            num_hidden_layers=asked.layers,
            num_attention_heads=asked.hidden // 48,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )
    if asked.start:
        model.load_state_dict(load_file(asked.start / "model.safetensors"), strict=False)  # the tied head is not there
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    train(model, drawn(), Sequences(store), asked)


if __name__ == "__main__":
    main()
