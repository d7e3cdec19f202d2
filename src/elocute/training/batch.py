"""Rows of prompt + answer as padded batches, and where in them the answer's tokens are predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elocute.models.layout import Tokens


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. Position t predicts token t+1; `rows`, `columns` say where each selected token is predicted.

    ids, mask: int64 [B, T]; rows, columns, targets: int64 [N], row by row, left to right.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


def pad_tokens(answers: Sequence[Tokens]) -> Tokens:
    """Answers as one Tokens of [B, T]; padding is a forced speech cell, so that no scope ever selects it."""

    def pad(rows, value):
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

    return Tokens(
        pad((answer.ids for answer in answers), 0),
        pad((answer.text for answer in answers), False),
        pad((answer.action for answer in answers), False),
    )


def make_batch(prompts: Sequence[torch.Tensor], answers: Sequence[Tokens], selected: torch.Tensor, device) -> Batch:
    """Join prompts [P] and answers [T]; selected bool [B, ≥T] marks the answer tokens whose log-prob is wanted."""
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    rows, columns, targets = [], [], []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.cat([prompt, answer.ids])
        mask[row, :end] = 1
        where = selected[row, : len(answer)].nonzero()[:, 0]
        rows.append(torch.full_like(where, row))
        columns.append(len(prompt) - 1 + where)
        targets.append(answer.ids[where])
    parts = (ids, mask, torch.cat(rows), torch.cat(columns), torch.cat(targets))
    return Batch(*(part.to(device) for part in parts))
