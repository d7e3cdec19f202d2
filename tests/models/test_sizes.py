"""How large a model is, from what its files say: as many numbers as are there once it is loaded, and none made."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config
from transformers.cache_utils import DynamicCache

from elocute.errors import InputError
from elocute.models.sizes import Sizes, sizes_by_config, sizes_of
from tests.models.unit_folders import slamkit

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def test_a_model_of_7_billion_by_hand():
    """Qwen2.5-7B: its widths by its config.json, the counts by pencil."""
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18_944, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = sizes_by_config(config)
    attention = 2 * 3584 * 3584 + 2 * 512 * 3584 + 3584 + 2 * 512
    layer = attention + 3 * 3584 * 18_944 + 2 * 3584
    assert sizes.weights == 2 * 152_064 * 3584 + 28 * layer + 3584 == 7_615_616_512
    assert (sizes.layers, sizes.vocabulary) == (28, (152_064, 3584))
    assert sizes.keys_values == 28 * 2 * 4 * 128
    assert sizes.activations == 28 * (9 * 3584 + 2 * 512 + 4 * 18_944)
    assert sizes.widest == 18_944
    assert sizes.joined == 28 * (2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 3584 * 18_944)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True),
        OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
        GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4),
    ],
    ids=lambda config: config.model_type,
)
def test_they_are_those_of_the_network(config, tmp_path):
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    sizes = sizes_of(tmp_path)
    assert sizes.weights == sum(weight.numel() for weight in network.parameters()) == sizes_by_config(config).weights
    cache = network(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert sizes.keys_values * 2 == kept
    assert sizes.layers == 3
    assert sizes.lean == sizes_by_config(config).lean == (config.model_type == "llama")


def test_a_config_around_another_says_what_decodes_it(tmp_path):
    for kind, lean in (("qwen2", True), ("opt", False)):
        slamkit(tmp_path / kind, tmp_path / "codec", kind)
        assert sizes_of(tmp_path / kind).lean == lean


@pytest.mark.parametrize(
    ("config", "least", "most"),
    [
        (LlamaConfig(**SMALL, intermediate_size=88), 0.99, 1.01),
        (Qwen2Config(**SMALL, intermediate_size=160, num_key_value_heads=2), 0.99, 1.01),
        (OPTConfig(**SMALL, ffn_dim=128, word_embed_proj_dim=32), 1, 1.3),
    ],
    ids=["llama", "qwen2", "opt"],
)
def test_activations_are_what_a_forward_pass_keeps(config, least, most):
    network = AutoModelForCausalLM.from_config(config)
    assert least < sizes_by_config(config).activations / kept_by(network) < most


@pytest.mark.parametrize(
    ("frozen", "layers"), [(r"embed|layers\.[01]\.", 1), (r"embed|layers", 0), (r"layers", 3), (r"mlp", 3)]
)
@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SMALL, intermediate_size=88), Qwen2Config(**SMALL, intermediate_size=160, num_key_value_heads=2)],
    ids=lambda config: config.model_type,
)
def test_what_is_frozen_keeps_less(config, frozen, layers):
    """Nothing below all that is trained; above it what comes out of a map, and not what goes in."""
    network, sizes = AutoModelForCausalLM.from_config(config), sizes_by_config(config)
    for name, weight in network.named_parameters():
        weight.requires_grad = not re.search(frozen, name)
    trained = {name for name in sizes.shapes if not re.search(frozen, name)}
    reached = sizes.reached(trained)
    assert reached.layers == layers
    if layers:
        assert 0.85 < reached.kept(trained) / kept_by(network) < 1.05
    else:
        assert kept_by(network) < 0.1 * sizes.activations


def test_a_head_says_words_or_the_embeddings_it_is_tied_to():
    own, tied = (LlamaConfig(**SMALL, intermediate_size=88, tie_word_embeddings=of) for of in (False, True))
    assert sizes_by_config(own).heads == {"lm_head.weight"}
    assert sizes_by_config(tied).heads == {"model.embed_tokens.weight"}


def test_what_each_cell_is_run_through_stands_behind_the_backbone():
    layer = {"q_proj.weight": (4, 4)}
    stacks = ("backbone.layers.0.", "backbone.layers.1.", "depth_decoder.layers.0.", "depth_decoder.layers.1.")
    sizes = Sizes({stack + name: shape for stack in stacks for name, shape in layer.items()}, ("depth_decoder.", 8))
    names = list(sizes.shapes)
    assert list(sizes.reached(names[1:2]).shapes) == names[1:]
    assert list(sizes.reached(names[3:]).shapes) == names[3:]
    assert not sizes.reached([]).shapes


def kept_by(network) -> float:
    """Numbers that a step more makes autograd keep."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}

    def kept(steps: int) -> int:
        """Bytes, each tensor once."""
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.base_model(input_ids=torch.zeros(1, steps, dtype=torch.long))
        return sum(storage.nbytes() for place, storage in found.items() if place not in weights)

    return (kept(64) - kept(32)) / 4 / 32


def test_without_safetensors_the_config_says_it(tmp_path):
    config = LlamaConfig(**SMALL, intermediate_size=48)
    config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert sizes_of(tmp_path).weights == sizes_by_config(AutoConfig.from_pretrained(tmp_path)).weights
    (tmp_path / "config.json").write_text('{"model_type": "none of these"}')
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: neither")):
        sizes_of(tmp_path)
