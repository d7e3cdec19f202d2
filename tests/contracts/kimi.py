"""A tiny random Kimi-Audio in exactly the published folder layout: names of files, keys, tokens and parameters."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

MERGED = [
    b"th", b"the", b" t", b" the", b"in", b"ing", b"aa", b"aaa", b"aaaa", b"\n\n", b"'s", b" a", b" an", b"he", b"hel",
    b"lo", b"hello", b"12", b"<|", b"|>", b"im", b"_msg", b"\xe4\xbd", b"\xe4\xbd\xa0", b"\xc3\xa9", b"e\xcc",
    b"e\xcc\x81", b"  ", b"   ", b"sp", b"spe", b"ak", b"ea", b"speak",
]  # fmt: skip
"""Tokens after the 256 bytes, by rank."""
NAMED = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_msg_end|>",
    3: "<|im_user_msg_start|>",
    4: "<|im_assistant_msg_start|>",
    18: "<|im_media_begin|>",
    20: "<|im_media_end|>",
    23: "<|im_kimia_text_blank|>",
    24: "<|im_kimia_text_eos|>",
    27: "<|im_kimia_user_msg_start|>",
    28: "<|im_kimia_assistant_msg_start|>",
    32: "<|im_kimia_speech_ct_id|>",
    33: "<|im_kimia_speech_ctd_id|>",
    38: "[UNK]",
    39: "[PAD]",
}
"""Special tokens by their place behind the text tokens; the published block is longer, the places are the same."""
N_BASE = 256 + len(MERGED)
OFFSET = N_BASE + 40
N_CODES = 48


@dataclass(frozen=True)
class Sizes:
    hidden: int = 32
    ffn: int = 48
    heads: int = 4
    kv_heads: int = 2
    layers: int = 4
    mimo: int = 2
    branch: int = 2
    whisper: int = 8
    theta: float = 1e6
    config: dict = field(default_factory=dict)


def config(sizes: Sizes = Sizes()) -> dict:
    """config.json, the published keys."""
    return {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_moonshot_kimia.KimiAudioConfig",
            "AutoModel": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM",
            "AutoModelForCausalLM": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM",
        },
        "bos_token_id": N_BASE,
        "eos_token_ids": [N_BASE + 2, N_BASE + 20],
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.ffn,
        "kimia_adaptor_input_dim": 4 * sizes.whisper,
        "kimia_audio_output_vocab": N_CODES + 40,
        "kimia_media_begin": N_BASE + 18,
        "kimia_media_end": N_BASE + 20,
        "kimia_mimo_audiodelaytokens": 6,
        "kimia_mimo_layers": sizes.mimo,
        "kimia_mimo_transformer_from_layer_index": sizes.branch,
        "kimia_text_output_vocab": OFFSET,
        "kimia_token_offset": OFFSET,
        "max_position_embeddings": 8192,
        "model_type": "moonshot_kimia",
        "num_attention_heads": sizes.heads,
        "num_audio_special_tokens": 40,
        "num_base_tokens": N_BASE,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "pad_token_id": N_BASE + 39,
        "rms_norm_eps": 1e-06,
        "rope_theta": sizes.theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.1",
        "use_cache": True,
        "use_whisper_feature": True,
        "vocab_size": OFFSET + N_CODES,
    } | sizes.config


def shapes(sizes: Sizes = Sizes()) -> dict[str, list[int]]:
    """Parameter → shape."""
    hidden, vocab = sizes.hidden, OFFSET + N_CODES
    narrow = hidden // sizes.heads * sizes.kv_heads
    layer = {
        "self_attn.q_proj.weight": [hidden, hidden],
        "self_attn.q_proj.bias": [hidden],
        "self_attn.k_proj.weight": [narrow, hidden],
        "self_attn.k_proj.bias": [narrow],
        "self_attn.v_proj.weight": [narrow, hidden],
        "self_attn.v_proj.bias": [narrow],
        "self_attn.o_proj.weight": [hidden, hidden],
        "mlp.gate_proj.weight": [sizes.ffn, hidden],
        "mlp.up_proj.weight": [sizes.ffn, hidden],
        "mlp.down_proj.weight": [hidden, sizes.ffn],
        "input_layernorm.weight": [hidden],
        "post_attention_layernorm.weight": [hidden],
    }
    named = {f"{stack}{name}": shape for stack in stacks(sizes) for name, shape in layer.items()}
    adaptor = "model.vq_adaptor.layers"
    return named | {
        f"{adaptor}.0.weight": [hidden, 4 * sizes.whisper],
        f"{adaptor}.0.bias": [hidden],
        f"{adaptor}.3.weight": [hidden, hidden],
        f"{adaptor}.3.bias": [hidden],
        f"{adaptor}.4.weight": [hidden],
        f"{adaptor}.4.bias": [hidden],
        "model.embed_tokens.weight": [vocab, hidden],
        "model.norm.weight": [hidden],
        "lm_head.weight": [vocab, hidden],
        "mimo_output.weight": [vocab, hidden],
        "model.mimo_norm.weight": [hidden],
    }


def stacks(sizes: Sizes) -> list[str]:
    """The prefixes of all layers."""
    main = [f"model.layers.{index}." for index in range(sizes.layers)]
    return main + [f"model.mimo_layers.{index}." for index in range(sizes.mimo)]


def build(folder: Path, sizes: Sizes = Sizes()) -> Path:
    """Write the folder; its network differs from run to run in nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(sizes), indent=2))
    for name in ("configuration_moonshot_kimia.py", "modeling_moonshot_kimia.py", "tokenization_kimia.py"):
        (folder / name).write_text("raise RuntimeError('remote code must not run')\n")
    _tokenizer(folder)
    _weights(folder, sizes)
    _whisper(folder / "whisper-large-v3", sizes)
    return folder


