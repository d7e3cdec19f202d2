"""Keys and values with room behind them, so that a step of decoding writes its own and copies nothing else.

transformers' DynamicCache joins old and new by a copy of all that was read, at each step and in each layer; its
StaticCache copies nothing, but attends at each step to places as many as the longest answer might ever need.
"""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Steps for which there is room; after them all is copied once, into a place with room for as many again."""


def give_room(cache: Cache) -> None:
    """Replace a cache's layers, those that keep all they read. For decoding only: what is written in place has no
    gradient."""
    cache.layers = [GrowingLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]


class GrowingLayer(DynamicLayer):
    """A DynamicLayer, number for number. keys, values: [rows, heads, steps, width], a view of a longer tensor."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        vars(self).update(vars(layer))
        self._stores: list[torch.Tensor] = [self.keys, self.values] if self.is_initialized else []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._stores = [states[:, :, :0] for states in (key_states, value_states)]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Add steps [rows, heads, n, width]; returns all keys and all values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._stores[0].shape[-2]:
            self._stores = [_longer(store, start, end + ROOM) for store in self._stores]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows only, int64; their room goes with them."""
        if self.get_seq_length() > 0:
            steps = self.get_seq_length()
            self._stores = [store[indices] for store in self._stores]
            self._show(steps)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.keys), device=self.keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def _show(self, steps: int) -> None:
        self.keys, self.values = (store[:, :, :steps] for store in self._stores)


def _longer(store: torch.Tensor, steps: int, room: int) -> torch.Tensor:
    """A tensor of `room` steps that begins with the first `steps` of this one."""
    longer = store.new_empty(*store.shape[:-2], room, store.shape[-1])
    longer[:, :, :steps] = store[:, :, :steps]
    return longer
