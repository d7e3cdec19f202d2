"""Tiny checkpoints with random weights, in the layouts in which the parts of unit LMs are published."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import HubertConfig, HubertModel

from elocute.speech.hubert import HubertUnits, Reading
from elocute.speech.unit_vocoder import UnitVocoder

UNITS = 20
VOCODER = {
    "resblock": "1", "upsample_rates": [5, 4, 4, 4, 2], "upsample_kernel_sizes": [11, 8, 8, 8, 4],
    "upsample_initial_channel": 32, "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 4]],
    "num_embeddings": UNITS, "embedding_dim": 8, "model_in_dim": 8, "code_hop_size": 640, "f0": False,
    "dur_predictor_params": {
        "encoder_embed_dim": 8, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5
    },
    "sampling_rate": 16000,
}  # fmt: skip


def shake(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that do something: what transformers draws is so small that all frames look alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:  # without a mean, or what all frames share drowns the rest
                noise -= noise.flatten(1).mean(1).view(-1, *[1] * (tensor.ndim - 1))
                gain = 0.5 if tensor.ndim == 2 else 1.5
                tensor.copy_(noise * gain / math.sqrt(tensor[0].numel()))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * (noise.abs() if name.endswith("running_var") else noise))
    return module.eval()


def hubert(folder: Path, layers: int = 3, seed: int = 0) -> Path:
    """A folder like mhubert-base-25hz: eight convolutions, hop 640, a batch norm before the positions."""
    config = HubertConfig(
        conv_dim=[16] * 8, conv_stride=[5, 2, 2, 2, 2, 2, 2, 2], conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2],
        num_feat_extract_layers=8, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=48, conv_pos_batch_norm=True, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    shake(HubertModel(config), seed).save_pretrained(folder)
    return folder


def centres(file: Path, tokenizer_folder: Path, reading: Reading, seed: int = 0, count: int = UNITS) -> Path:
    """k-means centres among the states that the HuBERT of a folder gives to speech-like noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"centres": np.zeros((1, 32), dtype=np.float32)}, file)
    states = HubertUnits.load(tokenizer_folder, file, reading).features(speech(10, seed=seed + 77))
    chosen = np.random.default_rng(seed).choice(len(states), count, replace=False)
    save_file({"centres": states[chosen]}, file)
    return file


def vocoder(weights: Path, config: Path, seed: int = 0, **changes) -> UnitVocoder:
    """`{"generator": state}` with weight norm in two parts, and its JSON; returns the same network, plain."""
    plain = shake(UnitVocoder(VOCODER | changes), seed)
    with torch.no_grad():
        plain.dur_predictor.proj.weight.mul_(3)
        plain.dur_predictor.proj.bias.add_(1)
    state = {}
    for name, tensor in plain.state_dict().items():
        if tensor.ndim == 3 and not name.startswith("dur_predictor"):  # as fairseq normalises
            length = tensor.norm(dim=(1, 2), keepdim=True)
            state[f"{name}_g"], state[f"{name}_v"] = length, tensor / length * 1.7
        else:
            state[name] = tensor
    torch.save({"generator": state}, weights)
    config.write_text(json.dumps(VOCODER | changes))
    return plain


def unit_codec(folder: Path, seed: int = 0, **reading) -> Path:
    """A folder that UnitCodec reads, of parts in their published layouts."""
    read = Reading(**({"layer": 2} | reading))
    folder.mkdir(parents=True, exist_ok=True)
    hubert(folder / "mhubert", seed=seed)
    centres(folder / "km.safetensors", folder / "mhubert", read, seed)
    vocoder(folder / "hifigan.pt", folder / "hifigan_config.json", seed)
    parts = {"hubert": "mhubert", "centres": "km.safetensors"}
    parts |= {"vocoder": "hifigan.pt", "vocoder_config": "hifigan_config.json"}
    said = {"format": "elocute-unit-codec-1", "layer": read.layer, "pad_samples": read.pad_samples} | parts
    (folder / "unit_codec.json").write_text(json.dumps(said | {"chunk_seconds": read.chunk_seconds}))
    return folder


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose colour and loudness wander, float32 at 16 kHz."""
    draw = np.random.default_rng(seed)
    count = round(seconds * 16000)
    steps = count // 1600 + 2
    loudness, colour = (np.interp(np.arange(count) / 1600, np.arange(steps), draw.uniform(size=steps)) for _ in "lc")
    noise = draw.normal(size=count + 1)
    return (0.3 * loudness * (noise[1:] - colour * 1.8 * noise[:-1])).astype(np.float32)
