"""One optimiser step's gradient of a preference loss: mean over pairs, plus a supervised loss on the chosen answers.

Log-probs are those of temperature 1, whatever the temperature that answers were sampled with: DPO's reward is the
model's own log-ratio to the reference. A pair's two answers stand in one pass (passes.py), where their
prompt is run once. The denominators are counts over all pairs of all ranks, so passes, padding, the order of pairs and
ranks do not change the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from elocute.models.batch import Batch, make_batch, pad_tokens
from elocute.models.layout import Tokens
from elocute.objectives.dpo import PairLosses, answer_logprobs, modality_sums, preference_losses
from elocute.objectives.tokens import modality_weights, scope_mask, token_coefficients
from elocute.recipe.schema import Dpo, Recipe
from elocute.training.pairs import Pair
from elocute.training.passes import Limits, Piece, cut
from elocute.training.policy import Policy
from elocute.training.share import backward, most, synchronise
from elocute.training.update import Totals

Score = Callable[[Batch], torch.Tensor]
"""Log-probs [N] of a batch's selected tokens, under the policy or the reference."""


class Answers:
    """The answers of n pairs as rows [2n, T]: chosen, rejected, chosen, …"""

    def __init__(self, pairs: Sequence[Pair], device):
        self.prompts = [pair.prompt for pair in pairs for _ in range(2)]
        self.answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
        self.tokens = pad_tokens(self.answers)
        self.device = device

    def scope(self, scope: str) -> torch.Tensor:
        return scope_mask(self.tokens.text, self.tokens.action, scope)

    def logprobs(self, score: Score, selected: torch.Tensor) -> torch.Tensor:
        """Log-probs of the selected tokens, 0 elsewhere: float64 [2n, T]."""
        batch = make_batch(self.prompts, self.answers, selected, self.device)
        logp = torch.zeros(selected.shape, dtype=torch.float64, device=self.device)
        return logp.index_put((batch.rows, batch.columns), score(batch).double())

    def sums(self, logp: torch.Tensor) -> torch.Tensor:
        """Log-probs [2n, T] summed by modality: [n, chosen and rejected, text and speech]."""
        return modality_sums(logp, self.tokens.text.to(self.device)).view(-1, 2, 2)


@torch.no_grad()
def score_pairs(
    recipe: Recipe,
    policy: Policy,
    score: Score,
    pairs: Sequence[Pair],
    scope: str,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """The log-probs of all answers summed by modality, over the tokens in scope: float64 [n, 2, 2] on the CPU.

    policy: whose passes `score` makes, or whose reference's.
    """
    found, done = torch.zeros(len(pairs), 2, 2, dtype=torch.float64), 0
    for piece in pieces(recipe, policy, pairs, device):
        answers = Answers([pairs[place] for place in piece], device)
        found[piece] = answers.sums(answers.logprobs(score, answers.scope(scope))).cpu()
        done += len(piece)
        progress(done)
    return found


def pieces(recipe: Recipe, policy: Policy, pairs: Sequence[Pair], device: torch.device) -> list[Piece]:
    """Places of the pairs that are run together, one pair at least."""
    return cut(
        [pair.prompt for pair in pairs],
        [max(len(pair.chosen), len(pair.rejected)) for pair in pairs],
        Limits.of(device.type, recipe.optim.micro_batch),
        share_prompts=policy.share_prompts,
        answers=2,
    )


def compare(spec: Dpo, pairs: Sequence[Pair], sums: torch.Tensor, answers: Answers) -> PairLosses:
    """The losses of n pairs, whose `reference` is known, from the policy's log-probs [n, 2, 2]."""
    tokens = answers.scope(spec.scope).sum(-1).view(-1, 2).to(sums.device)
    reference = torch.stack([pair.reference for pair in pairs]).to(sums.device)
    ours, theirs = (
        answer_logprobs(values, tokens, spec.weights, length_normalised=spec.by_length) for values in (sums, reference)
    )
    return preference_losses(
        *ours.unbind(-1),
        *theirs.unbind(-1),
        beta=spec.beta,
        loss=spec.loss,
        label_smoothing=spec.label_smoothing,
        weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float64, device=sums.device),
    )


def accuracy(margin: torch.Tensor) -> torch.Tensor:
    """1 where the chosen answer has the higher reward, 0 where the rejected one has, ½ where they are equal: [N]."""
    return (margin > 0).double() + 0.5 * (margin == 0)


