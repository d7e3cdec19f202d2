"""A checkpoint folder's weights: named tensors in one safetensors file, or in shards with an index beside them.

A part of the network is read alone, by the prefix of its names; the rest stays on disk. Written again, the folder keeps
its layout: every tensor in the file that it was in, what was not read and every other file byte for byte.

Which file it is config.json may say, `transformers_weights`: CSM was published so, and the `model.safetensors` beside
it holds the same weights as its authors' code reads them. Those would be the old ones in a folder that is written
again, and are left out.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from elocute.data.files import files_below, link_file, read_json, write_atomically
from elocute.errors import InputError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Shards:
    """Where a folder's tensors lie. files: name of a tensor → name of its file; index: the index's JSON, or None.

    named: the file that config.json says, the index or the only one; None: it says nothing.
    """

    def __init__(self, folder: Path, files: dict[str, str], index: dict | None, named: str | None):
        self.folder, self.files, self.index, self.named = folder, files, index, named

    @classmethod
    def open(cls, folder: str | Path) -> "Shards":
        """Read the headers. InputError for a file that is missing or cut off, or does not hold what the index says."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder with a model's weights, there is none")
        named = _named(folder / "config.json")
        place = named or next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)  # as transformers
        if place is None:
            raise InputError(f"{folder}: expected {INDEX} or {SINGLE}, there is none")
        if not place.endswith(".json"):
            return cls(folder, dict.fromkeys(_names(folder / place), place), None, named)
        index = _read_index(folder / place)
        files = index["weight_map"]
        for file in sorted(set(files.values())):
            if not (folder / file).is_file():
                raise InputError(f"{folder / file}: missing, {place} names it")
            said, there = {name for name, place in files.items() if place == file}, set(_names(folder / file))
            if lacking := sorted(said - there):
                raise InputError(f"{folder / file}: lacks {lacking[0]}, which {place} says is in it")
            if strange := sorted(there - said):
                raise InputError(f"{folder / file}: holds {strange[0]}, of which {place} knows nothing")
        return cls(folder, dict(files), index, named)

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with a prefix, whole."""
        return sorted(name for name in self.files if name.startswith(prefix))

    def shapes(self, prefix: str, *, skip: tuple[str, ...] = ()) -> dict[str, list[int]]:
        """From the headers: shapes of the tensors whose names begin with a prefix, which is taken off.

        skip: but for those whose names begin with one of these.
        """
        return dict(self._each(prefix, skip, lambda file, name: file.get_slice(name).get_shape()))

    def read(
        self, prefix: str, dtype: torch.dtype | str = "auto", *, skip: tuple[str, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """The same tensors themselves. dtype "auto": in the type they are stored in."""

        def read(file, name: str) -> torch.Tensor:
            tensor = file.get_tensor(name)
            return tensor if dtype == "auto" else tensor.to(dtype)

        return dict(self._each(prefix, skip, read))

    def _each(self, prefix: str, skip: tuple[str, ...], take: Callable) -> Iterator[tuple[str, Any]]:
        names = [name for name in self.names(prefix) if not name.startswith(skip)]
        for place in sorted({self.files[name] for name in names}):
            with safe_open(self.folder / place, framework="pt") as file:
                yield from (
                    (name.removeprefix(prefix), take(file, name)) for name in names if self.files[name] == place
                )

    def save(
        self, folder: str | Path, changed: Mapping[str, torch.Tensor], *, dtype: torch.dtype | None = None
    ) -> None:
        """Write the whole folder again, some tensors `changed` (whole names): each in the type in which it is given.

        dtype: what config.json is to say of it, by the name that every release of transformers reads; None: nothing
        new. Files of weights without a changed tensor are hard links where they can be (data/files.py). folder may be
        this one: then files are replaced one by one. InputError for one inside this one, and for one in which weights
        lie that would be taken for these.
        """
        folder, shards = Path(folder), set(self.files.values())
        if strange := sorted(set(changed) - set(self.files)):
            raise ValueError(f"{strange[0]} is not in {self.folder}")
        if self.folder.resolve() in folder.resolve().parents:
            raise InputError(f"{folder}: expected a folder outside of {self.folder}, of which it will be a copy")
        mine = shards if self.index is None else shards | {self.named or INDEX}
        if not self.named and (strange := sorted({path.name for path in folder.glob("model*.safetensors*")} - mine)):
            raise InputError(f"{folder / strange[0]}: another model's weights lie there")
        folder.mkdir(parents=True, exist_ok=True)
        total = 0
        for place in sorted(shards):
            total += self._save_shard(place, folder / place, changed)
        old = {path.name for pattern in ("*.safetensors*", "*.pt") for path in self.folder.glob(pattern) if self.named}
        for source in _others(self.folder, mine | old | {INDEX}):
            link_file(source, folder / source.relative_to(self.folder))
        if self.index is not None:
            index = self.index | {"metadata": self.index.get("metadata", {}) | {"total_size": total}}
            (folder / (self.named or INDEX)).write_text(json.dumps(index, indent=2) + "\n")
        if dtype is not None:
            said = read_json(folder / "config.json", "the config of a model")
            said.pop("dtype", None)  # a later transformers' name for the same
            said["torch_dtype"] = str(dtype).removeprefix("torch.")
            write_atomically(folder / "config.json", (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())

    def _save_shard(self, place: str, target: Path, changed: Mapping[str, torch.Tensor]) -> int:
        """Write one file again; returns its tensors' bytes."""
        state = {}
        with safe_open(self.folder / place, framework="pt") as file:
            for name in file.keys():
                if name not in changed:
                    state[name] = file.get_tensor(name)
                    continue
                state[name] = changed[name].detach().cpu().contiguous()
                if [*state[name].shape] != (shape := file.get_slice(name).get_shape()):
                    raise ValueError(f"{name}: expected {shape}, got {[*state[name].shape]}")
        if set(state) & set(changed):
            unfinished = target.with_name(f".{target.name}.unfinished")
            save_file(state, unfinished, metadata={"format": "pt"})
            os.replace(unfinished, target)
        else:
            link_file(self.folder / place, target)
        return sum(tensor.nbytes for tensor in state.values())


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` makes, its parameters without memory until `load_state_dict(…, assign=True)`."""
    with init_empty_weights():
        return make()


def check_fit(network: nn.Module, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """InputError unless weights of these shapes are exactly the network's; `where` begins the complaint."""
    expected = {name: [*tensor.shape] for name, tensor in network.state_dict().items()}
    if lacking := sorted(set(expected) - set(shapes)):
        raise InputError(f"{where}: the weights lack {lacking[0]}")
    if strange := sorted(set(shapes) - set(expected)):
        raise InputError(f"{where}: the weights hold {strange[0]}, for which the model has no place")
    for name, shape in shapes.items():
        if [*shape] != expected[name]:
            raise InputError(f"{where}: {name}: expected the shape {expected[name]}, got {[*shape]}")


def _named(config: Path) -> str | None:
    """The file of the weights that a config.json says. InputError for one that is not there."""
    said = read_json(config, "the config of a model").get("transformers_weights") if config.is_file() else None
    if said is None:
        return None
    known = isinstance(said, str) and said.endswith((".safetensors", ".safetensors.index.json"))
    if not known or Path(said).name != said or not (config.parent / said).is_file():
        raise InputError(f"{config}: transformers_weights: expected a file of weights beside it, got {said!r}")
    return said


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole safetensors file: {' '.join(str(error).split())}") from error


def _read_index(file: Path) -> dict:
    index = read_json(file, "the index of a model's shards")
    places = index.get("weight_map")
    if not (isinstance(places, dict) and all(isinstance(p, str) and Path(p).name == p for p in places.values())):
        raise InputError(f"{file}: weight_map: expected names of files beside it")
    return index


def _others(folder: Path, shards: set[str]) -> list[Path]:
    """All files below a folder but the shards."""
    return [path for path in files_below(folder) if str(path.relative_to(folder)) not in shards]
