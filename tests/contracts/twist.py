"""Folders as TWIST publishes them, tiny and random: transformers' own names of OPT and LLaMA, and `offset`."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.contracts.unit_sound import UNITS

CONTEXT, WIDTH, INNER, LAYERS, HEADS, NARROW = 160, 32, 64, 2, 4, 16
OFFSET = 4
"""Here; the published value is the folder's to say."""


def opt(folder: Path, offset: int = OFFSET, before: bool = False, pickled: bool = False) -> Path:
    """350M's kind: norms behind the blocks, projections around them; `before`: 1.3B's, norms before, no projections.

    pickled: in `pytorch_model.bin`, as transformers wrote before safetensors.
    """
    narrow = WIDTH if before else NARROW
    said = {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": UNITS + offset, "hidden_size": WIDTH,
        "ffn_dim": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "word_embed_proj_dim": narrow,
        "do_layer_norm_before": before, "max_position_embeddings": CONTEXT, "activation_function": "relu",
        "_remove_final_layer_norm": False, "dropout": 0.1, "attention_dropout": 0.0, "layerdrop": 0.0,
        "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "prefix": "</s>", "offset": offset,
        "torch_dtype": "float32", "transformers_version": "4.28.1", "use_cache": True,
    }  # fmt: skip
    at = "model.decoder"
    shapes = {
        f"{at}.embed_tokens.weight": [UNITS + offset, narrow],
        f"{at}.embed_positions.weight": [CONTEXT + 2, WIDTH],
    }
    if before:
        shapes |= norm(f"{at}.final_layer_norm")
    else:
        shapes |= {f"{at}.project_in.weight": [WIDTH, narrow], f"{at}.project_out.weight": [narrow, WIDTH]}
    for layer in range(LAYERS):
        here = f"{at}.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{here}.self_attn.{name}", WIDTH, WIDTH)
        shapes |= linear(f"{here}.fc1", INNER, WIDTH) | linear(f"{here}.fc2", WIDTH, INNER)
        shapes |= norm(f"{here}.self_attn_layer_norm") | norm(f"{here}.final_layer_norm")
    state = draw(shapes)
    return write(folder, said, state | {"lm_head.weight": state[f"{at}.embed_tokens.weight"].clone()}, pickled)


def llama(folder: Path, offset: int = OFFSET) -> Path:
    """7B's kind."""
    said = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": UNITS + offset,
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1, "offset": offset, "initializer_range": 0.02,
        "torch_dtype": "float32", "transformers_version": "4.28.1", "use_cache": True,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [UNITS + offset, WIDTH], "lm_head.weight": [UNITS + offset, WIDTH]}
    shapes |= {"model.norm.weight": [WIDTH]}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": [WIDTH, WIDTH] for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": [INNER, WIDTH] for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": [WIDTH, INNER]}
        shapes |= {f"{at}.{name}_layernorm.weight": [WIDTH] for name in ("input", "post_attention")}
    return write(folder, said, draw(shapes))


def linear(name: str, rows: int, columns: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [rows, columns], f"{name}.bias": [rows]}


def norm(name: str) -> dict[str, list[int]]:
    return {f"{name}.weight": [WIDTH], f"{name}.bias": [WIDTH]}


def draw(shapes: dict[str, list[int]], seed: int = 3) -> dict[str, torch.Tensor]:
    """Large enough that a wrong position, or a bias that is left out, shows."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        state[name] = 0.1 * noise if len(shape) == 1 else noise * (0.6 if "embed" in name else 1.2 / shape[1] ** 0.5)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    return state


def write(folder: Path, said: dict, state: dict[str, torch.Tensor], pickled: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(said, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
