"""Weights in torch's own files, read without running anything that such a file may hold."""

import zipfile
from pathlib import Path

import torch

from elocute.errors import InputError


def read_state(file: Path, key: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """`file[key]`: the tensors whose names begin with `prefix`, without it. Nothing else of a large file is read.

    InputError when there are none.
    """
    try:
        mapped = zipfile.is_zipfile(file)  # torch maps its newer format only
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)[key]
        state = {name.removeprefix(prefix): held[name] for name in held if name.startswith(prefix)}
    except Exception as error:  # torch raises what the damage happens to provoke
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: not a file of weights with {key!r}: {reason}") from error
    if not state:
        raise InputError(f"{file}: {key}: no weights {prefix}…")
    return state
