"""A published folder's weights: safetensors, whole or in shards with an index, read part by part and written whole."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elocute.data.files import write_atomically
from elocute.errors import InputError
from elocute.models.vita.config import VitaConfig, read_config, read_json
from elocute.models.vita.network import VitaForCausalLM

AUDIO = ("model.audio_model.", "model.audio_projection.")
"""Where the weights of a Plus folder's user audio begin: the LLM is loaded without them, and they without it."""
INDEX = "model.safetensors.index.json"
_BESIDE = {".json", ".jinja", ".txt", ".model", ".mvn", ".yaml", ".py"}
"""What else a published folder holds: tokenizer, the audio encoder's statistics, the original's code (never run)."""


class Checkpoint:
    """The weights of a folder by name; `shapes` is known from the files' headers, nothing is read before `read`.

    InputError for a folder without weights, a missing or damaged shard, an index that does not tell the truth.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / INDEX
        named: dict[str, str] | None = None
        if index.is_file():
            named = read_json(index).get("weight_map")
            if not (isinstance(named, dict) and all(isinstance(file, str) for file in named.values())):
                raise InputError(f"{index}: weight_map: expected every weight's file")
        files = sorted(set(named.values())) if named is not None else ["model.safetensors"]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            self._read_header(folder / file)
        if named is not None and (wrong := sorted(set(named) ^ set(self.shapes))):
            there = "in a shard but not in it" if wrong[0] in self.shapes else "in no shard"
            raise InputError(f"{index}: {wrong[0]} is {there}")

    def _read_header(self, file: Path) -> None:
        if not file.is_file():
            raise InputError(f"{file}: weights: expected this file, it is not there")
        try:
            with safe_open(file, "pt") as shard:
                for name in shard.keys():
                    self.shapes[name] = tuple(shard.get_slice(name).get_shape())
                    self._file_of[name] = file
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a whole safetensors file: {error}") from error

    def check(self, expected: Mapping[str, tuple[int, ...]], *, spare: tuple[str, ...] = ()) -> None:
        """InputError unless there are exactly these weights, of these shapes; names that begin as in `spare` may be."""
        for name, shape in expected.items():
            if name not in self.shapes:
                raise InputError(f"{self.folder}: the weights lack {name}")
            if self.shapes[name] != shape:
                raise InputError(
                    f"{self.folder}: {name}: expected shape {list(shape)} by config.json, got {list(self.shapes[name])}"
                )
        strange = sorted(name for name in self.shapes if name not in expected and not name.startswith(spare))
        if strange:
            raise InputError(f"{self.folder}: the weights hold {strange[0]}, for which config.json has no place")

    def read(self, names: Iterable[str], dtype: torch.dtype | str) -> dict[str, Tensor]:
        """Weights by name, in a dtype or, "auto", in their own."""
        state: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        for file, wanted in by_file.items():
            with safe_open(file, "pt") as shard:
                for name in wanted:
                    tensor = shard.get_tensor(name)
                    state[name] = tensor if dtype == "auto" else tensor.to(dtype)
        return state


def check_network(folder: str | Path) -> VitaConfig:
    """Check an LLM's config and its weights' names and shapes; nothing is allocated. InputError says what is wrong."""
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("meta"):
        network = VitaForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    Checkpoint(folder).check(shapes, spare=AUDIO if config.hears_features else ())
    return config


def load_network(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> VitaForCausalLM:
    """The LLM with its multi-token prediction, alone, on the CPU, from a published folder. dtype "auto": its own.

    InputError unless every weight is there and no other, but for the user audio's of Plus.
    """
    folder = Path(folder)
    config = check_network(folder)
    network = VitaForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return network.eval()


def read_beside(folder: str | Path) -> dict[str, bytes]:
    """What stands beside the weights, by file name: to be written again with other weights."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in _BESIDE and file.is_file())
    return {file.name: file.read_bytes() for file in files if file.name != INDEX}


def save(
    folder: str | Path,
    beside: Mapping[str, bytes],
    network: VitaForCausalLM,
    audio: Mapping[str, Tensor] | None = None,
    *,
    max_shard_size: str = "5GB",
) -> None:
    """Write a folder as it is published, in the original's names and with its config.json, but for the weights' type.

    beside: of the folder that the weights came from (`read_beside`); audio: for Plus, `UserAudio.published()`.
    """
    folder = Path(folder)
    if network.config.hears_features != (audio is not None):
        raise ValueError("the user audio's weights are saved with Plus, and with no other")
    folder.mkdir(parents=True, exist_ok=True)
    # Also removes what an earlier save left under these names.
    save_torch_state_dict(dict(network.state_dict()) | dict(audio or {}), folder, max_shard_size=max_shard_size)
    said = json.loads(beside["config.json"]) | {"torch_dtype": str(network.dtype).removeprefix("torch.")}
    said.pop("dtype", None)  # a later transformers' name for the same
    config = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    for name, content in {**beside, "config.json": config}.items():
        write_atomically(folder / name, content)
