"""Tiny random parts of Kimi-Audio's voice in the published folder layout: `audio_detokenizer` and `vocoder`."""

import json
from pathlib import Path

import torch
import yaml

CODES, MELS, HIDDEN, DEPTH, HEADS, MLP, SINES = 48, 6, 16, 2, 2, 24, 8
YAML = {
    "model": {
        "dit": {
            "input_size": MELS,
            "semantic_vocab_size": CODES,
            "hidden_size": HIDDEN,
            "depth": DEPTH,
            "num_heads": HEADS,
            "use_rope": True,
            "rope_params": {"max_position_embeddings": 4096, "rope_base": 10000.0},
        }
    },
    "normalize_mel": True,
    "mel_mean": -4.5,
    "mel_std": 2.5,
}
VOCODER = {
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "num_mels": MELS,
    "sampling_rate": 24000,
    "upsample_rates": [5, 2, 2, 2, 2, 3, 2],
    "upsample_kernel_sizes": [9, 4, 4, 4, 4, 5, 4],
    "upsample_initial_channel": 128,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}


def build(folder: Path) -> Path:
    """Write both folders; their weights differ from run to run in nothing."""
    flow, vocoder = folder / "audio_detokenizer", folder / "vocoder"
    for part in (flow, vocoder):
        part.mkdir(parents=True, exist_ok=True)
    (flow / "config.yaml").write_text(yaml.safe_dump(YAML))
    generator = torch.Generator().manual_seed(7)
    state = {name: _noise(shape, generator) for name, shape in flow_shapes().items()}
    more = {"discriminator.weight": torch.ones(3)}  # the published file holds more than is needed
    named = {f"speech_model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": named | more, "epoch": 3}, flow / "model.pt")
    (vocoder / "config.json").write_text(json.dumps(VOCODER))
    torch.save({"generator": vocoder_state(generator)}, vocoder / "model.pt")
    return folder


def flow_shapes() -> dict[str, list[int]]:
    named = {
        "t_embedder.mlp.0": (HIDDEN, SINES),
        "t_embedder.mlp.2": (HIDDEN, HIDDEN),
        "input_linear": (HIDDEN, MELS),
        "final_layer.linear": (MELS, HIDDEN),
        "final_layer.adaLN_modulation.1": (2 * HIDDEN, HIDDEN),
    }
    for block in range(DEPTH):
        named |= {
            f"blocks.{block}.attn.qkv": (3 * HIDDEN, HIDDEN),
            f"blocks.{block}.attn.proj": (HIDDEN, HIDDEN),
            f"blocks.{block}.mlp.fc1": (MLP, HIDDEN),
            f"blocks.{block}.mlp.fc2": (HIDDEN, MLP),
            f"blocks.{block}.adaLN_modulation.1": (6 * HIDDEN, HIDDEN),
        }
    shapes = {"semantic_token_embedding.weight": [CODES + 1, HIDDEN]}
    for name, (rows, columns) in named.items():
        shapes |= {f"{name}.weight": [rows, columns], f"{name}.bias": [rows]}
    return shapes


def vocoder_state(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weight norm in two parts; the taps of the low-pass filters lie among the weights."""
    state, width = {}, VOCODER["upsample_initial_channel"]

    def convolution(name: str, shape: list[int], bias: int) -> None:
        direction = torch.randn(shape, generator=generator)
        state[f"{name}.weight_v"] = direction
        state[f"{name}.weight_g"] = 0.6 + 0.1 * torch.rand(shape[0], 1, 1, generator=generator)
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(bias, generator=generator)

    def activation(name: str, channels: int) -> None:
        for part in ("alpha", "beta"):
            state[f"{name}.act.{part}"] = 0.2 * torch.randn(channels, generator=generator)
        taps = torch.rand(1, 1, 12, generator=generator)  # unlike those that would be computed
        state[f"{name}.upsample.filter"] = state[f"{name}.downsample.lowpass.filter"] = taps / taps.sum()

    convolution("conv_pre", [width, MELS, 7], width)
    kernels, dilations = VOCODER["resblock_kernel_sizes"], VOCODER["resblock_dilation_sizes"]
    for stage, size in enumerate(VOCODER["upsample_kernel_sizes"]):
        convolution(f"ups.{stage}.0", [width, width // 2, size], width // 2)
        width //= 2
        for block, (kernel, steps) in enumerate(zip(kernels, dilations, strict=True)):
            name = f"resblocks.{stage * len(kernels) + block}"
            for index in range(len(steps)):
                convolution(f"{name}.convs1.{index}", [width, width, kernel], width)
                convolution(f"{name}.convs2.{index}", [width, width, kernel], width)
            for index in range(2 * len(steps)):
                activation(f"{name}.activations.{index}", width)
    activation("activation_post", width)
    convolution("conv_post", [1, width, 7], 1 if VOCODER["use_bias_at_final"] else 0)
    return state


def _noise(shape: list[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * (0.7 / shape[-1] ** 0.5 if len(shape) == 2 else 0.2)
