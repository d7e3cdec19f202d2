"""Groups of answers sampled by a vLLM server, with what proves that they are the policy's own.

- What is sampled is what `sample_groups` samples: the whole vocabulary by temperature, top-k and top-p, one seed an
  answer. Numbers drawn from it are vLLM's, so the answers are others than this machine's.
- Forced tokens are not sampled: a request asks for tokens up to the next place that may be forced, and the next request
  goes on behind it. The server keeps the keys and values of what it has read.
- Weights are written as safetensors, LoRA merged, loaded by the server and named by their folder. Each answer says
  which weights made it; others than expected stop the run.
- Some answers are scored by the model here. Log-probs that differ by more than rounding (`max_drift`) stop the run.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elocute.errors import InputError, RunError
from elocute.models import SpeechLM, check_one_vocabulary
from elocute.models.batch import make_batch, pad_tokens
from elocute.objectives.logprobs import all_logits
from elocute.recipe.rollout import Vllm
from elocute.rollout.sampler import Rollout, Sampling, check_room, distribution, ended
from elocute.rollout.seeds import seed_of
from elocute.rollout.vllm_server import VllmServer

SCORED = 16
"""Answers of a batch that are scored here, spread over it."""
MOST_NATS = 10.0
"""That one token counts in the drift: where rounding puts it outside top-k or top-p, its own log-prob is −inf."""
ROWS = 64
"""Of logits over the whole vocabulary that are held at a time."""


class VllmSampler:
    """Stands in for `sample_groups`. drift: sum of |log-prob there − here|, and the tokens, of the last call.

    InputError when the server, or the model in the folder `model`, is none to sample with.
    """

    def __init__(self, spec: Vllm, model: Path, weights: Path | None = None):
        """weights: a folder of the run's own, after which its weights are named; there `follow` writes them, unless the
        recipe says where."""
        check_one_vocabulary(model, "rollout.vllm")
        self.spec, self.own, self.weights = spec, weights, spec.weights or weights
        self.server = VllmServer(spec.url, spec.timeout)
        self.drift = torch.zeros(2, dtype=torch.float64)
        settings = self.server.settings()
        if (mode := settings["logprobs_mode"]) != "processed_logprobs":
            raise InputError(f"{spec.url}: expected a vLLM server with --logprobs-mode processed_logprobs, not {mode}")
        self.room = settings["max_model_len"]

    def follow(self, lm: SpeechLM, step: int, process: int = 0) -> None:
        """Sample with the network's weights as they are now, when those of `step` are asked for.

        process: which one of the run's this is; the first puts them in for all.
        """
        name = f"step-{step}"
        folder = self.weights.resolve() / name
        self.drift = torch.zeros(2, dtype=torch.float64)
        self.server.expect(folder, str(self.own.resolve() / name), process)
        if process == 0:
            write_weights(lm, folder)
            self.server.load()
            self.clear(but=folder)

    def clear(self, but: Path | None = None) -> None:
        """Delete the steps' weights, and their folder when nothing else is in it."""
        for folder in self.weights.resolve().glob("step-*"):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.weights.rmdir()

    def stay(self, model: Path, version: str) -> None:
        """Sample with the weights in a model's folder."""
        self.server.expect(model.resolve(), version)
        self.server.load()

    def __call__(
        self, lm: SpeechLM, prompts: Sequence[Any], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Rollout]]:
        """As `sample_groups`; entropies are known of those answers that were scored here.

        RunError when the server is gone for too long, or its weights are not the model's.
        """
        [temperature] = lm.temperatures(sampling.temperature)
        sampling, most = replace(sampling, temperature=temperature), sampling.max_new_tokens
        check_room(lm, {f"prompt {i}": len(prompt) for i, prompt in enumerate(prompts, 1)}, most)
        if (longest := max(map(len, prompts))) + most > self.room:
            raise InputError(f"{self.spec.url}: expected --max-model-len {longest + most} or more, it is {self.room}")
        pairs = [(prompt, seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
        rollouts = asyncio.run(self._grow_all(lm, pairs, sampling))
        rollouts = self._check(lm, rollouts, sampling)
        size = len(seeds[0])
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

    async def _grow_all(self, lm: SpeechLM, pairs, sampling: Sampling) -> list[Rollout]:
        async with self.server.connected() as connection:
            return await asyncio.gather(*(grow(connection.draw, lm, *pair, sampling) for pair in pairs))

    def _check(self, lm: SpeechLM, rollouts: list[Rollout], sampling: Sampling) -> list[Rollout]:
        """The rollouts, those that were scored with their entropies. RunError when they are another policy's."""
        places = range(0, len(rollouts), -(-len(rollouts) // SCORED))
        scored = [rollouts[place] for place in places]
        rows = score(lm, scored, sampling)
        self.drift = sum((distance(rollout, logp) for rollout, (logp, _) in zip(scored, rows, strict=True)))
        mean = float(self.drift[0] / self.drift[1].clamp(min=1))
        if not mean <= self.spec.max_drift:
            raise RunError(
                f"{self.spec.url}: its log-probs are {mean:.3g} nats a token from the model's own, more than "
                f"rollout.vllm.max_drift ({self.spec.max_drift:g}): stale weights, another model or a coarser dtype"
            )
        rollouts = list(rollouts)
        for place, (_, entropy) in zip(places, rows, strict=True):
            rollouts[place] = replace(rollouts[place], entropy=entropy)
        return rollouts


async def grow(draw, lm: SpeechLM, prompt: torch.Tensor, seed: int, sampling: Sampling) -> Rollout:
    """One answer. draw: prompt and vLLM's sampling parameters → tokens and log-probs."""
    cursor, logprobs, given = lm.cursor(prompt), [], prompt.tolist()
    while not cursor.done and (left := sampling.max_new_tokens - len(logprobs)) > 0:
        [forced] = cursor.forced()
        if forced is not None:
            cursor.push(forced)
            logprobs.append(0.0)
            continue
        own = parameters(lm, sampling, min(left, cursor.sampled()), seed_of(seed, len(logprobs)))
        for token, logprob in await draw(given + cursor.ids, own):
            cursor.push(token)
            logprobs.append(logprob)
            if cursor.done:  # what was drawn behind a break is no part of the answer
                break
    return ended(cursor, prompt, torch.tensor(logprobs), torch.full((len(logprobs),), torch.nan), seed)


def parameters(lm: SpeechLM, sampling: Sampling, tokens: float, seed: int) -> dict[str, Any]:
    """vLLM's sampling parameters for so many tokens, or fewer, up to a mark of the layout."""
    return {
        "max_tokens": int(tokens),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": seed,
        "logprobs": 0,  # of the drawn token alone
        "stop_token_ids": lm.layout.marks,
        "ignore_eos": True,  # the layout says what ends an answer
        "detokenize": False,
    }


@torch.no_grad()
def score(lm: SpeechLM, rollouts: Sequence[Rollout], sampling: Sampling) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the model here would have said of each answer's tokens: log-probs as sampled, and entropies, float32 [T]
    both, 0 where forced."""
    core = lm.core()
    was_training = core.training
    core.eval()
    try:
        action = pad_tokens([rollout.tokens for rollout in rollouts]).action
        batch = make_batch([r.prompt for r in rollouts], [r.tokens for r in rollouts], action, lm.head().weight.device)
        [states] = lm.states(batch, share_prompts=True)
        values = torch.zeros(2, *action.shape)
        for start in range(0, len(batch.targets), ROWS):
            piece = slice(start, start + ROWS)
            logits = all_logits(states.hidden[piece], states.head.weight, states.head.bias)
            logp, entropy = distribution(logits, sampling)
            picked = logp.gather(1, batch.targets[piece, None])[:, 0]
            values[:, batch.rows[piece].cpu(), batch.columns[piece].cpu()] = torch.stack([picked, entropy]).cpu()
    finally:
        core.train(was_training)
    return [tuple(values[:, row, : len(rollout.tokens)]) for row, rollout in enumerate(rollouts)]


def distance(rollout: Rollout, logp: torch.Tensor) -> torch.Tensor:
    """Sum of |log-prob there − here| over an answer's sampled tokens, and their number, float64 [2]."""
    away = (rollout.logprob - logp).abs().clamp(max=MOST_NATS)[rollout.tokens.action]
    return torch.tensor([away.double().sum(), len(away)], dtype=torch.float64)


def write_weights(lm: SpeechLM, folder: Path) -> None:
    """The network as a folder of safetensors, LoRA merged, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        lm.plain_model().save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise RunError(f"{folder}: the weights cannot be written ({error.strerror or error})") from error
