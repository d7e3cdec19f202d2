"""Attention masks of MiniCPM-o 2.6's encoder and decoder, as transformers' layers take them."""

import torch


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where it is visible, the type's lowest number elsewhere: eager attention and SDPA both take this."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
