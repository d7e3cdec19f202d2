"""Statistics are computed in float32 whatever the model's dtype (float64 stays float64)."""

import torch
from torch import Tensor


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if any of the tensors is float64."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor))