class PreferenceUpdate:
    """Computes gradients for one optimiser step. `policy` may be wrapped by accelerate."""

    def __init__(self, recipe: Recipe, policy, accelerator: Accelerator):
        self.recipe, self.spec = recipe, recipe.objective
        self.policy, self.accelerator = policy, accelerator
        self.device = accelerator.device

    def __call__(self, pairs: Sequence[Pair], spare: tuple[Any, Tokens]) -> Totals:
        """Accumulate the gradient of the whole objective into the parameters. pairs: this rank's, maybe none.

        spare: a prompt and an answer, which is run, and counts nothing, where others have more to do than this rank.
        """
        totals = self._totals()
        counted, sft_tokens = self._counts(pairs)
        jobs = pieces(self.recipe, self.accelerator.unwrap_model(self.policy), pairs, self.device)
        jobs += [[]] * (max(1, most(self.accelerator, len(jobs))) - len(jobs))
        for index, piece in enumerate(jobs):
            some = [pairs[place] for place in piece]
            with synchronise(self.accelerator, self.policy, index + 1 == len(jobs)):
                loss = self._loss(some, counted, sft_tokens, totals) if some else self._nothing(*spare)
                # DDP averages gradients over ranks; the loss already divides by the global counts.
                backward(self.accelerator, self.policy, loss)
        return totals

    def _nothing(self, prompt, answer: Tokens) -> torch.Tensor:
        """0, by a pass through the network without a selected cell."""
        batch = make_batch([prompt], [answer], torch.zeros(1, len(answer), dtype=torch.bool), self.device)
        return self.policy(batch)[0].sum()

    def _loss(self, pairs: Sequence[Pair], counted: int, sft_tokens: int, totals: Totals) -> torch.Tensor:
        answers = Answers(pairs, self.device)
        learned = self._learned(answers)
        logp = answers.logprobs(lambda batch: self.policy(batch)[0], answers.scope(self.spec.scope) | learned)
        sums = answers.sums(logp)
        compared = compare(self.spec, pairs, sums, answers)
        loss = compared.loss.sum() / counted
        totals.add("loss/dpo", loss.detach())
        self._measure(compared, sums.detach(), totals)
        if self.spec.sft.weight:
            supervised = self._supervised(answers, logp, learned, (counted, sft_tokens), totals)
            totals.add("loss/sft", supervised.detach())
            loss = loss + supervised
        return loss

    def _supervised(self, answers: Answers, logp, learned, counts: tuple[int, int], totals: Totals) -> torch.Tensor:
        spec = self.spec.sft
        rows, tokens = counts
        share = token_coefficients(learned, normaliser=spec.normaliser, rows_total=rows, tokens_total=tokens)
        weights = spec.weight * share * modality_weights(answers.tokens.text, spec.text_weight, spec.speech_weight)
        for modality in ("text", "speech"):
            mask = learned & scope_mask(answers.tokens.text, answers.tokens.action, modality)
            totals.add(f"nll/{modality}", -(logp.detach() * mask.to(self.device)).sum())
            totals.add(f"nll/{modality}_tokens", mask.sum())
        return -(weights.to(self.device) * logp).sum()

    def _learned(self, answers: Answers) -> torch.Tensor:
        """Tokens of the supervised loss: the chosen answers' in its scope, bool [2n, T]."""
        mask = answers.scope(self.spec.sft.scope).clone()
        mask[1::2] = False
        return mask if self.spec.sft.weight else torch.zeros_like(mask)

    def _measure(self, compared: PairLosses, sums: torch.Tensor, totals: Totals) -> None:
        totals.add("dpo/accuracy", accuracy(compared.margin).sum())
        totals.add("dpo/margin", compared.margin.sum())
        totals.add("dpo/chosen_reward", compared.chosen_reward.sum())
        totals.add("dpo/rejected_reward", compared.rejected_reward.sum())
        for modality, column in self._modalities().items():
            totals.add(f"logp/chosen_{modality}", sums[:, 0, column].sum())
            totals.add(f"logp/rejected_{modality}", sums[:, 1, column].sum())

    def _modalities(self) -> dict[str, int]:
        """Those in scope, and where their sums stand."""
        places = {"text": 0, "speech": 1}
        return places if self.spec.scope == "all" else {self.spec.scope: places[self.spec.scope]}

    def _totals(self) -> Totals:
        """All names at 0: a rank without pairs must name what the others name."""
        totals = Totals()
        names = ["loss/dpo", "dpo/accuracy", "dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward"]
        names += [f"logp/{side}_{modality}" for side in ("chosen", "rejected") for modality in self._modalities()]
        if self.spec.sft.weight:
            names += ["loss/sft", "nll/text", "nll/text_tokens", "nll/speech", "nll/speech_tokens"]
        for name in names:
            totals.add(name, 0.0)
        return totals

    def _counts(self, pairs: Sequence[Pair]) -> tuple[int, int]:
        """Pairs, and tokens of the supervised loss, over all ranks."""
        scope = self.spec.sft.scope
        tokens = sum(int(scope_mask(pair.chosen.text, pair.chosen.action, scope).sum()) for pair in pairs)
        local = torch.tensor([len(pairs), tokens], device=self.device)
        counted, tokens = self.accelerator.reduce(local, "sum").tolist()
        return counted, tokens
