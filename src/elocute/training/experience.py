"""One step's experience: sample groups, decode every answer once, judge it, gather what all ranks must agree on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from elocute.rollout.vllm import VllmSampler
from elocute.training.policy import Policy
from elocute.training.share import whole_weights


@dataclass
class Experience:
    """This rank's rollouts, and the rewards of all ranks.

    rollouts: this rank's, prompt by prompt [p·G]; rewards float64 and available bool [P, G], of all ranks;
    mine: slice of the P prompts that are this rank's; judged: this rank's outcomes. Where nothing judges, judged is
    None and there are no rewards (P = 0). off_policy_steps: updates of steps between the sampler's weights and now.
    drift: float64 [2], a server's distance from the model on this rank, see rollout/vllm.py.
    """

    rollouts: list[Rollout]
    answers: list[Answer]
    judged: Judged | None
    rewards: torch.Tensor
    available: torch.Tensor
    mine: slice
    seconds: dict[str, float] = field(default_factory=dict)
    off_policy_steps: int = 0
    drift: torch.Tensor | None = None


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
    policy: Policy,
    audio: EncodedAudio,
    examples: Sequence[Example],
    recipe: Recipe,
    step: int,
    accelerator: Accelerator,
    *,
    group_size: int,
    wanted: Callable[[Example], bool] = lambda example: True,
    served: VllmSampler | None = None,
) -> Experience:
    """Sample and decode, for those of this rank's `examples` (the step's, all ranks' together) that are wanted.

    served: what samples in place of this process, with the weights of now.
    """
    lm, mine = policy.lm, my_prompts(accelerator, len(examples))
    clock = _Clock()
    if served is not None:
        accelerator.wait_for_everyone()  # nobody still draws from the weights that it had
        served.follow(lm, step, accelerator.process_index)
        accelerator.wait_for_everyone()
        clock.lap("weights")
    places = [place for place in range(mine.start, mine.stop) if wanted(examples[place])]
    prompts = [lm.encode_prompt(examples[place], audio) for place in places]
    seeds = [seeds_of(recipe, step, place, group_size) for place in places]
    with whole_weights(policy):
        groups = (served or sample_groups)(lm, prompts, seeds, sampling_of(recipe)) if places else []
    rollouts = [rollout for row in groups for rollout in row]
    clock.lap("rollout")
    owners = [examples[place] for place in places for _ in range(group_size)]
    experience = decode(lm, owners, rollouts, mine, group_size, clock.seconds)
    return replace(experience, drift=served and served.drift)


def seeds_of(recipe: Recipe, step: int, place: int, group_size: int) -> list[int]:
    """Those of the answers to the prompt at `place` of a step."""
    return [seed_of(recipe.seed, step, place, number) for number in range(group_size)]


def decode(
    lm: SpeechLM, owners: Sequence[Example], rollouts: list[Rollout], mine: slice, group: int, seconds: dict[str, float]
) -> Experience:
    """Experience that nobody has judged: every rollout's text and sound, once. owners: the rollouts' rows."""
    clock = _Clock()
    answers = lm.answers(owners, [rollout.tokens.ids for rollout in rollouts])
    clock.lap("decode")
    nothing = torch.zeros(0, group, dtype=torch.float64)
    return Experience(rollouts, answers, None, nothing, nothing.bool(), mine, seconds | clock.seconds)


def judge(experience: Experience, mixer: RewardMixer) -> Experience:
    """The same, with what the rewards say of this rank's answers. No process waits for another here."""
    clock, group = _Clock(), experience.rewards.shape[1]
    answers = mixer.read(experience.answers)
    judged = mixer(answers, [index // group for index in range(len(answers))])
    clock.lap("reward")
    return replace(experience, answers=answers, judged=judged, seconds=experience.seconds | clock.seconds)


def agree(experience: Experience, mixer: RewardMixer, accelerator: Accelerator) -> Experience:
    """The same, with the rewards of all ranks. Raises RunError, on all of them, for a dead judge."""
    judged, group = experience.judged, experience.rewards.shape[1]
    silent = torch.tensor(list(judged.silent.values()), dtype=torch.float64, device=accelerator.device)
    silent = accelerator.reduce(silent, "sum").tolist()
    mixer.check_alive(judged, dict(zip(judged.silent, silent, strict=True)))
    local = torch.tensor([[v if v is not None else 0.0, v is not None] for v in judged.values], dtype=torch.float64)
    everyone = accelerator.gather(local.to(accelerator.device)).cpu()
    rewards, available = everyone[:, 0].view(-1, group), everyone[:, 1].view(-1, group).bool()
    return replace(experience, rewards=rewards, available=available)


class _Clock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
