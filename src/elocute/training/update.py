"""One optimiser step's gradient: (1−λ)·SFT + λ·policy gradient + β·KL, summed over micro-batches and ranks.

Each component is Σ coefficient · weight · loss over all selected tokens of all rows; the coefficients hold the
component's own global normaliser, so micro-batches, padding and ranks do not change the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from elocute.models.batch import Batch, make_batch, pad_tokens
from elocute.models.layout import Tokens
from elocute.objectives.policy_gradient import policy_gradient, truncated_importance
from elocute.objectives.tokens import modality_weights, scope_mask, token_coefficients
from elocute.recipe.schema import Recipe
from elocute.training.passes import Limits, Piece, cut
from elocute.training.policy import Reference, kl_per_token
from elocute.training.share import backward, most, settle, synchronise, whole_weights


@dataclass
class Rows:
    """Answers [B] and what a component needs of them; `counted` of them stand in a mean over rows.

    advantage [B]: the answers'; credit [B, T]: what is added to it token by token (credit.py), None: nothing.
    sampler_logp, old_logp: [B, T].
    """

    prompts: list[torch.Tensor]
    answers: list[Tokens]
    padded: Tokens
    counted: int
    advantage: torch.Tensor | None = None
    credit: torch.Tensor | None = None
    sampler_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None

    @classmethod
    def of(cls, prompts: Sequence[torch.Tensor], answers: Sequence[Tokens]) -> "Rows":
        return cls(list(prompts), list(answers), pad_tokens(answers), len(answers))

    def batch(self, piece: Piece, selected: torch.Tensor, device) -> Batch:
        """Some of the rows, in this order, and of their cells those that `selected` [rows, T] marks."""
        prompts, answers = ([values[row] for row in piece] for values in (self.prompts, self.answers))
        return make_batch(prompts, answers, selected, device)

    def leave_out(self, available: torch.Tensor) -> None:
        """Rows [B] that no judge could judge contribute nothing: no token, no share of a denominator or metric."""
        self.padded = replace(self.padded, action=self.padded.action & available[:, None])
        self.counted = int(available.sum())


class Totals:
    """Sums over tokens, gathered over ranks at the end: what the metrics are made of."""

    def __init__(self):
        self.values: dict[str, float] = {}

    def add(self, name: str, value) -> None:
        self.values[name] = self.values.get(name, 0.0) + float(value)

    def gathered(self, accelerator: Accelerator) -> dict[str, float]:
        names = sorted(self.values)
        local = torch.tensor([self.values[name] for name in names], dtype=torch.float64, device=accelerator.device)
        return dict(zip(names, accelerator.reduce(local, "sum").tolist(), strict=True))


class Update:
    """Computes gradients for one optimiser step. `policy` may be wrapped by accelerate; `reference` is not."""

    def __init__(self, recipe: Recipe, policy, reference: Reference | None, accelerator: Accelerator):
        self.recipe, self.policy, self.reference, self.accelerator = recipe, policy, reference, accelerator
        self.device = accelerator.device

    def __call__(self, rollouts: Rows | None, targets: Rows | None, lam: float) -> Totals:
        """Accumulate the gradient of the whole objective into the parameters."""
        totals = Totals()
        jobs = []
        if rollouts is not None and (lam > 0 or self.reference is not None):
            jobs += self._jobs(rollouts, self._policy_coefficients(rollouts, lam), self._policy_loss)
        if targets is not None and lam < 1:
            jobs += self._jobs(targets, self._sft_coefficients(targets, lam), self._sft_loss)
        for index, (loss_of, rows, coefficients, piece) in enumerate(jobs):
            last = index + 1 == len(jobs)
            with synchronise(self.accelerator, self.policy, last):
                loss = loss_of(rows, coefficients, piece, totals)
                backward(self.accelerator, self.policy, loss)  # the coefficients divide by the global counts
        if self.reference is not None:
            settle(self.reference.policy)
        return totals

    @torch.no_grad()
    def score_before(self, rollouts: Rows) -> None:
        """Log-probs of the rollouts under the policy before the first update (needed with several updates)."""
        selected = self._scope(rollouts)
        rollouts.old_logp = torch.zeros(selected.shape)
        with whole_weights(self.policy):
            for piece in self._pieces(rollouts):
                batch = rollouts.batch(piece, selected[piece], self.device)
                logp, _ = self.policy(batch, self.recipe.rollout.temperature)
                rollouts.old_logp[torch.tensor(piece)[batch.rows.cpu()], batch.columns.cpu()] = logp.float().cpu()

    # coefficients

    def _scope(self, rows: Rows) -> torch.Tensor:
        return scope_mask(rows.padded.text, rows.padded.action, self.recipe.objective.policy_gradient.scope)

    def _policy_coefficients(self, rows: Rows, lam: float) -> dict[str, torch.Tensor]:
        objective = self.recipe.objective
        spec = objective.policy_gradient
        scope = self._scope(rows)
        weights = modality_weights(rows.padded.text, spec.text_weight, spec.speech_weight)
        parts = {"pg": lam * weights * self._coefficients(rows, scope, spec.normaliser)}
        for modality, beta in (("text", objective.kl.text), ("speech", objective.kl.speech)):
            if beta:
                mask = scope_mask(rows.padded.text, rows.padded.action, modality)
                parts[f"kl_{modality}"] = beta * self._coefficients(rows, mask, "sequence")
        return parts

    def _sft_coefficients(self, rows: Rows, lam: float) -> dict[str, torch.Tensor]:
        spec = self.recipe.objective.sft
        mask = scope_mask(rows.padded.text, rows.padded.action, spec.scope)
        weights = modality_weights(rows.padded.text, spec.text_weight, spec.speech_weight)
        return {"sft": (1 - lam) * weights * self._coefficients(rows, mask, spec.normaliser)}

    def _coefficients(self, rows: Rows, selected: torch.Tensor, normaliser: str) -> torch.Tensor:
        local = torch.tensor([rows.counted, int(selected.sum())], device=self.device)
        counted, tokens = self.accelerator.reduce(local, "sum").tolist()
        return token_coefficients(selected, normaliser=normaliser, rows_total=counted, tokens_total=tokens)

    # losses of one micro-batch

    def _policy_loss(self, rows: Rows, coefficients, piece: Piece, totals: Totals) -> torch.Tensor:
        parts = {name: value[piece] for name, value in coefficients.items()}
        selected = torch.stack([value != 0 for value in parts.values()]).any(0)
        batch = rows.batch(piece, selected, self.device)
        logp, kl = kl_per_token(self.recipe, self.policy, batch, self.reference)

        def pick(values: torch.Tensor) -> torch.Tensor:
            return values[selected].to(self.device)

        old = logp.detach() if rows.old_logp is None else pick(rows.old_logp[piece])
        sampler = pick(rows.sampler_logp[piece])
        cap = self.recipe.rollout.importance_cap
        importance = truncated_importance(old, sampler, cap)
        clip = self.recipe.objective.policy_gradient.clip
        advantage = rows.advantage[piece][:, None].expand(selected.shape)
        if rows.credit is not None:
            advantage = advantage + rows.credit[piece]
            totals.add("pg/credited", ((rows.credit[piece] != 0) & (parts["pg"] != 0)).sum())
        per_token, clipped = policy_gradient(
            logp, old, pick(advantage), clip=None if clip is None else (clip, clip), importance=importance
        )
        weight = pick(parts["pg"])
        loss = (weight * per_token).sum()
        totals.add("loss/pg", loss.detach())
        totals.add("pg/clipped", (clipped & (weight != 0)).sum())
        totals.add("pg/tokens", (weight != 0).sum())
        totals.add("sampler/mismatch", ((old - sampler).abs() * (weight != 0)).sum())
        ratio = torch.exp((old - sampler)[weight != 0])
        totals.add("sampler/ratio", ratio.sum())
        totals.add("sampler/truncated", (ratio > cap).sum())
        for modality in ("text", "speech"):
            if f"kl_{modality}" in parts:
                weight = pick(parts[f"kl_{modality}"])
                part = (weight * kl).sum()
                loss = loss + part
                totals.add(f"loss/kl_{modality}", part.detach())
                totals.add(f"kl/{modality}", (kl.detach() * (weight != 0)).sum())
                totals.add(f"kl/{modality}_tokens", (weight != 0).sum())
        return loss

    def _sft_loss(self, rows: Rows, coefficients, piece: Piece, totals: Totals) -> torch.Tensor:
        weight = coefficients["sft"][piece]
        selected = weight != 0
        logp, _ = self.policy(rows.batch(piece, selected, self.device))
        loss = (weight[selected].to(self.device) * -logp).sum()
        totals.add("loss/sft", loss.detach())
        text = rows.padded.text[piece][selected].to(self.device)
        for modality, mask in (("text", text), ("speech", ~text)):
            totals.add(f"nll/{modality}", -(logp.detach() * mask).sum())
            totals.add(f"nll/{modality}_tokens", mask.sum())
        return loss

    def _pieces(self, rows: Rows) -> list[Piece]:
        limits = Limits.of(self.device.type, self.recipe.optim.micro_batch)
        share = self.accelerator.unwrap_model(self.policy).share_prompts
        return cut(rows.prompts, [len(answer) for answer in rows.answers], limits, share_prompts=share)

    def _jobs(self, rows: Rows, coefficients: dict[str, torch.Tensor], loss_of) -> list[tuple]:
        """As many micro-batches as any process has: those that are too many are of one row that counts nothing."""
        pieces = self._pieces(rows)
        jobs = [(loss_of, rows, coefficients, piece) for piece in pieces]
        nothing = {name: torch.zeros_like(value) for name, value in coefficients.items()}
        spare = (loss_of, rows, nothing, pieces[0][:1])
        return jobs + [spare] * (most(self.accelerator, len(jobs)) - len(jobs))
