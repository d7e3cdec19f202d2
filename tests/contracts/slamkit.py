"""Folders as SlamKit publishes them, tiny and random: its own config around the base's, weights under `lm.`."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.contracts import twist
from tests.contracts.unit_sound import UNITS

KV_HEADS = 2
EMBEDDINGS = ("lm.model.embed_tokens.weight", "lm.lm_head.weight")
"""One tensor, stored under one of these or both."""


def slam(folder: Path, stored: tuple[str, ...] = EMBEDDINGS[:1], theta: float = 10000.0) -> Path:
    """Slam's kind: Qwen2.5 over units, head tied, the rotary base changed to `theta` by its older key."""
    base = {
        "_name_or_path": "Qwen/Qwen2.5-0.5B", "_attn_implementation_autoset": True,
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936, "hidden_size": twist.WIDTH,
        "intermediate_size": twist.INNER, "num_hidden_layers": twist.LAYERS, "num_attention_heads": twist.HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": twist.CONTEXT, "max_window_layers": 24,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": theta,
        "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "bfloat16", "use_cache": True,
    }  # fmt: skip
    said = {
        "architectures": ["UnitLM"], "base_config": base, "base_model_name": "Qwen/Qwen2.5-0.5B",
        "max_position_embeddings": twist.CONTEXT, "model_type": "speech_language_model", "tie_word_embeddings": True,
        "torch_dtype": "float32", "transformers_version": "4.48.3", "twist_init": True, "use_cache": True,
        "vocab_size": UNITS + 2,
    }  # fmt: skip
    narrow = twist.WIDTH // twist.HEADS * KV_HEADS
    shapes = {EMBEDDINGS[0]: [UNITS + 2, twist.WIDTH], "lm.model.norm.weight": [twist.WIDTH]}
    for layer in range(twist.LAYERS):
        at = f"lm.model.layers.{layer}"
        for name, rows in (("q", twist.WIDTH), ("k", narrow), ("v", narrow)):
            shapes |= twist.linear(f"{at}.self_attn.{name}_proj", rows, twist.WIDTH)
        shapes |= {f"{at}.self_attn.o_proj.weight": [twist.WIDTH, twist.WIDTH]}
        shapes |= {f"{at}.mlp.{name}_proj.weight": [twist.INNER, twist.WIDTH] for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": [twist.WIDTH, twist.INNER]}
        shapes |= {f"{at}.{name}_layernorm.weight": [twist.WIDTH] for name in ("input", "post_attention")}
    state = twist.draw(shapes)
    table = state.pop(EMBEDDINGS[0])
    state |= {name: table.clone() for name in stored}
    return twist.write(folder, said, state)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a folder's file holds."""
    return load_file(folder / "model.safetensors")
