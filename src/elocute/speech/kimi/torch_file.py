"""Kimi-Audio's own files of weights, which hold more than is needed."""

from pathlib import Path

import torch

from elocute.errors import InputError
from elocute.speech.torch_file import read_torch


def read_state(file: Path, key: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """`file[key]`: the tensors whose names begin with `prefix`, without it. InputError when there are none."""
    held = read_torch(file, f"a file of weights with {key!r}", key)
    state = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
    if not state:
        raise InputError(f"{file}: {key}: no weights {prefix}…")
    return state
