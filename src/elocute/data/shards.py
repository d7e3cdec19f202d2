"""A checkpoint folder's weights: named tensors in one safetensors file, or in shards with an index beside them.

A part of the network is read alone, by the prefix of its names; the rest stays on disk. Written again, the folder keeps
its layout: every tensor in the file that it was in, what was not read and every other file byte for byte.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from elocute.errors import InputError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class Shards:
    """Where a folder's tensors lie. files: name of a tensor → name of its file; index: the index's JSON, or None."""

    def __init__(self, folder: Path, files: dict[str, str], index: dict | None):
        self.folder, self.files, self.index = folder, files, index

    @classmethod
    def open(cls, folder: str | Path) -> "Shards":
        """Read the headers. InputError for a file that is missing or cut off, or does not hold what the index says."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder with a model's weights, there is none")
        if not (folder / _INDEX).is_file():
            if not (folder / _SINGLE).is_file():
                raise InputError(f"{folder}: expected {_INDEX} or {_SINGLE}, there is none")
            return cls(folder, dict.fromkeys(_names(folder / _SINGLE), _SINGLE), None)
        index = _read_index(folder / _INDEX)
        files = index["weight_map"]
        for file in sorted(set(files.values())):
            if not (folder / file).is_file():
                raise InputError(f"{folder / file}: missing, {_INDEX} names it")
            said, there = {name for name, place in files.items() if place == file}, set(_names(folder / file))
            if lacking := sorted(said - there):
                raise InputError(f"{folder / file}: lacks {lacking[0]}, which {_INDEX} says is in it")
            if strange := sorted(there - said):
                raise InputError(f"{folder / file}: holds {strange[0]}, of which {_INDEX} knows nothing")
        return cls(folder, dict(files), index)

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with a prefix, whole."""
        return sorted(name for name in self.files if name.startswith(prefix))

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, from its file's header. InputError when there is no such tensor."""
        if name not in self.files:
            raise InputError(f"{self.folder}: the weights lack {name}")
        with safe_open(self.folder / self.files[name], framework="pt") as file:
            return file.get_slice(name).get_shape()

    def read(
        self, prefix: str, dtype: torch.dtype | str = "auto", *, skip: tuple[str, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with a prefix, which is taken off, but for those that begin with one of `skip`.

        dtype "auto": in the type they are stored in.
        """
        state = {}
        names = [name for name in self.names(prefix) if not name.startswith(skip)]
        for place in sorted({self.files[name] for name in names}):
            with safe_open(self.folder / place, framework="pt") as file:
                for name in (name for name in names if self.files[name] == place):
                    tensor = file.get_tensor(name)
                    state[name.removeprefix(prefix)] = tensor if dtype == "auto" else tensor.to(dtype)
        return state

    def save(self, folder: str | Path, changed: Mapping[str, torch.Tensor]) -> None:
        """Write the whole folder again, some tensors `changed` (whole names): each in the type in which it is given.

        folder may be this one: then files are replaced one by one. InputError for one inside this one.
        """
        folder = Path(folder)
        if strange := sorted(set(changed) - set(self.files)):
            raise ValueError(f"{strange[0]} is not in {self.folder}")
        if self.folder.resolve() in folder.resolve().parents:
            raise InputError(f"{folder}: expected a folder outside of {self.folder}, of which it will be a copy")
        folder.mkdir(parents=True, exist_ok=True)
        shards, total = set(self.files.values()), 0
        for place in sorted(shards):
            total += self._save_shard(place, folder / place, changed)
        for source in _others(self.folder, shards | {_INDEX}):
            _copy(source, folder / source.relative_to(self.folder))
        if self.index is not None:
            index = self.index | {"metadata": self.index.get("metadata", {}) | {"total_size": total}}
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _save_shard(self, place: str, target: Path, changed: Mapping[str, torch.Tensor]) -> int:
        """Write one file again; returns its tensors' bytes."""
        state = load_file(self.folder / place)
        new = {name: changed[name].detach().cpu().contiguous() for name in state if name in changed}
        for name, tensor in new.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name}: expected {[*state[name].shape]}, got {[*tensor.shape]}")
        if new:
            unfinished = target.with_name(f".{target.name}.unfinished")
            save_file(state | new, unfinished, metadata={"format": "pt"})
            os.replace(unfinished, target)
        else:
            _copy(self.folder / place, target)
        return sum(tensor.nbytes for tensor in (state | new).values())


def build(make: Callable[[], nn.Module], state: dict[str, torch.Tensor], where: str) -> nn.Module:
    """A network with these weights, none of them drawn or held twice; `make` makes it, `where` begins a complaint.

    InputError unless state has exactly the network's names and shapes.
    """
    with init_empty_weights():
        network = make()
    expected = network.state_dict()
    if lacking := sorted(set(expected) - set(state)):
        raise InputError(f"{where}: the weights lack {lacking[0]}")
    if strange := sorted(set(state) - set(expected)):
        raise InputError(f"{where}: the weights hold {strange[0]}, for which the model of config.json has no place")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = f"expected {[*expected[name].shape]} by config.json, got {[*tensor.shape]}"
            raise InputError(f"{where}: {name}: {shapes}")
    network.load_state_dict(state, assign=True)
    return network


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole safetensors file: {' '.join(str(error).split())}") from error


def _read_index(file: Path) -> dict:
    try:
        index = json.loads(file.read_text())
        if all(isinstance(place, str) and Path(place).name == place for place in index["weight_map"].values()):
            return index
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not the index of a model's shards: {error}") from error
    raise InputError(f"{file}: weight_map: expected names of files beside it")


def _others(folder: Path, shards: set[str]) -> list[Path]:
    """All files below a folder but the shards, and but what is hidden (a repository's own book-keeping)."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    parts = ((path, path.relative_to(folder)) for path in found)
    return [
        path
        for path, inner in parts
        if str(inner) not in shards and not any(name.startswith(".") for name in inner.parts)
    ]


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
