"""A published folder's weights: safetensors, whole or in shards with an index, read part by part and written whole."""

from pathlib import Path

import torch
from torch import nn

from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.models.vita.config import VitaConfig, read_config
from elocute.models.vita.network import Projector, VitaForCausalLM

ENCODER = "model.audio_model."
"""How the names of Plus's audio encoder begin: the LLM is loaded without it, and it without the LLM."""
_STATE = "model.audio_projection.pre_proj_layernorm.weight"
_HEAD = "lm_head.weight"


def check_network(folder: str | Path) -> VitaConfig:
    """Check an LLM's config and its weights' names and shapes; nothing is allocated. InputError says what is wrong."""
    folder = Path(folder)
    config = read_config(folder)
    shapes = Shards.open(folder).shapes("", skip=(ENCODER,) if config.hears_features else ())
    if config.hears_features and _STATE in shapes:
        config.audio_state_size = shapes[_STATE][0]  # no key of config.json says it
    check_fit(without_weights(lambda: VitaForCausalLM(config)), shapes, str(folder))
    return config


def load_network(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> VitaForCausalLM:
    """The LLM with its multi-token prediction, on the CPU, from a published folder. dtype "auto": its own.

    InputError unless every weight is there and no other, but for those of Plus's audio encoder.
    """
    folder = Path(folder)
    config = check_network(folder)
    network = VitaForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return network.eval()


def load_mtp(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> VitaForCausalLM:
    """Multi-token prediction alone: the depths and what they share with the LLM, embeddings, norm and head.

    There are no main layers in it: ask for its depths by `mtp`. InputError for a folder that has none.
    """
    config = check_network(folder)
    if not config.n_mtp:
        raise InputError(f"{folder}: num_nextn_predict_layers: expected 1 or more: it has no multi-token prediction")
    main = tuple(f"model.layers.{layer}." for layer in range(config.n_main))
    state = Shards.open(folder).read("", dtype, skip=(*main, ENCODER))
    depths = {f"model.layers.{config.n_main + depth}.": f"model.layers.{depth}." for depth in range(config.n_mtp)}
    for before, now in depths.items():
        state |= {now + name.removeprefix(before): state.pop(name) for name in [*state] if name.startswith(before)}
    config.num_hidden_layers = config.n_mtp
    network = without_weights(lambda: VitaForCausalLM(config))
    network.load_state_dict(state, assign=True)
    return network.eval()


def load_projector(folder: str | Path, *, dtype: torch.dtype | str = torch.float32) -> Projector:
    """What stands between Plus's audio encoder and its LLM, alone. InputError for a folder that has none."""
    config = check_network(folder)
    if not config.hears_features:
        raise InputError(f"{folder}: {config.model_type} hears units; only a Plus folder has a projector")
    projector = without_weights(lambda: Projector(config.audio_state_size, config.hidden_size))
    projector.load_state_dict(Shards.open(folder).read("model.audio_projection.", dtype), assign=True)
    return projector.eval()


def drop_padding(network: VitaForCausalLM, size: int) -> None:
    """Leave the head without the rows behind the `size` ids that there are: padding is neither sampled nor scored."""
    network.lm_head.weight = nn.Parameter(network.lm_head.weight.detach()[:size].clone())
    network.lm_head.out_features = size


def save(folder: str | Path, source: str | Path, network: VitaForCausalLM) -> None:
    """Write a folder as the published one: the same files, the network's tensors in the type they now have.

    All else, Plus's audio encoder and the licence too, is copied from `source`, the folder that the network was loaded
    from; config.json says the new type. InputError when that is gone.
    """
    shards, state = Shards.open(source), dict(network.state_dict())
    padding = shards.read(_HEAD)[""][len(state[_HEAD]) :]
    state[_HEAD] = torch.cat([state[_HEAD], padding.to(state[_HEAD])])
    shards.save(folder, state, dtype=network.dtype)
