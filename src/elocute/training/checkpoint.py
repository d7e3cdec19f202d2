"""Checkpoints: safetensors and JSON, written whole or not at all, enough to go on byte for byte."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from elocute.errors import InputError

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
) -> None:
    """Write `folder` (…/step-N) atomically: a reader sees all of it or none of it. ahead: see training/collector.py."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in trainable(module).items()}, partial / "model.safetensors")
    tensors, numbers = _split_optimizer(optimizer.state_dict())
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
    optimizer.load_state_dict(_join_optimizer(load_file(folder / "optimizer.safetensors"), state.pop("optimizer")))
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
            parameter.copy_(saved[name])


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


def _split_optimizer(state: dict) -> tuple[dict[str, torch.Tensor], dict]:
    tensors = {
        f"{index}.{name}": value.detach().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, torch.Tensor], numbers: dict) -> dict:
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
