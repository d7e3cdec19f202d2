"""Sampling with multi-token prediction: which depth says which token, and the caches that this needs.

`mtp_inference_mode` [m1, n1, m2, n2 …] is VITA-Audio's schedule: m1 tokens from the main head, n1 from the depths, m2
from the main head and so on; the last pair repeats. In a run of depths the first token is said by depth 1, the second
by depth 2; where the run is longer than there are depths, the main head steps in and depth 1 follows. Their tokens are
not verified: they are said, and the main layers read them all when it is their turn.

    Vanilla [8192, 0]   Balance [1, 4, 3, 8, 4, 10]   Boost [1, 10, 4, 10]   Turbo [1, 10]

The schedule counts tokens and is blind to what they are.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from elocute.errors import InputError
from elocute.models.vita.config import VitaConfig, read_mode
from elocute.models.vita.network import VitaForCausalLM

MODES = {"turbo": [1, 10], "boost": [1, 10, 4, 10], "balance": [1, 4, 3, 8, 4, 10]}
"""The original's by name; its Vanilla, [8192, 0], is "off"."""


def check_mode(mode: Sequence[int]) -> None:
    """InputError unless `mode` is a schedule."""
    if len(mode) < 2 or len(mode) % 2 or min(mode) < 0 or mode[0] < 1 or mode[-2] + mode[-1] < 1:
        raise InputError(
            "mtp_inference_mode: expected pairs [main, mtp, main, mtp …] of counts, the first and the sum of the last "
            f"pair at least 1, got {list(mode)}"
        )


def sampling_mode(folder: Path, config: VitaConfig, said: str | Sequence[int] | None) -> list[int] | None:
    """The schedule by which a folder's answers are sampled, or None: by the main head alone.

    said: "off", one of MODES or a schedule; None: what generation_config.json says. InputError for anything else, and
    for multi-token prediction that the model does not have.
    """
    if said == "off" or (said is None and not config.n_mtp):
        return None
    if isinstance(said, str) and said not in MODES:
        raise InputError(f"mtp: expected off, {', '.join(MODES)} or a list of counts, got {said!r}")
    mode = read_mode(folder, config) if said is None else MODES[said] if isinstance(said, str) else said
    if not (isinstance(mode, list) and all(type(count) is int for count in mode)):
        raise InputError(f"mtp: expected off, {', '.join(MODES)} or a list of counts, got {mode!r}")
    check_mode(mode)
    if not config.n_mtp:
        raise InputError(f"mtp: expected off, the model has no multi-token prediction; got {said!r}")
    return mode if deepest_of(mode, config.n_mtp) else None


def deepest_of(mode: Sequence[int], n_mtp: int) -> int:
    """The last depth that ever says a token; 0: the main head says all."""
    return max(islice(depths_of(mode, n_mtp), sum(mode) + n_mtp + 1))  # a last pair [0, n] is one run without an end


def depths_of(mode: Sequence[int], n_mtp: int) -> Iterator[int]:
    """The depth that says each token of an answer, for ever: 0 the main head, 1 … n_mtp."""
    check_mode(mode)
    pairs = list(zip(mode[::2], mode[1::2], strict=True))
    depth = 0
    for main, ahead in chain(pairs, repeat(pairs[-1])):
        for is_main in [True] * main + [False] * ahead:
            depth = 0 if is_main or depth == n_mtp else depth + 1
            yield depth


def said_by(states: Sequence[Tensor], depths: Sequence[int], start: int) -> Tensor:
    """Of all depths' states, those that said an answer: [B, A, D], row i predicts token start + i.

    states: h_0 [B, T, D], h_1 [B, T − 1, D] … of the whole sequence, as `VitaForCausalLM.depths` gives them; start:
    where the answer begins; depths: of its A tokens.
    """
    places = [start + i - 1 - depth for i, depth in enumerate(depths)]
    if min(places, default=0) < 0:
        raise ValueError("an answer's depth reads tokens before the start of the sequence")
    return torch.stack([states[depth][:, place] for depth, place in zip(depths, places, strict=True)], 1)


class Decoding:
    """Answers that grow token by token, all rows at the same pace; `depth` said the latest states, None at the start.

    Each depth has a cache that lags behind: it reads the states of the depth below it only when it is asked. What it
    has not read yet is kept, no more.
    """

    def __init__(self, network: VitaForCausalLM, mode: Sequence[int]):
        self.network = network
        self.depth: int | None = None
        self._turns = depths_of(mode, network.n_mtp)
        self._caches = [DynamicCache() for _ in range(network.n_mtp + 1)]
        self._unread: list[Tensor | None] = [None] * (network.n_mtp + 1)  # index d: states h_{d−1} that depth d needs

    def prefill(self, ids: Tensor, attention_mask: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        """Read the prompt: ids int64 [B, P] → states [B, D] that say the first token.

        attention_mask [B, P]: 0 where a shorter prompt is padded on the left. embeds [B, P, D]: of the ids, where
        audio that was heard is written over them.
        """
        self._ids, self._main_read = ids, 0
        self._mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        return self._speak(embeds)

    def step(self, tokens: Tensor) -> Tensor:
        """Take each row's next token, int64 [B] → states [B, D] that say the one after it."""
        self._ids = torch.cat([self._ids, tokens[:, None]], 1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._positions = torch.cat([self._positions, self._positions[:, -1:] + 1], 1)
        return self._speak()

    def repeat(self, times: int) -> None:
        """Every row `times` times, one behind the other: a group's answers to one prompt."""
        for cache in self._filled():
            cache.batch_repeat_interleave(times)
        self._each_row(lambda rows: rows.repeat_interleave(times, 0))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64 [K]."""
        for cache in self._filled():
            cache.batch_select_indices(rows)
        self._each_row(lambda kept: kept[rows])

    def _filled(self) -> list[DynamicCache]:
        return [cache for cache in self._caches if cache.get_seq_length()]

    def _each_row(self, change) -> None:
        self._ids, self._mask, self._positions = map(change, (self._ids, self._mask, self._positions))
        self._unread = [None if states is None else change(states) for states in self._unread]

    def _speak(self, embeds: Tensor | None = None) -> Tensor:
        self.depth = next(self._turns)
        states = self._read_main(embeds) if self.depth == 0 else self._read_ahead(self.depth)
        above = self.depth + 1
        if above <= self.network.n_mtp:
            waiting = self._unread[above]
            self._unread[above] = states if waiting is None else torch.cat([waiting, states], 1)
        return states[:, -1]

    def _read_main(self, embeds: Tensor | None) -> Tensor:
        """The main layers read all tokens that they have not seen, as one chunk."""
        start, self._main_read = self._main_read, self._ids.shape[1]
        if embeds is None:
            embeds = self.network.model.embed_tokens(self._ids[:, start:])
        return self.network.model(
            inputs_embeds=embeds,
            attention_mask=self._mask,
            position_ids=self._positions[:, start:],
            past_key_values=self._caches[0],
            use_cache=True,
        ).last_hidden_state

    def _read_ahead(self, depth: int) -> Tensor:
        """A depth reads all states of the one below it that it has not seen."""
        states, self._unread[depth] = self._unread[depth], None
        start = self._caches[depth].get_seq_length()
        behind = slice(start + depth, start + depth + states.shape[1])
        return self.network.mtp(
            depth,
            states,
            self.network.model.embed_tokens(self._ids[:, behind]),
            self._positions[:, behind],
            self._mask[:, : start + states.shape[1]],
            self._caches[depth],
        )
