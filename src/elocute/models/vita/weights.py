"""A published folder's weights: safetensors, whole or in shards with an index, read part by part and written whole."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from elocute.data.files import write_atomically
from elocute.data.shards import INDEX, Shards, check_fit, without_weights
from elocute.models.vita.config import VitaConfig, read_config
from elocute.models.vita.network import VitaForCausalLM

AUDIO = ("model.audio_model.", "model.audio_projection.")
"""Where the weights of a Plus folder's user audio begin: the LLM is loaded without them, and they without it."""
_BESIDE = {".json", ".jinja", ".txt", ".model", ".mvn", ".yaml", ".py"}
"""What else a published folder holds: tokenizer, the audio encoder's statistics, the original's code (never run)."""


def check_network(folder: str | Path) -> VitaConfig:
    """Check an LLM's config and its weights' names and shapes; nothing is allocated. InputError says what is wrong."""
    folder = Path(folder)
    config = read_config(folder)
    shapes = Shards.open(folder).shapes("", skip=AUDIO if config.hears_features else ())
    check_fit(without_weights(lambda: VitaForCausalLM(config)), shapes, str(folder))
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
