"""Weights in torch's own files, read without running anything that such a file may hold."""

import zipfile
from pathlib import Path

import torch

from elocute.errors import InputError


def read_torch(file: Path, what: str, *keys: str) -> dict[str, torch.Tensor]:
    """The named tensors that torch saved, of a dict in a dict by `keys`, on the CPU and mapped where that can be.

    InputError, saying that it is not `what`, for a file that torch cannot read safely or that has no such key.
    """
    try:
        mapped = zipfile.is_zipfile(file)  # torch maps its newer format only
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        for key in keys:
            state = state[key]
    except Exception as error:  # torch raises what the damage happens to provoke
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: not {what}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{file}: expected named tensors and nothing else")
    return dict(state)
