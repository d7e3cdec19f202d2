"""One step's experience: sample groups, decode every answer once, judge it, gather what all ranks must agree on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from accelerate import Accelerator

from elocute.data.cache import EncodedAudio
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.models import SpeechLM
from elocute.recipe.schema import Recipe
from elocute.rewards.combine import Judged, RewardMixer
from elocute.rollout import Rollout, Sampling, sample_groups, seed_of

Sampler = Callable[[SpeechLM, Sequence, Sequence[Sequence[int]], Sampling], list[list[Rollout]]]
"""`sample_groups`, or what stands in for it."""


@dataclass
class Experience:
    """This rank's rollouts, and the rewards of all ranks.

    rollouts: this rank's, prompt by prompt [p·G]; rewards float64 and available bool [P, G], of all ranks;
    mine: slice of the P prompts that are this rank's; judged: this rank's outcomes. Where nothing judges, judged is
    None and there are no rewards (P = 0).
    """

    rollouts: list[Rollout]
    answers: list[Answer]
    judged: Judged | None
    rewards: torch.Tensor
    available: torch.Tensor
    mine: slice
    seconds: dict[str, float] = field(default_factory=dict)


def my_prompts(accelerator: Accelerator, count: int) -> slice:
    """The prompts of a step that this rank works on: equal, contiguous shares."""
    share, rest = divmod(count, accelerator.num_processes)
    if rest:
        processes = accelerator.num_processes
        raise InputError(f"rollout.prompts_per_step: expected a multiple of {processes}, the processes, got {count}")
    return slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def step_examples(examples: Sequence[Example], recipe: Recipe, step: int) -> list[int]:
    """Indices of the rows of step `step` (from 0): a fresh permutation each epoch, seeded by (run seed, epoch)."""
    count = recipe.rollout.prompts_per_step
    indices = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, len(examples))
        indices.append(int(_permutation(len(examples), recipe.seed, epoch)[place]))
    return indices


@lru_cache(maxsize=2)  # a step may touch two epochs; every step of a million rows would permute them anew
def _permutation(n: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(seed, "epoch", epoch)))


def sampling_of(recipe: Recipe) -> Sampling:
    rollout = recipe.rollout
    return Sampling(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p)


def sample(
    lm: SpeechLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    recipe: Recipe,
    step: int,
    accelerator: Accelerator,
    *,
    group_size: int,
    wanted: Callable[[Example], bool] = lambda example: True,
    sampler: Sampler = sample_groups,
) -> Experience:
    """Sample and decode, for those of this rank's `examples` (the step's, all ranks' together) that are wanted."""
    mine = my_prompts(accelerator, len(examples))
    clock = _Clock()
    places = [place for place in range(mine.start, mine.stop) if wanted(examples[place])]
    prompts = [lm.encode_prompt(examples[place], audio) for place in places]
    seeds = [[seed_of(recipe.seed, step, place, number) for number in range(group_size)] for place in places]
    groups = sampler(lm, prompts, seeds, sampling_of(recipe)) if places else []
    rollouts = [rollout for row in groups for rollout in row]
    clock.lap("rollout")
    owners = [examples[place] for place in places for _ in range(group_size)]
    answers = [lm.answer(o, r.tokens.ids) for o, r in zip(owners, rollouts, strict=True)]
    clock.lap("decode")
    nothing = torch.zeros(0, group_size, dtype=torch.float64)
    return Experience(rollouts, answers, None, nothing, nothing.bool(), mine, clock.seconds)


def collect(
    lm: SpeechLM,
    audio: EncodedAudio,
    examples: Sequence[Example],
    mixer: RewardMixer,
    recipe: Recipe,
    step: int,
    accelerator: Accelerator,
    sampler: Sampler = sample_groups,
) -> Experience:
    """Sample, decode and judge one step's groups for `examples` (the step's P prompts, all ranks' together)."""
    group = recipe.rollout.group_size
    experience = sample(lm, audio, examples, recipe, step, accelerator, group_size=group, sampler=sampler)
    clock = _Clock()
    answers = experience.answers = mixer.read(experience.answers)
    judged = mixer(answers, [index // group for index in range(len(answers))])
    silent = torch.tensor(list(judged.silent.values()), dtype=torch.float64, device=accelerator.device)
    silent = accelerator.reduce(silent, "sum").tolist()
    mixer.check_alive(judged, dict(zip(judged.silent, silent, strict=True)))
    clock.lap("reward")
    local = torch.tensor([[v if v is not None else 0.0, v is not None] for v in judged.values], dtype=torch.float64)
    everyone = accelerator.gather(local.to(accelerator.device)).cpu()
    experience.judged = judged
    experience.rewards = everyone[:, 0].view(len(examples), group)
    experience.available = everyone[:, 1].view(len(examples), group).bool()
    experience.seconds |= clock.seconds
    return experience


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
