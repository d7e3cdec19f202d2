"""Speech LMs. A new one is a file here, and one line where `load_model` chooses."""

from pathlib import Path

import torch

from elocute.models.interleaved import InterleavedLM


def load_model(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> InterleavedLM:
    """Load a speech LM by its folder."""
    return InterleavedLM.load(folder, dtype=dtype)
