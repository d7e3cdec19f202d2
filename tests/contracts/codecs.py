"""Tiny X-Codec 2 and DAC with random weights, in the folder layout of transformers' published ones."""

import json
from pathlib import Path

import torch
from transformers import DacConfig, DacModel, Xcodec2Config, Xcodec2Model

SEMANTIC = {
    "model_type": "wav2vec2-bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 7,
}  # fmt: skip


def xcodec2(folder: Path, seed: int = 0, levels: tuple[int, ...] = (4,) * 8, **changes) -> Path:
    """As `hf-audio/xcodec2`; 65,536 units unless the levels say other."""
    torch.manual_seed(seed)
    config = Xcodec2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, encoder_hidden_size=4, quantization_dim=64, quantization_levels=list(levels),
        semantic_model_config=SEMANTIC, initializer_range=0.2,
    )  # fmt: skip
    extractor = {
        "feature_extractor_type": "Xcodec2FeatureExtractor", "feature_size": 80, "frame_length": 400,
        "frame_shift": 160, "hop_length": 320, "num_mel_bins": 80, "padding_side": "right", "padding_value": 1,
        "return_attention_mask": True, "sampling_rate": 16000, "stride": 2,
    }  # fmt: skip
    model = Xcodec2Model(config)
    with torch.no_grad():  # as it is made, every recording has the same few units
        model.quantizer.project_in.weight.normal_(std=20.0)
    return published(model, folder, extractor | changes)


def dac(folder: Path, seed: int = 0, **changes) -> Path:
    """As `descript/dac_16khz`, of three codebooks."""
    torch.manual_seed(seed)
    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 4, 8, 8], decoder_hidden_size=32, n_codebooks=3,
        codebook_size=64, codebook_dim=4, sampling_rate=16000,
    )  # fmt: skip
    extractor = {
        "feature_extractor_type": "DacFeatureExtractor", "feature_size": 1, "hop_length": 512,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 16000,
    }  # fmt: skip
    model = DacModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "codebook" not in name:
                weight.normal_(std=(weight[0].numel()) ** -0.5)
    return published(model, folder, extractor | changes)


def published(model, folder: Path, extractor: dict) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2))
    return folder
