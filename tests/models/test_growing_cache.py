"""Keys and values with room behind them are those of transformers' own cache, and are not copied at each step."""

import pytest
import torch
from transformers import DynamicCache

from elocute.models import growing_cache, one_stream
from elocute.models.growing_cache import give_room


def states(rows: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that came out of a projection: heads behind steps in memory; the values are narrower."""
    return tuple(torch.randn(rows, steps, 2, width).transpose(1, 2) for width in (4, 3))


def prefilled(rows: int, steps: int) -> tuple[DynamicCache, DynamicCache]:
    """Two caches of two layers that read the same; the second has room."""
    caches = DynamicCache(), DynamicCache()
    for layer in range(2):
        read = states(rows, steps)
        for cache in caches:
            cache.update(*read, layer)
    give_room(caches[1])
    return caches


@torch.no_grad()
@pytest.mark.parametrize("steps", [0, 5])
def test_a_growing_cache_is_a_dynamic_cache(steps, monkeypatch):
    monkeypatch.setattr(growing_cache, "ROOM", 3)
    torch.manual_seed(0)
    naive, growing = prefilled(3, steps)
    deeds = ["grow"] * 4 + ["keep", "grow", "repeat", "grow", "crop", "grow", "order", "grow"] + ["grow"] * 5
    rows = 3
    for deed in deeds:
        for cache in (naive, growing):
            match deed:
                case "keep":
                    cache.batch_select_indices(torch.tensor([0, 2]))
                case "repeat":
                    cache.batch_repeat_interleave(2)
                case "crop":
                    cache.crop(-2)
                case "order":
                    cache.reorder_cache(torch.tensor([3, 0, 1, 1]))
        rows = {"keep": 2, "repeat": 4}.get(deed, rows)
        if deed == "grow":
            for layer in range(2):
                new = states(rows, 1 + layer)
                for a, b in zip(naive.update(*new, layer), growing.update(*new, layer), strict=True):
                    assert a.equal(b)
        assert naive.get_seq_length() == growing.get_seq_length()
        assert naive.get_mask_sizes(1, 0) == growing.get_mask_sizes(1, 0)


@torch.no_grad()
def test_what_was_read_stays_where_it_lies(tiny_lm):
    decoder = one_stream.Decoder(tiny_lm, [torch.tensor([301, 302, 303])], 2)
    decoder.step(torch.tensor([[1], [2]]))
    place = [layer.keys.data_ptr() for layer in decoder.cache.layers]
    for token in range(growing_cache.ROOM):
        decoder.step(torch.tensor([[token], [token]]))
        assert [layer.keys.data_ptr() for layer in decoder.cache.layers] == place
    assert decoder.cache.get_seq_length() == 3 + 1 + growing_cache.ROOM
