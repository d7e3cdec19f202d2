"""Prompts and answers as padded batches, and which of the answers' tokens are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elocute.models.layout import Tokens


@dataclass(frozen=True)
class Batch:
    """Answers to prompts; answers of one group name the same prompt, which is then run once.

    prompt_ids, prompt_mask: int64 [P, S], left-padded. answer_ids, answer_mask: int64 [B, T], right-padded; owner int64
    [B] is each answer's prompt. rows, columns, targets: int64 [N], the selected answer tokens, row by row.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    owner: torch.Tensor
    answer_ids: torch.Tensor
    answer_mask: torch.Tensor
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
    """Join prompts [B] and answers [B]; selected bool [B, ≥T] marks the answer tokens whose log-prob is wanted."""
    places: dict[int, int] = {}
    owner = [places.setdefault(id(prompt), len(places)) for prompt in prompts]
    unique = list({id(prompt): prompt for prompt in prompts}.values())
    pad = torch.nn.utils.rnn.pad_sequence
    answer_ids = pad([answer.ids for answer in answers], True)
    answer_mask = pad([torch.ones_like(answer.ids) for answer in answers], True)
    rows, columns = (selected[:, : answer_ids.shape[1]] & answer_mask.bool()).nonzero(as_tuple=True)
    parts = (
        pad(unique, True, padding_side="left"),
        pad([torch.ones_like(prompt) for prompt in unique], True, padding_side="left"),
        torch.tensor(owner),
        answer_ids,
        answer_mask,
        rows,
        columns,
        answer_ids[rows, columns],
    )
    return Batch(*(part.to(device) for part in parts))
