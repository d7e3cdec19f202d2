"""Prompts and answers as padded batches, and what a model says of the answers' cells.

An answer is a run of cells, step by step, and within a step stream by stream (layout.py). What a prompt is, a tensor of
ids or more, is its model's matter.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, is_dataclass
from typing import Any

import torch

from elocute.models.layout import Tokens


@dataclass(frozen=True)
class Batch:
    """Answers to prompts; answers of one group name the same prompt, which is then run once.

    prompts: the P different ones, as `encode_prompt` gave them. answer_ids, answer_mask: int64 [B, T], right-padded;
    owner int64 [B] is each answer's prompt. rows, columns, targets: int64 [N], the selected cells, row by row.
    """

    prompts: Sequence[Any]
    owner: torch.Tensor
    answer_ids: torch.Tensor
    answer_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class States:
    """What predicts some of a batch's selected cells: hidden [n, D], by `head`.

    where: int64 [n], which of the N selected cells they are; None: all of them, in order.
    """

    hidden: torch.Tensor
    head: torch.nn.Linear
    where: torch.Tensor | None = None


def pad_tokens(answers: Sequence[Tokens]) -> Tokens:
    """Answers as one Tokens of [B, T]; padding is a forced speech cell, so that no scope ever selects it."""

    def pad(rows, value):
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

    return Tokens(
        pad((answer.ids for answer in answers), 0),
        pad((answer.text for answer in answers), False),
        pad((answer.action for answer in answers), False),
    )


def make_batch(prompts: Sequence[Any], answers: Sequence[Tokens], selected: torch.Tensor, device) -> Batch:
    """Join prompts [B] and answers [B]; selected bool [B, ≥T] marks the cells whose log-prob is wanted."""
    places: dict[int, int] = {}
    owner = [places.setdefault(id(prompt), len(places)) for prompt in prompts]
    unique = list({id(prompt): prompt for prompt in prompts}.values())
    pad = torch.nn.utils.rnn.pad_sequence
    answer_ids = pad([answer.ids for answer in answers], True)
    answer_mask = pad([torch.ones_like(answer.ids) for answer in answers], True)
    rows, columns = (selected[:, : answer_ids.shape[1]] & answer_mask.bool()).nonzero(as_tuple=True)
    parts = (torch.tensor(owner), answer_ids, answer_mask, rows, columns, answer_ids[rows, columns])
    return Batch(unique, *(part.to(device) for part in parts))


def tensors_of(prompt: Any) -> list[torch.Tensor]:
    """All that a prompt is made of: the tensor itself, or a dataclass's, those in its tuples too."""
    parts = astuple(prompt) if is_dataclass(prompt) else prompt
    if isinstance(parts, tuple):
        return [tensor for part in parts for tensor in tensors_of(part)]
    return [] if parts is None else [parts]
