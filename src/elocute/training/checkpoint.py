"""Checkpoints: safetensors and JSON, written whole or not at all, enough to go on byte for byte.

They hold whole tensors, however the processes that wrote them shared the network: any number of others reads them.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from elocute.data.files import writing
from elocute.errors import InputError
from elocute.training.share import part_like, whole

AHEAD = "rollouts.safetensors"


def trainable(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → trained parameter (all of them, or LoRA's only)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def save_checkpoint(
    folder: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    ahead: Mapping[str, torch.Tensor] | None = None,
    *,
    write: bool = True,
) -> None:
    """Write `folder` (…/step-N) atomically: a reader sees all of it or none of it. ahead: see training/collector.py.

    Where processes hold parts of the tensors, all must call it; `write`: which one writes. Raises RunError when it
    cannot be written (a full disk); what was there stays.
    """
    weights = _gathered(trainable(module), write)
    tensors, numbers = _split_optimizer(optimizer.state_dict())
    tensors = _gathered(tensors, write)
    if not write:
        return
    with writing(folder), _partial(folder) as partial:
        save_file(weights, partial / "model.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state | {"optimizer": numbers}, indent=1) + "\n")
        if ahead:
            save_file(dict(ahead), partial / AHEAD)
        for file in partial.iterdir():
            _flush(file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        _flush(folder.parent)


def load_checkpoint(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Put weights and optimiser back; returns the state that was saved with them."""
    state = json.loads((folder / "state.json").read_text())
    load_weights(folder, module)
    parameters = list(trainable(module).values())
    tensors = load_file(folder / "optimizer.safetensors")
    optimizer.load_state_dict(_join_optimizer(tensors, state.pop("optimizer"), parameters))
    return state


def load_ahead(folder: Path) -> dict[str, torch.Tensor]:
    """What was sampled ahead and waits for its step; nothing where nothing was."""
    return load_file(folder / AHEAD) if (folder / AHEAD).is_file() else {}


def load_weights(folder: Path, module: torch.nn.Module) -> None:
    """Put a checkpoint's weights into the module. InputError when they are another model's."""
    saved, current = load_file(folder / "model.safetensors"), trainable(module)
    if saved.keys() != current.keys():
        odd = sorted(saved.keys() ^ current.keys())[0]
        raise InputError(f"{folder}: checkpoint of another model or LoRA setting: parameter {odd} does not match")
    for name, parameter in current.items():
        if saved[name].shape != parameter.shape:
            raise InputError(
                f"{folder}: checkpoint of another model or LoRA setting: parameter {name}: expected the shape "
                f"{[*parameter.shape]}, got {[*saved[name].shape]}"
            )
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(part_like(saved[name], parameter))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`, if any."""
    found = [path for path in folder.glob("step-*") if path.suffix != ".partial" and (path / "state.json").is_file()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def prune_checkpoints(folder: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of step `best`."""
    found = sorted(folder.glob("step-*[0-9]"), key=lambda path: int(path.name.removeprefix("step-")))
    for path in found[:-keep]:
        if path.name != f"step-{best}":
            shutil.rmtree(path)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, for what becomes it; gone after an error: what is half there fills the disk."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _gathered(tensors: dict[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Tensors whole, in main memory; nothing where they are not kept, and never more than one of them beside that."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if keep:
            found[name] = value.cpu().contiguous()
    return found


def _split_optimizer(state: dict) -> tuple[dict[str, torch.Tensor], dict]:
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, torch.Tensor], numbers: dict, parameters: list[torch.Tensor]) -> dict:
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        state.setdefault(int(index), {})[name] = part_like(value, like) if value.shape == like.shape else value
    return {"state": state, "param_groups": numbers["param_groups"]}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
