"""The published folder of a Kimi-Audio: weights in shards that an index names, read as they are and written again so.

    config.json, model.safetensors.index.json and its shards, tiktoken.model, tokenizer_config.json, the authors' code
    whisper-large-v3/, audio_detokenizer/, vocoder/: parts of their own

The shards' names follow no pattern (35 "of 35", and one "36 of 36"), so that the index alone says which there are.
Beside the weights stand the rotary frequencies of every layer. They are computed, not learnt, but they betray the
rope_theta that the weights were trained with: a config.json that says another is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from elocute.data.shards import INDEX, SINGLE, Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.models.kimi.config import KimiConfig, read_config, read_published
from elocute.models.kimi.network import KimiForCausalLM, VQAdaptor

_COMPUTED = ".self_attn.rotary_emb.inv_freq"
_SMALL = 16 << 20


@dataclass(frozen=True)
class Published:
    """What a folder holds beside the weights, so that `save_network` writes it again.

    places: which file each tensor lies in; computed: the rotary frequencies that were stored; config: config.json;
    beside: name → bytes of the small files on the folder's top level (tokenizer, the authors' code).
    """

    places: dict[str, str]
    computed: dict[str, torch.Tensor]
    config: dict
    beside: dict[str, bytes]


def load_network(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> KimiForCausalLM:
    """The network with both heads, on the CPU; dtype "auto": that of config.json.

    It carries, as `published`, what `save_network` needs. InputError unless all weights are there and, but for the
    rotary frequencies, no others.
    """
    folder = Path(folder)
    config, published = check_network(folder)
    try:
        network, found = KimiForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: not a Kimi-Audio that transformers can load: {reason}") from error
    if found["missing_keys"]:
        raise InputError(f"{folder}: the weights lack {sorted(found['missing_keys'])[0]}")
    network.published = published
    return network.eval()


def load_adaptor(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> VQAdaptor:
    """The adaptor of Whisper's features alone."""
    folder = Path(folder)
    config, _ = check_network(folder)
    adaptor = VQAdaptor(config)
    adaptor.load_state_dict(Shards.open(folder).read("model.vq_adaptor."))
    return adaptor.to(dtype).eval()


def save_network(network: KimiForCausalLM, folder: str | Path) -> None:
    """Write a loaded network as it was published: the same tensors in the same files, the tokenizer, the code.

    An adapter must have been merged. config.json says the type that is written; the sound's parts are not the
    network's and stay where they are.
    """
    folder, published = Path(folder), network.published
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in published.beside.items():
        (folder / name).write_bytes(content)
    tensors = network.state_dict() | published.computed
    for place in sorted(set(published.places.values())):
        inside = [name for name in tensors if published.places[name] == place]
        shard = {name: tensors[name].detach().cpu().contiguous().clone() for name in inside}
        save_file(shard, folder / place, metadata={"format": "pt"})
    if set(published.places.values()) != {SINGLE}:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": published.places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    dtype = str(network.dtype).removeprefix("torch.")
    config = {key: value for key, value in published.config.items() if key != "dtype"} | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_network(folder: Path) -> tuple[KimiConfig, Published]:
    """Read all but the weights themselves, and compare names and shapes. InputError for what is not as it must be."""
    config, shards = read_config(folder), Shards.open(folder)
    computed = {name: shards.read(name)[""] for name in shards.names() if name.endswith(_COMPUTED)}
    shapes = shards.shapes("", skip=tuple(computed))
    check_fit(without_weights(lambda: KimiForCausalLM(config)), shapes, str(folder))
    _check_rotary(folder, config, computed)
    named = {INDEX, "config.json", *shards.files.values()}
    small = (file for file in folder.iterdir() if file.is_file() and file.stat().st_size <= _SMALL)
    beside = {file.name: file.read_bytes() for file in small if file.name not in named}
    return config, Published(shards.files, computed, read_published(folder), beside)


def _check_rotary(folder: Path, config: KimiConfig, computed: dict[str, torch.Tensor]) -> None:
    theta, half = config.rope_parameters["rope_theta"], config.hidden_size // config.num_attention_heads // 2
    expected = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    for name, stored in computed.items():
        if stored.shape != expected.shape or not torch.allclose(stored.double(), expected, rtol=0.02, atol=0):
            slowest = float(stored.double().flatten()[-1])
            found = slowest ** (-half / (half - 1)) if half > 1 and stored.shape == expected.shape else None
            other = "" if found is None else f", they stand for about {found:.2g}"
            raise InputError(
                f"{folder}: rope_theta: config.json says {theta:g}, which does not fit the weights' {name}{other}"
            )
