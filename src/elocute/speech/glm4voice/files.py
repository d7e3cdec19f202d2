"""Published files, read as data: nothing in them is run, nothing in them is constructed."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from elocute.errors import InputError

_REFERENCE = re.compile(r"<([\w.\[\]]+)>")


class _TagsAsData(yaml.SafeLoader):
    """A safe loader for which `!new:Class {…}`, `!name:f`, `!apply:f […]` are the mapping, list or text behind them."""


def _untagged(loader: _TagsAsData, tag: str, node: yaml.Node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return _Reference(node.value) if tag == "ref" else node.value


_TagsAsData.add_multi_constructor("!", _untagged)


class _Reference(str):
    """What stands behind `!ref`."""


def read_tagged_yaml(file: Path) -> dict:
    """A HyperPyYAML file as plain data; `!ref <key>` is the value of that key at the top. Arithmetic: InputError."""
    try:
        said = yaml.load(file.read_text(encoding="utf-8"), Loader=_TagsAsData)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not YAML that holds data only: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise InputError(f"{file}: expected a YAML mapping")
    return _resolved(said, said, file)


def _resolved(value, top: dict, file: Path):
    if isinstance(value, dict):
        return {key: _resolved(item, top, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, top, file) for item in value]
    if not isinstance(value, _Reference):
        return value
    name = _REFERENCE.fullmatch(value)
    target = top.get(name[1]) if name else None
    if isinstance(target, (str, int, float)) and not isinstance(target, _Reference):
        return target
    raise InputError(f"{file}: !ref {value}: expected <key> with a value at the top of the file")


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a safetensors file: {error}") from error


def read_header(file: Path) -> dict[str, torch.Tensor]:
    """The same without their numbers, on the meta device."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a safetensors file: {error}") from error


def fill(module: torch.nn.Module, state: dict[str, torch.Tensor], file: Path) -> torch.nn.Module:
    """Copy a file's weights into a module that has none yet, as float32, on the CPU; InputError names what differs."""
    check_state(module, state, file)
    module.to_empty(device="cpu").load_state_dict(state)
    return module


def check_state(module: torch.nn.Module, state: dict[str, torch.Tensor], file: Path) -> None:
    """InputError unless a file's weights have the names and shapes of a module's."""
    own = module.state_dict()
    if lacking := sorted(own.keys() - state.keys()):
        raise InputError(f"{file}: the weights lack {lacking[0]}")
    if strange := sorted(state.keys() - own.keys()):
        raise InputError(f"{file}: the weights hold {strange[0]}, for which the config has no place")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            shapes = f"{list(tensor.shape)}, the weights {list(state[name].shape)}"
            raise InputError(f"{file}: {name}: the config says {shapes}")


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder, byte for byte and under their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.resolve() != (folder / file.name).resolve():
            shutil.copyfile(file, folder / file.name)
