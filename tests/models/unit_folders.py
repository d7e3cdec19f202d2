"""Model folders of tiny textless LMs with random weights, in the layouts in which they are published."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.speech.unit_models import UNITS

CONTEXT = 96
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
NETWORKS = {
    "opt": lambda vocab: OPTForCausalLM(  # like OPT-350M: norms behind the blocks, projections around them
        OPTConfig(**SIZES, vocab_size=vocab, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "qwen2": lambda vocab: Qwen2ForCausalLM(
        Qwen2Config(
            **SIZES, vocab_size=vocab, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        )
    ),
    "llama": lambda vocab: LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=vocab, intermediate_size=48)),
}  # fmt: skip


def network(kind: str, vocab: int):
    torch.manual_seed(3)
    model = NETWORKS[kind](vocab).eval()
    with torch.no_grad():  # far enough from uniform that a wrong position shows
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def settings(folder: Path, codec: Path, **more) -> Path:
    (folder / "elocute.json").write_text(json.dumps({"kind": "units", "codec": str(codec), **more}))
    return folder


def twist(folder: Path, codec: Path, kind: str = "opt", offset: int = 4):
    """A folder as TWIST is published: transformers' own, with an `offset` in the config."""
    model = network(kind, UNITS + offset)
    model.config.offset = offset
    model.save_pretrained(folder)
    return settings(folder, codec), model


def ending(folder: Path, codec: Path) -> Path:
    """A folder of our own: about every twentieth token is the end."""
    network("llama", UNITS + 2).save_pretrained(folder)
    return settings(folder, codec, unit_0=2, bos=1, eos=1)


def slamkit(folder: Path, codec: Path, kind: str = "qwen2", left_out: tuple[str, ...] = ("lm_head.weight",)):
    """A folder as SlamKit publishes: its own config around the base's, weights under `lm.`, a tied one left out."""
    model = network(kind, UNITS + 2)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"lm.{name}": tensor.clone() for name, tensor in model.state_dict().items() if name not in left_out}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    base = model.config.to_dict() | {"_attn_implementation_autoset": True, "vocab_size": 50000}
    if theta := base.pop("rope_parameters", {}).get("rope_theta"):
        base["rope_theta"] = theta  # as transformers wrote it before version 5
    wrapper = {"architectures": ["UnitLM"], "model_type": "speech_language_model", "base_model_name": "x/y"}
    wrapper |= {"base_config": base, "vocab_size": UNITS + 2, "twist_init": True, "use_cache": True}
    (folder / "config.json").write_text(json.dumps(wrapper))
    return settings(folder, codec), model
