"""Audio is encoded once per file, ever: in memory by (path, date, size), on disk by content and codec.

A cache entry is a store of one sequence whose key is the sha256 of the sequence itself, so that a damaged entry is
noticed and made again. Entries appear whole (see files.py): any number of processes may share the folder.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from elocute.data.audio import load_audio
from elocute.data.digest import digest_file
from elocute.data.types import AudioRef
from elocute.data.units import UnitStore, write_units
from elocute.errors import InputError


class Codec(Protocol):
    """What is needed of a codec here. `digest` changes whenever the same audio would give other units."""

    digest: str
    sample_rate: int

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
        self._memory: dict[tuple[Path, int, int], np.ndarray] = {}
        self._stores: dict[Path, UnitStore] = {}

    def units(self, ref: AudioRef) -> np.ndarray:
        """int64 [frames] or [frames, codebooks], the caller's own copy.

        Raises InputError for audio that cannot be used and for a store that another codec made.
        """
        return self._from_file(ref.path) if ref.key is None else self._from_store(ref.path, ref.key)

    def _from_store(self, path: Path, key: str) -> np.ndarray:
        if path not in self._stores:
            store = UnitStore(path)
            store.check_made_by(self.codec.digest)
            self._stores[path] = store
        return self._stores[path].get(key)

    def _from_file(self, path: Path) -> np.ndarray:
        version = _version(path)
        if version in self._memory:
            self.counts.hits += 1
        else:
            self._memory[version] = self._from_disk(path, version)
        return self._memory[version].astype(np.int64)

    def _from_disk(self, path: Path, version: tuple[Path, int, int]) -> np.ndarray:
        name = hashlib.sha256(f"{digest_file(path)} {self.codec.digest}".encode()).hexdigest()
        entry = self.folder / name[:2] / f"{name}.safetensors"
        units = _read_entry(entry, self.codec.digest)
        if units is not None:
            self.counts.hits += 1
            return units
        units = np.asarray(self.codec.encode(*load_audio(path)))
        if not units.size:
            raise InputError(f"{path}: audio is too short to be encoded")
        if _version(path) != version:
            raise InputError(f"{path}: audio file changed while it was being read")
        write_units(entry, {_digest(units): units}, self.codec.digest)
        self.counts.encoded += 1
        return units.astype(np.int32)


def _version(path: Path) -> tuple[Path, int, int]:
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
