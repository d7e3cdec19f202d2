"""Stores of encoded audio: a safetensors file of named unit sequences, tied to the codec that made them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from elocute.data.files import write_atomically
from elocute.errors import InputError


def write_units(path: str | Path, units: Mapping[str, np.ndarray], codec_digest: str, codec: str = "unnamed") -> None:
    """Write a store. `units` are non-negative integers, [frames] or [frames, codebooks], kept as int16 if they fit.

    `codec_digest` says which codec made them, `codec` is its name for people.
    """
    tensors = {key: _compact(key, np.asarray(values)) for key, values in units.items()}
    write_atomically(path, _sorted_header(save(tensors, metadata={"codec_digest": codec_digest, "codec": codec})))


def misfit(values: Sequence[Any]) -> int | None:
    """Where a row's list is none of units, integers at least 0 or frames of them, all as wide as the first; else None.

    What is read from JSON is told apart by its very type: true is no 1.
    """
    framed = bool(values) and isinstance(values[0], list)
    width = len(values[0]) if framed else 1

    def fits(value: Any) -> bool:
        codes = value if framed else [value]
        whole = isinstance(codes, list) and len(codes) == width > 0
        return whole and all(type(code) is int and code >= 0 for code in codes)

    return next((place for place, value in enumerate(values) if not fits(value)), None)


def _sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header's keys in order: safetensors shuffles metadata, but the same units
    must give the same bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _compact(key: str, values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer) or values.ndim not in (1, 2) or not values.size:
        raise TypeError(
            f"units {key!r}: expected integers [frames] or [frames, codebooks], got {values.dtype} {list(values.shape)}"
        )
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise ValueError(f"units {key!r}: expected values in 0 … 2^31 - 1, got {values.min()} … {values.max()}")
    dtype = np.int16 if values.max() <= np.iinfo(np.int16).max else np.int32
    return np.ascontiguousarray(values, dtype=dtype)


class UnitStore:
    """A store opened for reading; a sequence is read from disk when it is asked for.

    digest, codec: which codec made the units.
    """

    def __init__(self, path: str | Path):
        """Raises InputError when `path` is no store of units."""
        self.path = Path(path)
        if not os.path.isfile(self.path):
            raise InputError(f"{self.path}: store of encoded audio not found")
        try:
            self._file = safe_open(str(self.path), framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: not a readable safetensors file ({error})") from None
        metadata = self._file.metadata() or {}
        if "codec_digest" not in metadata:
            raise InputError(f"{self.path}: not a store of encoded audio: its metadata lacks 'codec_digest'")
        self.digest: str = metadata["codec_digest"]
        self.codec: str = metadata.get("codec", "unnamed")
        self._keys = frozenset(self._file.keys())

    def keys(self) -> frozenset[str]:
        return self._keys

    def get(self, key: str) -> np.ndarray:
        """The units called `key`: int64 [frames] or [frames, codebooks]."""
        if key not in self._keys:
            raise InputError(f"{self.path}: no encoded audio called {key!r}")
        units = self._file.get_tensor(key)
        if units.dtype not in (np.int16, np.int32) or units.ndim not in (1, 2) or not units.size or units.min() < 0:
            raise InputError(
                f"{self.path}#{key}: expected units (int16 or int32, not negative, [frames] or "
                f"[frames, codebooks]), got {units.dtype} {list(units.shape)}"
            )
        return units.astype(np.int64)

    def check_made_by(self, codec_digest: str) -> None:
        """Raises InputError when another codec made the units: its numbers mean other sounds."""
        if self.digest != codec_digest:
            raise InputError(
                f"{self.path}: encoded by codec {self.codec} {self.digest}, "
                f"but the codec in use is {codec_digest}; encode the audio again"
            )
