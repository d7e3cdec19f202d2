"""Rollouts: groups of answers to each prompt, with the log-probs they were sampled with.

- A prompt is prefilled once and its cache shared by its group; decoding runs on a KV cache, finished rows leave it.
- An answer grows step by step; a step has one cell in each of the model's streams. They are drawn independently of each
  other, or one after the other where a depth decoder speaks them.
  Some models have several stages: what the first one wrote, the next one speaks.
- Every answer has its own stream of uniform numbers, seeded by (run seed, step, prompt, sample): an answer does not
  depend on what else is in the batch.
- Forced cells are fed, never sampled: log-prob 0 and no action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from elocute.errors import InputError
from elocute.models import SpeechLM
from elocute.models.layout import Tokens
from elocute.objectives.logprobs import all_logits


@dataclass(frozen=True)
class Sampling:
    """max_new_tokens: steps of a stage, whatever its streams. temperature > 0, one or one for each of the model's
    heads, None: the model's own; top_k 0 and top_p 1 mean the whole vocabulary."""

    max_new_tokens: int
    temperature: float | Sequence[float] | None = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """One sampled answer.

    prompt: as `encode_prompt` gave it; tokens: the answer's T cells. logprob: float32 [T], log-prob under the
    distribution that was sampled from (temperature, top-k and top-p applied), 0 where forced. entropy: float32 [T] in
    nats, of the same distribution before top-k/top-p. broken: why this is no proper answer, or None; truncated: it hit
    max_new_tokens.
    """

    prompt: Any
    tokens: Tokens
    logprob: torch.Tensor
    entropy: torch.Tensor
    broken: str | None
    truncated: bool
    seed: int


@torch.no_grad()
def sample_groups(
    lm: SpeechLM, prompts: Sequence[Any], seeds: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[Rollout]]:
    """Sample len(seeds[p]) answers to each prompt p; all groups have one size. Returns [prompts][group].

    InputError when a prompt and the longest answer do not fit into the model's context together.
    """
    group_size = len(seeds[0])
    if any(len(row) != group_size for row in seeds):
        raise ValueError("every prompt needs the same number of seeds")
    check_room(lm, {f"prompt {i}": len(prompt) for i, prompt in enumerate(prompts, 1)}, sampling.max_new_tokens)
    batch = _Batch(lm, prompts, [seed for row in seeds for seed in row], group_size, sampling)
    rollouts = batch.run()
    return [rollouts[start : start + group_size] for start in range(0, len(rollouts), group_size)]


def check_room(lm: SpeechLM, lengths: Mapping[str, int], max_new_tokens: int) -> None:
    """InputError, naming the first, unless each prompt and the longest answer fit into the model's context together.

    lengths: each prompt's tokens, by the row it comes from. InputError, too, for answers longer than the model can say.
    """
    if lm.longest_answer is not None and max_new_tokens > lm.longest_answer:
        raise InputError(
            f"max_new_tokens: expected at most {lm.longest_answer}, got {max_new_tokens}: the model has places for no "
            "longer an answer"
        )
    context, longest = lm.context, max(lengths.values(), default=0)
    if context is None or longest + max_new_tokens <= context:
        return
    where = next(where for where, tokens in lengths.items() if tokens + max_new_tokens > context)
    raise InputError(
        f"{where}: max_new_tokens: expected at most {max(context - longest, 0)}, got {max_new_tokens}, or shorter "
        f"prompts: this one has {lengths[where]} tokens, the longest {longest}, the model's context holds {context}"
    )


