"""Preference optimisation's part in a run: a step's pairs, their gradient, and which step is best on held-out pairs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from elocute.data.cache import EncodedAudio
from elocute.data.rows import check_rows
from elocute.data.types import Example
from elocute.models.layout import Tokens
from elocute.progress import Progress
from elocute.recipe.schema import Dpo, Recipe
from elocute.rollout import check_room
from elocute.rollout.vllm import VllmSampler
from elocute.training.experience import Experience, my_prompts, sample
from elocute.training.metrics import preference_metrics
from elocute.training.pairs import Pair, PairMaker
from elocute.training.policy import Policy, Reference
from elocute.training.preference_update import Answers, PreferenceUpdate, accuracy, compare, pieces, score_pairs
from elocute.training.reference_cache import cached_sums
from elocute.training.share import whole_weights

LOGPS = [f"dev/logp/{side}_{modality}" for side in ("chosen", "rejected") for modality in ("text", "speech")]


class Preference:
    """best: {"step", "accuracy", "margin"} of the best measured step, None before the first."""

    def __init__(
        self,
        recipe: Recipe,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        policy: Policy,
        audio: EncodedAudio,
        accelerator: Accelerator,
    ):
        """Encodes the rows: InputError, a line each, for those that lack what the mode needs. Call `prepare` next."""
        self.recipe, self.spec, self.accelerator = recipe, recipe.objective, accelerator
        self.policy, self.audio = policy, audio
        self.examples = examples
        self.maker = PairMaker(self.spec, policy.lm, audio)
        check_rows(examples, self.maker.encode)
        check_room(policy.lm, self.maker.lengths, recipe.rollout.max_new_tokens)
        self.held_out: list[Pair] = []
        rows = PairMaker(Dpo(kind="dpo", scope=self.spec.scope), policy.lm, audio)
        check_rows(held_out, lambda example: self.held_out.append(rows.of_row(example)))
        self.measured = len(self.held_out)
        self.best: dict | None = None

    def prepare(self, reference: Reference | None, progress: Progress) -> None:
        """Score with the reference what is known before the first step; while every process has whole weights.

        reference: None where log-probs are kept on disk.
        """
        self.reference = reference
        if reference is None:
            pairs = [self.maker.of_row(example) for example in self.examples]
            known = self._cached(pairs, "reference", progress)
            self.maker.reference = {example.id: sums for example, sums in zip(self.examples, known, strict=True)}
            known = self._cached(self.held_out, "reference dev", progress)
            self.held_out = [p._replace(reference=sums) for p, sums in zip(self.held_out, known, strict=True)]
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        self.held_out = self._referenced(self.held_out[mine])

    def share(self, wrapped) -> None:
        """wrapped: the policy as the processes share it from now on."""
        self.update = PreferenceUpdate(self.recipe, wrapped, self.accelerator)

    # a step

    def experience(
        self, examples: Sequence[Example], step: int, served: VllmSampler | None = None
    ) -> Experience | None:
        """The fresh samples that the step's pairs need where nobody judges them, if any."""
        if not self.spec.samples:
            return None
        return sample(
            self.policy, self.audio, examples, self.recipe, step, self.accelerator,
            group_size=1, wanted=self.maker.samples, served=served,
        )  # fmt: skip

    def pairs(
        self, examples: Sequence[Example], experience: Experience | None
    ) -> tuple[list[Pair], Counter[str], tuple[Any, Tokens]]:
        """This rank's pairs of the step, with what the reference says of them, the counts of PairMaker.of_step, and
        some prompt with its answer."""
        mine = examples[my_prompts(self.accelerator, len(examples))]
        pairs, counts = self.maker.of_step(mine, experience)
        if experience is not None and experience.rollouts:
            spare = experience.rollouts[0].prompt, experience.rollouts[0].tokens
        else:
            spare = self.policy.lm.encode_prompt(mine[0], self.audio), self.maker.chosen[mine[0].id]
        return self._referenced(pairs), counts, spare

    def gradient(self, pairs: Sequence[Pair], counts: Counter[str], spare: tuple[Any, Tokens]) -> dict:
        """Accumulate the gradient into the parameters; returns what to log, of all ranks."""
        totals = self.update(pairs, spare)
        for name, count in counts.items():
            totals.add(f"pairs/{name}", count)
        return preference_metrics(totals.gathered(self.accelerator))

    # held-out pairs

    @torch.no_grad()
    def measure(self, step: int) -> dict:
        """Reward accuracy and mean margin on the held-out pairs; `step` may become the best so far, step 0 may not.

        And the answers' mean log-probs by modality, out of scope too: what a loss on the text does to the speech.
        """
        with whole_weights(self.policy):
            sums = self._score(self.held_out, lambda batch: self.policy(batch)[0], "all")
        totals = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        totals[2:] = sums.sum(0).flatten()
        for piece in pieces(self.recipe, self.policy, self.held_out, self.accelerator.device):
            some = [self.held_out[place] for place in piece]
            losses = compare(self.spec, some, sums[piece], Answers(some, "cpu"))
            totals[:2] += torch.stack([accuracy(losses.margin).sum(), losses.margin.sum()]).to(totals.device)
        right, margin, *logps = (self.accelerator.reduce(totals, "sum") / self.measured).tolist()
        if step > 0:
            self.note(step, right, margin)
        best = self.best and self.best["step"]
        return {"dev/accuracy": right, "dev/margin": margin, "dev/best_step": best} | dict(
            zip(LOGPS, logps, strict=True)
        )

    def note(self, step: int, right: float, margin: float) -> None:
        """Keep the best step: of the highest accuracy, then of the highest margin, then the earliest."""
        if self.best is None or (right, margin) > (self.best["accuracy"], self.best["margin"]):
            self.best = {"step": step, "accuracy": right, "margin": margin}

    # the reference

    def _referenced(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Pairs with the reference's log-probs; those that came from the cache have them already."""
        if self.reference is None:
            return list(pairs)
        with whole_weights(self.reference.policy):
            sums = self._score(pairs, lambda batch: self.reference.logprobs(batch, 1.0), self.spec.scope)
        return [pair._replace(reference=known) for pair, known in zip(pairs, sums, strict=True)]

    def _score(self, pairs: Sequence[Pair], score, scope: str) -> torch.Tensor:
        return score_pairs(self.recipe, self.policy, score, pairs, scope, self.accelerator.device)

    def _cached(self, pairs: list[Pair], name: str, progress: Progress) -> torch.Tensor:
        share = -(-len(pairs) // self.accelerator.num_processes)
        return cached_sums(
            self.recipe, self.policy, pairs, self.accelerator, lambda done: progress(name, done, share, {})
        )
