"""Audio is encoded once per file, ever: in memory by (path, date, size), on disk by content and codec.

The first n seconds of a file are another piece of audio than the whole of it.

A cache entry is a store of one sequence whose key is the sha256 of the sequence itself, so that a damaged entry is
noticed and made again. Entries appear whole (see files.py): any number of processes may share the folder, and a file
that several of them need at once is encoded by one.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from elocute.data.audio import load_audio
from elocute.data.digest import digest_file
from elocute.data.files import one_at_a_time
from elocute.data.types import AudioRef
from elocute.data.units import UnitStore, write_units
from elocute.errors import InputError

_Version = tuple[Path, int, int]
"""A sound file as it was when it was read: path, date, size."""


class Codec(Protocol):
    """What is needed of a codec here. `digest` changes whenever the same audio would give other units."""

    digest: str
    sample_rate: int
    n_units: int

    def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray: ...


@dataclass
class Counts:
    """How often audio was asked for: files the codec had to encode, and files found in memory or on disk."""

    encoded: int = 0
    hits: int = 0


def default_folder() -> Path:
    """`$ELOCUTE_CACHE/units`, or `~/.cache/elocute/units` when the variable is not set."""
    root = os.environ.get("ELOCUTE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "elocute") / "units"


class EncodedAudio:
    """Audio references → units of one codec."""

    def __init__(self, codec: Codec, folder: str | Path | None = None):
        self.codec = codec
        self.folder = Path(folder) if folder is not None else default_folder()
        self.counts = Counts()
        self._memory: dict[tuple[_Version, float | None], np.ndarray] = {}
        self._stores: dict[Path, UnitStore] = {}

    def units(self, ref: AudioRef) -> np.ndarray:
        """int64 [frames] or [frames, codebooks], the caller's own copy.

        Raises InputError for audio that cannot be used and for units that another codec made.
        """
        if ref.units is not None:
            return self._given(ref)
        return self._from_file(ref.path, ref.seconds) if ref.key is None else self._from_store(ref.path, ref.key)

    def forget(self) -> None:
        """Let go of what is in memory: it is still on disk, and a stream of rows needs it once."""
        self._memory.clear()

    def _given(self, ref: AudioRef) -> np.ndarray:
        if ref.codec != self.codec.digest:
            raise InputError(f"{ref.path}: its units are of codec {ref.codec}, the codec in use is {self.codec.digest}")
        units, codebooks = np.array(ref.units), getattr(self.codec, "codebooks", None)
        if units.shape[1:] != (() if codebooks is None else (codebooks,)):
            expected = "integers" if codebooks is None else f"frames of {codebooks} codes"
            raise InputError(f"{ref.path}: its units: expected {expected}, got {json.dumps(ref.units[0])}")
        if not ((units >= 0) & (units < self.codec.n_units)).all():
            raise InputError(f"{ref.path}: its units: expected 0 … {self.codec.n_units - 1}, got {units.max()}")
        return units.astype(np.int64)

    def _from_store(self, path: Path, key: str) -> np.ndarray:
        if path not in self._stores:
            store = UnitStore(path)
            store.check_made_by(self.codec.digest)
            self._stores[path] = store
        return self._stores[path].get(key)

    def _from_file(self, path: Path, seconds: float | None) -> np.ndarray:
        version = _version(path)
        if (version, seconds) in self._memory:
            self.counts.hits += 1
        else:
            self._memory[version, seconds] = self._from_disk(path, version, seconds)
        return self._memory[version, seconds].astype(np.int64)

    def _from_disk(self, path: Path, version: _Version, seconds: float | None) -> np.ndarray:
        part = "" if seconds is None else f" {float(seconds)} s"
        name = hashlib.sha256(f"{digest_file(path)} {self.codec.digest}{part}".encode()).hexdigest()
        entry = self.folder / name[:2] / f"{name}.safetensors"
        units = _read_entry(entry, self.codec.digest)
        if units is None:
            with one_at_a_time(entry):
                units = _read_entry(entry, self.codec.digest)  # another process may have made it meanwhile
                if units is None:
                    return self._encoded(path, version, seconds, entry)
        self.counts.hits += 1
        return units

    def _encoded(self, path: Path, version: _Version, seconds: float | None, entry: Path) -> np.ndarray:
        units = np.asarray(self.codec.encode(*load_audio(path, seconds=seconds)))
        if not units.size:
            raise InputError(f"{path}: audio is too short to be encoded")
        if _version(path) != version:
            raise InputError(f"{path}: audio file changed while it was being read")
        write_units(entry, {_digest(units): units}, self.codec.digest)
        self.counts.encoded += 1
        return units.astype(np.int32)


def _version(path: Path) -> _Version:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: audio file not found ({error.strerror or error})") from None
    return path, stat.st_mtime_ns, stat.st_size


def _read_entry(entry: Path, codec_digest: str) -> np.ndarray | None:
    """The units of a cache entry, int32, or None when there is none or it is damaged."""
    try:
        store = UnitStore(entry)
        store.check_made_by(codec_digest)
        [key] = store.keys()
        units = store.get(key).astype(np.int32)
    except (InputError, ValueError):
        return None
    return units if _digest(units) == key else None


def _digest(units: np.ndarray) -> str:
    return hashlib.sha256(f"{list(units.shape)}".encode() + units.astype("<i4").tobytes()).hexdigest()
