"""Speech LMs. A new one is a file here, and one line where `load_model` chooses."""

from pathlib import Path

import torch

from elocute.models.interleaved import InterleavedLM


def load_model(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> InterleavedLM:
    """Load a speech LM by its folder, on the CPU."""
    return InterleavedLM.load(folder, dtype=dtype)


def load_speaker(folder: str | Path) -> InterleavedLM:
    """Load a speech LM to talk with: on the first GPU in the weights' own type, else on the CPU in float32."""
    if not torch.cuda.is_available():
        return load_model(folder)
    lm = InterleavedLM.load(folder, dtype="auto")
    lm.model.to("cuda")
    return lm
