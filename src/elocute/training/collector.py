"""Where the steps' experience comes from: sampled and judged step by step, or sampled one step ahead of the judges.

    rollout.off_policy_steps: 0      sample 1, judge 1, update 1, sample 2, judge 2, update 2 …
    rollout.off_policy_steps: 1      sample 1, sample 2, update 1, sample 3, update 2, sample 4 …
                         meanwhile   ········  judge 1 ┘ judge 2 ········┘ judge 3 ········┘

Ahead, the answers of step t + 1 are of the policy before update t (one-step off-policy, arXiv 2410.18252); the policy
gradient weighs them by π/π_sampler (objectives/policy_gradient.py). Only the rewards run beside the loop, in a thread;
what the processes say to each other stays on one thread, in one order.
"""

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from elocute.data.cache import EncodedAudio
from elocute.data.types import Example
from elocute.recipe.schema import Recipe
from elocute.rewards.combine import RewardMixer
from elocute.rollout import replay
from elocute.rollout.vllm import VllmSampler
from elocute.training.experience import Experience, agree, decode, judge, my_prompts, sample, seeds_of, step_examples
from elocute.training.policy import Policy


class Collector:
    """Called with a step (from 0), one after the other, it gives the step's experience."""

    def __init__(
        self,
        policy: Policy,
        audio: EncodedAudio,
        examples: Sequence[Example],
        mixer: RewardMixer,
        recipe: Recipe,
        accelerator: Accelerator,
        served: VllmSampler | None = None,
    ):
        self.policy, self.audio, self.examples, self.mixer = policy, audio, examples, mixer
        self.recipe, self.accelerator, self.served = recipe, accelerator, served
        self._ahead: Experience | None = None
        self._judging: Future[Experience] | None = None

    def __call__(self, step: int) -> Experience:
        if not self.recipe.rollout.off_policy_steps:
            return agree(judge(self._sample(step), self.mixer), self.mixer, self.accelerator)
        if self._ahead is None:
            self._ahead = self._sample(step)
        judging = self._judging or self._judge(self._ahead)
        self._ahead = None if step + 1 == self.recipe.steps else replace(self._sample(step + 1), off_policy_steps=1)
        began = time.perf_counter()
        judged = judging.result()
        seconds = judged.seconds | {"wait": time.perf_counter() - began}
        experience = agree(replace(judged, seconds=seconds), self.mixer, self.accelerator)
        self._judging = self._judge(self._ahead) if self._ahead else None
        return experience

    def state(self) -> dict[str, torch.Tensor]:
        """Of all ranks, the answers that were sampled ahead, for `restore`: the weights that said them are gone then.

        ids, logprob, entropy: [P·G, T] on the left of padding; length [P·G]; seconds [ranks]: what sampling took; where
        a server sampled, drift [ranks, 2].
        """
        if self._ahead is None:
            return {}
        rollouts, device = self._ahead.rollouts, self.accelerator.device
        rows = {
            "ids": [rollout.tokens.ids for rollout in rollouts],
            "logprob": [rollout.logprob for rollout in rollouts],
            "entropy": [rollout.entropy for rollout in rollouts],
        }
        padded = {name: pad_sequence(of, batch_first=True).to(device) for name, of in rows.items()}
        tensors = {name: self.accelerator.pad_across_processes(of, dim=1) for name, of in padded.items()}
        tensors["length"] = torch.tensor([len(rollout.tokens) for rollout in rollouts], device=device)
        tensors["seconds"] = torch.tensor([self._ahead.seconds["rollout"]], device=device)
        if self._ahead.drift is not None:
            tensors["drift"] = self._ahead.drift[None].to(device)
        return {name: self.accelerator.gather(tensor).cpu() for name, tensor in tensors.items()}

    def restore(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Go on at `step` with what `state` gave, by however many processes."""
        if not state:
            return
        lm, examples, group = self.policy.lm, self._examples(step), self.recipe.rollout.group_size
        mine = my_prompts(self.accelerator, len(examples))
        rollouts = []
        for place in range(mine.start, mine.stop):
            prompt = lm.encode_prompt(examples[place], self.audio)
            for number, seed in enumerate(seeds_of(self.recipe, step, place, group)):
                row = place * group + number
                cells = slice(int(state["length"][row]))
                said = (state[name][row, cells] for name in ("ids", "logprob", "entropy"))
                rollouts.append(replay(lm, prompt, *said, seed))
        owners = [examples[place] for place in range(mine.start, mine.stop) for _ in range(group)]
        seconds = {"rollout": float(state["seconds"][0])}
        experience = decode(lm, owners, rollouts, mine, group, seconds)
        drift = state.get("drift")
        if drift is not None:  # each rank's is a sum of its own, and all ranks' are added up again
            drift = drift[self.accelerator.process_index :: self.accelerator.num_processes].sum(0)
        self._ahead, self._judging = replace(experience, off_policy_steps=1, drift=drift), None

    def settle(self) -> None:
        """Wait for the rewards that are at work, so that what they hold open may be closed."""
        if self._judging is not None:
            concurrent.futures.wait([self._judging])

    def _examples(self, step: int) -> list[Example]:
        return [self.examples[index] for index in step_examples(self.examples, self.recipe, step)]

    def _sample(self, step: int) -> Experience:
        args = (self.policy, self.audio, self._examples(step), self.recipe, step, self.accelerator)
        return sample(*args, group_size=self.recipe.rollout.group_size, served=self.served)

    def _judge(self, experience: Experience) -> "Future[Experience]":
        return _in_thread(lambda: judge(experience, self.mixer))


def _in_thread(work: Callable[[], Experience]) -> "Future[Experience]":
    """What `work` gives or raises. Its thread ends with the process: a second Ctrl-C does not wait for a judge."""
    future: Future[Experience] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    Thread(target=run, daemon=True, name="judges").start()
    return future