class _Batch:
    """The state of one decoding batch: rows still growing, and their cursors."""

    def __init__(self, lm, prompts, seeds, group_size, sampling: Sampling):
        self.lm, self.prompts, self.seeds, self.group_size, self.sampling = lm, prompts, seeds, group_size, sampling
        self.by_head = [replace(sampling, temperature=own) for own in lm.temperatures(sampling.temperature)]
        self.cursors = [lm.cursor(prompt) for prompt in prompts for _ in range(group_size)]
        self.logprobs: list[list[float]] = [[] for _ in seeds]
        self.entropies: list[list[float]] = [[] for _ in seeds]
        count = sampling.max_new_tokens * sum(lm.streams)
        self.uniforms = torch.stack([_uniforms(seed, count) for seed in seeds]).to(lm.head().weight.device)

    def run(self) -> list[Rollout]:
        core = self.lm.core()
        was_training = core.training
        core.eval()
        try:
            for decoder in self.lm.decoders(self.prompts, self.group_size, self.cursors):
                self._grow(decoder)
        finally:
            core.train(was_training)
        return [self._rollout(row) for row in range(len(self.seeds))]

    def _grow(self, decoder) -> None:
        """One stage of the answers: until each has ended, or has come to the next stage."""
        rows, device = list(decoder.rows), self.uniforms.device
        stages = {row: self.cursors[row].stage for row in rows}
        for step in range(self.sampling.max_new_tokens):
            ids = self._step(decoder, rows)
            growing = [
                index
                for index, row in enumerate(rows)
                if not self.cursors[row].done and self.cursors[row].stage == stages[row]
            ]
            if not growing or step + 1 == self.sampling.max_new_tokens:
                return
            if len(growing) < len(rows):
                rows = [rows[index] for index in growing]
                kept = torch.tensor(growing, device=device)
                ids = ids[kept]
                decoder.keep(kept)
            decoder.step(ids)

    def _step(self, decoder, rows: list[int]) -> torch.Tensor:
        """Give the rows the cells of a step, forced or sampled, stream by stream; int64 [rows, streams]."""
        device = self.uniforms.device
        forced = [[-1 if id is None else id for id in self.cursors[row].forced()] for row in rows]
        forced = torch.tensor(forced, device=device)
        places = torch.tensor([len(self.logprobs[row]) for row in rows], device=device)
        numbers = torch.tensor(rows, device=device)
        before = sum(self.lm.streams[: self.cursors[rows[0]].stage])  # heads of earlier stages
        ids: list[torch.Tensor] = []
        values = []
        for stream, head in enumerate(decoder.heads):
            known = stream < len(decoder.hidden)
            hidden = decoder.hidden[stream] if known else decoder.deeper(torch.stack(ids, 1))
            logits = all_logits(hidden, head.weight, head.bias)
            drawn, *measured = draw(logits, self.uniforms[numbers, places + stream], self.by_head[before + stream])
            free = forced[:, stream] < 0
            ids.append(torch.where(free, drawn, forced[:, stream]))
            values.append(torch.stack([torch.where(free, value, 0.0) for value in measured]))
        cells = torch.stack(ids, 1)
        logprobs, entropies = torch.stack(values, -1).tolist()
        for row, ids_of, logprob, entropy in zip(rows, cells.tolist(), logprobs, entropies, strict=True):
            self.logprobs[row] += logprob
            self.entropies[row] += entropy
            self.cursors[row].push(*ids_of)
        return cells

    def _rollout(self, row: int) -> Rollout:
        logprob, entropy = torch.tensor(self.logprobs[row]), torch.tensor(self.entropies[row])
        return _ended(self.cursors[row], self.prompts[row // self.group_size], logprob, entropy, self.seeds[row])


def replay(
    lm: SpeechLM, prompt: Any, ids: torch.Tensor, logprob: torch.Tensor, entropy: torch.Tensor, seed: int
) -> Rollout:
    """The rollout whose cells were `ids` [T], from what cannot be told from them: log-probs and entropies [T]."""
    cursor, cells, start = lm.cursor(prompt), ids.tolist(), 0
    while start < len(cells):
        width = len(cursor.forced())
        cursor.push(*cells[start : start + width])
        start += width
    return _ended(cursor, prompt, logprob, entropy, seed)


def _ended(cursor, prompt, logprob: torch.Tensor, entropy: torch.Tensor, seed: int) -> Rollout:
    truncated = not cursor.done
    cursor.close()
    return Rollout(prompt, cursor.tokens(), logprob, entropy, cursor.broken, truncated, seed)


def draw(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling):
    """One token a row by inverting the cumulative distribution at `uniform`.

    logits [B, V]; uniform float64 [B] in [0, 1); sampling's temperature is one number. Returns ids [B], log-probs as
    sampled [B] and entropies before top-k/top-p [B], both float32.
    """
    logits = logits.float() / sampling.temperature
    logp = torch.log_softmax(logits, -1)
    entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
    if sampling.top_k or sampling.top_p < 1:
        logp = torch.log_softmax(_truncate(logp, sampling), -1)
    cumulative = logp.exp().double().cumsum(-1)
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logp.gather(1, tokens[:, None])[:, 0], entropy


def _truncate(logp: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probs with everything outside top-k, then outside top-p, at −inf."""
    ordered, order = logp.sort(-1, descending=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = -torch.inf
    if sampling.top_p < 1:
        probability = torch.softmax(ordered, -1)
        before = probability.cumsum(-1) - probability  # a token stays if less than top_p lies before it
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
    return torch.full_like(logp, -torch.inf).scatter(-1, order, ordered)


def _uniforms(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