def _tokenizer(folder: Path) -> None:
    tokens = [bytes([value]) for value in range(256)] + MERGED
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    kept = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    said = {
        "added_tokens_decoder": {str(N_BASE + place): {"content": name, **kept} for place, name in NAMED.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_kimia.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=2))


def _weights(folder: Path, sizes: Sizes) -> None:
    """One layer to a shard, the adaptor in the last of these; what is left in one more, whose name counts anew."""
    generator = torch.Generator().manual_seed(5)
    half = sizes.hidden // sizes.heads // 2
    inv_freq = (sizes.theta ** (-torch.arange(half) / half)).to(torch.bfloat16)
    prefixes = [*stacks(sizes), "model.vq_adaptor."]
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes(sizes).items():
        at = next((index for index, prefix in enumerate(prefixes, 1) if name.startswith(prefix)), None)
        count = len(prefixes)
        file = f"model-{at}-of-{count}" if at else f"model-{count + 1}-of-{count + 1}"
        noise = torch.randn(shape, generator=generator)
        tensor = noise * (0.5 if "embed" in name else 1.5 / shape[-1] ** 0.5) if len(shape) == 2 else 0.2 * noise
        if name.endswith("norm.weight") or name.endswith("layers.4.weight"):
            tensor = tensor + 1
        shards.setdefault(f"{file}.safetensors", {})[name] = tensor
    for index, prefix in enumerate(stacks(sizes), 1):
        file = f"model-{index}-of-{len(prefixes)}.safetensors"
        shards[file][f"{prefix}self_attn.rotary_emb.inv_freq"] = inv_freq.clone()
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    places = {name: file for file, tensors in shards.items() for name in tensors}
    size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _whisper(folder: Path, sizes: Sizes) -> None:
    torch.manual_seed(6)
    tiny = WhisperConfig(
        vocab_size=20,
        num_mel_bins=128,
        d_model=sizes.whisper,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        init_std=0.3,
    )
    model = WhisperForConditionalGeneration(tiny)
    with torch.no_grad():
        for parameter in model.model.encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.to_dict() | {"architectures": [type(model).__name__]}))
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def streams(seed: int, batch: int, length: int, sizes: Sizes = Sizes()) -> dict[str, torch.Tensor]:
    """Random cells of both streams, some of them heard."""
    generator = torch.Generator().manual_seed(seed)
    continuous = torch.rand(batch, length, generator=generator) < 0.3
    return {
        "audio_ids": torch.randint(1, OFFSET + N_CODES, (batch, length), generator=generator),
        "text_ids": torch.randint(1, OFFSET + N_CODES, (batch, length), generator=generator),
        "features": torch.randn(int(continuous.sum()), 4 * sizes.whisper, generator=generator),
        "continuous": continuous,
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that the shards which the index names hold."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {name: load_file(folder / file)[name] for name, file in index["weight_map"].items()}
