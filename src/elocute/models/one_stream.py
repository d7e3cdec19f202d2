"""Models of one stream: a causal LM whose every token is a cell. How they are scored and how they are decoded."""

from collections.abc import Sequence

import torch

from elocute.models.batch import Batch, States
from elocute.models.growing_cache import give_room


def states(lm, batch: Batch, *, share_prompts: bool) -> list[States]:
    """The hidden states that predict a batch's selected cells. Gradients flow through the prompts too.

    share_prompts: the prompt of a group is run once, its keys and values shared.
    """
    _, hidden = run(lm, batch, share_prompts=share_prompts)
    return [States(hidden[batch.rows, batch.columns], lm.head())]


def run(lm, batch: Batch, *, share_prompts: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of each answer's prompt [B, S, D], padded on the left, and before each of the answers' T inputs
    [B, T, D]: `answer_ids` [B, T] or, as frames, [B, T, cells]."""
    return (_shared if share_prompts else _joined)(lm, batch)


def _shared(lm, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = lm.prompt_inputs(batch.prompts, batch.answer_ids.device)
    prompt_mask = inputs["attention_mask"]
    prompt, cache = lm.hidden(**inputs, position_ids=positions(prompt_mask), use_cache=True)
    first = prompt[batch.owner, -1:]
    if batch.answer_ids.shape[1] == 1:
        return prompt[batch.owner], first
    cache.batch_select_indices(batch.owner)
    mask = torch.cat([prompt_mask[batch.owner], batch.answer_mask[:, :-1]], 1)
    rest, _ = lm.hidden(
        input_ids=batch.answer_ids[:, :-1],
        attention_mask=mask,
        position_ids=positions(mask)[:, prompt_mask.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    return prompt[batch.owner], torch.cat([first, rest], 1)


def _joined(lm, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in one pass, each answer behind its own copy of the prompt."""
    inputs = lm.prompt_inputs(batch.prompts, batch.answer_ids.device)
    mask = torch.cat([inputs["attention_mask"][batch.owner], batch.answer_mask], 1)
    [(name, prompt)] = [(name, tensor) for name, tensor in inputs.items() if name != "attention_mask"]
    answer = batch.answer_ids if name == "input_ids" else lm.embed(batch.answer_ids)
    whole = {name: torch.cat([prompt[batch.owner], answer], 1), "attention_mask": mask}
    hidden, _ = lm.hidden(**whole, position_ids=positions(mask), use_cache=False)
    return hidden[:, : prompt.shape[1]], hidden[:, prompt.shape[1] - 1 : -1]


class Decoder:
    """Answers that grow: each prompt is prefilled once, every answer of its group gets a copy of the cache.

    rows: of the batch's answers, those that it grows. hidden, heads: what predicts the next cell of each stream, here
    of the one there is: [[rows, D]]. Where a cell depends on those before it in its step, `hidden` ends with the first
    that does, and `deeper` gives the others (models/frames.py). prompt: the prompts' states [P, S, D].
    """

    def __init__(self, lm, prompts: Sequence[torch.Tensor], group_size: int):
        self.lm, self.heads = lm, [lm.head()]
        self.rows = range(len(prompts) * group_size)
        inputs = lm.prompt_inputs(prompts, lm.head().weight.device)
        self.mask = inputs["attention_mask"]
        places = positions(self.mask)
        self.prompt, self.cache = lm.hidden(**inputs, position_ids=places, use_cache=True)
        self.position = places[:, -1].repeat_interleave(group_size)
        self.hidden = [self.prompt[:, -1].repeat_interleave(group_size, 0)]
        self._share(group_size)

    def _share(self, group_size: int) -> None:
        """Give every answer what was read of its prompt: mask and cache are the prompts', become the answers'."""
        self.cache.batch_repeat_interleave(group_size)
        give_room(self.cache)
        self.mask = self.mask.repeat_interleave(group_size, 0)

    def step(self, ids: torch.Tensor) -> None:
        """Take the rows' next cells, int64 [rows, 1]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        self.position = self.position + 1
        hidden, _ = self.lm.hidden(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = [hidden[:, -1]]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def padded(prompts: Sequence[torch.Tensor], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [P] or [P, cells] on the right of zeros, and where they stand: int64 [prompts, longest]."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(prompts), True, padding_side="left")
    mask = pad([torch.ones(len(prompt), dtype=torch.long) for prompt in prompts], True, padding_side="left")
    return ids.to(device), mask.to(device)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Of a mask's tokens, counted from each row's first: int64 [rows, T]."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def right_padded(rows: Sequence[Sequence[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids on the left of zeros, and where they stand: int64 [rows, longest] both."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(row, dtype=torch.long) for row in rows], True)
    return ids.to(device), pad([torch.ones(len(row), dtype=torch.long) for row in rows], True).to(device)
