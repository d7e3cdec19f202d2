"""What the starter's models that speak, and those that listen, have in common: their training, a small Llama."""

import math
import random
import time
from collections.abc import Callable, Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.models.interleaved import InterleavedLM

Sequence = tuple[torch.Tensor, int]
"""Ids, and where the trained part begins."""


def small_llama(tokenizer, hidden: int, layers: int) -> LlamaForCausalLM:
    """Heads of 48, embeddings tied, a context of 1,024."""
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 8) * 8,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 48,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {config.vocab_size}")
    return model


def in_batches(items: list[Sequence], tokens: int, rng: random.Random) -> list[list[Sequence]]:
    """Shuffled, in batches of like length and at most `tokens` with their padding."""
    items = rng.sample(items, len(items))
    found: list[list[Sequence]] = []
    for start in range(0, len(items), 4096):
        group: list[Sequence] = []
        for item in sorted(items[start : start + 4096], key=lambda item: len(item[0])):
            if (len(group) + 1) * len(item[0]) > tokens:
                found.append(group)
                group = []
            group.append(item)
        found.append(group)
    rng.shuffle(found)
    return found


def collate(group: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T], padded on the right, and labels [B, T]: −100 where nothing is trained."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([ids for ids, _ in group], batch_first=True)
    labels = pad([torch.cat([ids.new_full((n,), -100), ids[n:]]) for ids, n in group], True, -100)
    return ids, labels


def loss_of(lm: InterleavedLM, group: list[Sequence]) -> torch.Tensor:
    """Mean cross-entropy of the trained tokens, in nats."""
    ids, labels = collate(group)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = lm.trunk()(input_ids=ids).last_hidden_state[:, :-1]
        where = labels[:, 1:] != -100
        logits = lm.head()(hidden[where])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][where])


def fit(
    lm: InterleavedLM,
    epoch_of: Callable[[], list[list[Sequence]]],
    *,
    epochs: int,
    lr: float,
    after: Callable[[int], None],
) -> None:
    """AdamW, warm-up and cosine. epoch_of: the batches of the next epoch; after: called with each epoch's number."""
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    step, total, running, started = 0, 0, None, time.monotonic()
    for epoch in range(epochs):
        lm.model.train()
        groups = epoch_of()
        total = total or epochs * len(groups)
        for group in groups:
            rate = lr * min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, step / total))))
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            loss = loss_of(lm, group)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            step += 1
            if step % 50 == 0:
                seconds = time.monotonic() - started
                print(f"epoch {epoch} step {step}/{total} loss {running:.3f} {seconds:.0f} s", flush=True)
        after(epoch + 1)


def fit_one_cycle(
    model: torch.nn.Module,
    epoch_of: Callable[[], Iterable[torch.Tensor]],
    *,
    steps: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    rising: float,
    name: str = "",
) -> None:
    """AdamW, one cycle; rising: the part where the rate climbs; epoch_of: the losses of the next epoch's batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps * epochs, pct_start=rising)
    for epoch in range(epochs):
        model.train()
        losses = []
        for loss in epoch_of():
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"{name}epoch {epoch + 1}/{epochs} loss {sum(losses) / len(losses):.3f}", flush=True)
    model.eval()
