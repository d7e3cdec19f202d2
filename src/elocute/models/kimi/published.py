"""The published folder of a Kimi-Audio: weights in shards that an index names, read as they are and written again so.

    config.json, model.safetensors.index.json and its shards, tiktoken.model, tokenizer_config.json, the authors' code
    whisper-large-v3/, audio_detokenizer/, vocoder/: parts of their own

The shards' names follow no pattern (35 "of 35", and one "36 of 36"), so that the index alone says which there are.
Beside the weights stand the rotary frequencies of every layer. They are computed, not learnt, but they betray the
rope_theta that the weights were trained with: a config.json that says another is refused.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError

from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.models.kimi.config import KimiConfig, read_config
from elocute.models.kimi.network import KimiForCausalLM, VQAdaptor

_COMPUTED = ".self_attn.rotary_emb.inv_freq"


def load_network(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> KimiForCausalLM:
    """The network with both heads, on the CPU; dtype "auto": that of config.json.

    InputError unless all weights are there and, but for the rotary frequencies, no others.
    """
    folder = Path(folder)
    config = check_network(folder)
    try:
        network, found = KimiForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: not a Kimi-Audio that transformers can load: {reason}") from error
    if found["missing_keys"]:
        raise InputError(f"{folder}: the weights lack {sorted(found['missing_keys'])[0]}")
    return network.eval()


def load_adaptor(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> VQAdaptor:
    """The adaptor of Whisper's features alone."""
    folder = Path(folder)
    adaptor = VQAdaptor(check_network(folder))
    adaptor.load_state_dict(Shards.open(folder).read("model.vq_adaptor."))
    return adaptor.to(dtype).eval()


def save_network(network: KimiForCausalLM, source: str | Path, folder: str | Path) -> None:
    """Write a folder as the published one: the same files, the network's tensors in the type they now have.

    All else, the rotary frequencies, the sound's parts and the licence too, comes from `source`, the folder that the
    network was loaded from. An adapter must have been merged.
    """
    Shards.open(source).save(folder, network.state_dict(), dtype=network.dtype)


def check_network(folder: Path) -> KimiConfig:
    """Read all but the weights themselves, and compare names and shapes. InputError for what is not as it must be."""
    config, shards = read_config(folder), Shards.open(folder)
    computed = {name: shards.read(name)[""] for name in shards.names() if name.endswith(_COMPUTED)}
    shapes = shards.shapes("", skip=tuple(computed))
    check_fit(without_weights(lambda: KimiForCausalLM(config)), shapes, str(folder))
    _check_rotary(folder, config, computed)
    return config


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
