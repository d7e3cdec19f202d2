"""Tiny random checkpoints of GLM-4-Voice's speech tokenizer and decoder, in the published layout: names, keys, shapes.

Every name is written out here and not taken from the code under test.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from elocute.speech.glm4voice.tokenizer import SpeechTokenizer

UNITS, MEL = 48, 8

TOKENIZER = {
    "architectures": ["WhisperVQEncoder"], "model_type": "whisper", "torch_dtype": "float32",
    "transformers_version": "4.44.1", "activation_function": "gelu", "scale_embedding": False,
    "d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "encoder_layers": 4, "num_mel_bins": 128,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "decoder_layers": 4, "vocab_size": 51866,
    "max_source_positions": 1500, "max_target_positions": 448, "pad_token_id": 50256, "bos_token_id": 50257,
    "eos_token_id": 50257, "decoder_start_token_id": 50258, "quantize_encoder_only": True, "quantize_position": 2,
    "pooling_position": 2, "pooling_kernel_size": 4, "pooling_type": "avg", "quantize_vocab_size": UNITS,
    "quantize_causal_block_size": 10, "quantize_causal_encoder": False, "encoder_causal_attention": False,
    "encoder_causal_convolution": True, "quantize_ema_decay": 0.99, "quantize_restart_interval": 100,
    "quantize_loss_scale": 10.0, "quantize_commit_coefficient": 0.25, "skip_language_detection": True,
}  # fmt: skip
FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor", "feature_size": 128,
    "chunk_length": 30, "hop_length": 160, "n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16000,
}  # fmt: skip
CONFIG_YAML = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 22050
spk_embed_dim: 12

flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 16
    output_size: 8
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 48
    input_frame_rate: 12.5
    only_mask_loss: True
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        output_size: 16
        attention_heads: 2
        linear_units: 24
        num_blocks: 2
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        input_size: 16
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 8
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: 24
        n_spks: 1
        spk_emb_dim: 8
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 32
            out_channels: 8
            channels: [16, 16]
            dropout: 0
            attention_head_dim: 6
            n_blocks: 2
            num_mid_blocks: 2
            num_heads: 2
            act_fn: 'gelu'

hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 8
    base_channels: 16
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 8
        cond_channels: 6
"""


class Weights(dict):
    """Random tensors under the names they are asked for."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def noise(self, name: str, *shape: int, scale: float = 1.0, about: float = 0.0) -> None:
        self[name] = about + scale * torch.randn(shape, generator=self.generator)

    def layer(self, name: str, *shape: int, bias: bool = True) -> None:
        """A linear layer [out, in] or a convolution [out, in, kernel]."""
        self.noise(f"{name}.weight", *shape, scale=1 / math.sqrt(math.prod(shape[1:])))
        if bias:
            self.noise(f"{name}.bias", shape[0], scale=0.1)

    def norm(self, name: str, width: int) -> None:
        self.noise(f"{name}.weight", width, scale=0.2, about=1)
        self.noise(f"{name}.bias", width, scale=0.1)

    def normed(self, name: str, *shape: int, width: int | None = None, gain: float = 0.8) -> None:
        """A convolution under weight norm in torch's old two parts; its output has `width` channels."""
        self.noise(f"{name}.weight_v", *shape)
        self.noise(f"{name}.weight_g", shape[0], 1, 1, scale=0.1 * gain, about=gain)
        self.noise(f"{name}.bias", width or shape[0], scale=0.1)


def tokenizer(folder: Path, seed: int = 0) -> None:
    """config.json, preprocessor_config.json, model.safetensors. The codes are states, so that many of them are used."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TOKENIZER))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES))
    weights = tokenizer_weights(TOKENIZER, seed)
    save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})
    loaded = SpeechTokenizer.load(folder)
    with torch.inference_mode():
        states = loaded.model.cpu().pooled(*loaded.features(speech(20, seed=seed + 77)))[0]
    weights["codebook.weight"] = states[torch.randperm(len(states), generator=weights.generator)[:UNITS]].clone()
    save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})


def tokenizer_weights(said: dict, seed: int = 0) -> Weights:
    width, inner, codes = said["d_model"], said["encoder_ffn_dim"], said["quantize_vocab_size"]
    w = Weights(seed)
    w.layer("conv1", width, said["num_mel_bins"], 3)
    w["conv1.weight"] -= w["conv1.weight"].mean((1, 2), keepdim=True)  # or what all frames share drowns the rest
    w["conv1.weight"] *= 4
    w.layer("conv2", width, width, 3)
    w.noise("embed_positions.weight", said["max_source_positions"], width, scale=0.1)
    w.noise("embed_positions2.weight", said["max_source_positions"] // said["pooling_kernel_size"], width)
    w.noise("codebook.weight", codes, width)
    w.noise("ema_count", codes)
    w.noise("ema_weight", codes, width)
    for index in range(said["quantize_position"]):
        place = f"layers.{index}"
        for part in ("q", "k", "v", "out"):
            w.layer(f"{place}.self_attn.{part}_proj", width, width, bias=part != "k")
        w.norm(f"{place}.self_attn_layer_norm", width)
        w.layer(f"{place}.fc1", inner, width)
        w.layer(f"{place}.fc2", width, inner)
        w.norm(f"{place}.final_layer_norm", width)
    return w


def decoder(folder: Path, seed: int = 0) -> None:
    """config.yaml, flow.pt, hift.pt."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG_YAML)
    torch.save(dict(flow_weights(seed)), folder / "flow.pt")
    torch.save(dict(hift_weights(seed)), folder / "hift.pt")


def flow_weights(seed: int = 0) -> Weights:
    w, width, inner = Weights(seed), 16, 24
    w.noise("input_embedding.weight", UNITS, width)
    w.layer("spk_embed_affine_layer", MEL, 12)
    w.layer("encoder.embed.out.0", width, width)
    w.norm("encoder.embed.out.1", width)
    for index in range(2):
        place = f"encoder.encoders.{index}"
        for part in ("q", "k", "v", "out", "pos"):
            w.layer(f"{place}.self_attn.linear_{part}", width, width, bias=part != "pos")
        w.noise(f"{place}.self_attn.pos_bias_u", 2, width // 2)
        w.noise(f"{place}.self_attn.pos_bias_v", 2, width // 2)
        w.layer(f"{place}.feed_forward.w_1", inner, width)
        w.layer(f"{place}.feed_forward.w_2", width, inner)
        w.norm(f"{place}.norm_ff", width)
        w.norm(f"{place}.norm_mha", width)
    w.norm("encoder.after_norm", width)
    w.layer("encoder_proj", MEL, width)
    for index in (0, 3, 6, 9):
        w.layer(f"length_regulator.model.{index}", MEL, MEL, 3)
        w.norm(f"length_regulator.model.{index + 1}", MEL)
    w.layer("length_regulator.model.12", MEL, MEL, 1)
    _estimator(w, "decoder.estimator", 32, 16)
    return w


def _estimator(w: Weights, top: str, entering: int, width: int) -> None:
    w.layer(f"{top}.time_mlp.linear_1", 4 * width, entering)
    w.layer(f"{top}.time_mlp.linear_2", 4 * width, 4 * width)
    blocks = [("down_blocks.0", entering), ("down_blocks.1", width), ("mid_blocks.0", width), ("mid_blocks.1", width)]
    blocks += [("up_blocks.0", 2 * width), ("up_blocks.1", 2 * width)]
    for name, given in blocks:
        place = f"{top}.{name}"
        w.layer(f"{place}.0.mlp.1", width, 4 * width)
        for part, size in (("block1", given), ("block2", width)):
            w.layer(f"{place}.0.{part}.block.0", width, size, 3)
            w.norm(f"{place}.0.{part}.block.1", width)
        w.layer(f"{place}.0.res_conv", width, given, 1)
        for index in range(2):
            _transformer(w, f"{place}.1.{index}", width, 12)
    w.layer(f"{top}.down_blocks.0.2.conv", width, width, 3)
    w.layer(f"{top}.down_blocks.1.2", width, width, 3)
    w.layer(f"{top}.up_blocks.0.2.conv", width, width, 4)
    w.layer(f"{top}.up_blocks.1.2", width, width, 3)
    w.layer(f"{top}.final_block.block.0", width, width, 3)
    w.norm(f"{top}.final_block.block.1", width)
    w.layer(f"{top}.final_proj", MEL, width, 1)


def _transformer(w: Weights, place: str, width: int, inner: int) -> None:
    w.norm(f"{place}.norm1", width)
    w.norm(f"{place}.norm3", width)
    for part in ("q", "k", "v"):
        w.layer(f"{place}.attn1.to_{part}", inner, width, bias=False)
    w.layer(f"{place}.attn1.to_out.0", width, inner)
    w.layer(f"{place}.ff.net.0.proj", 4 * width, width)
    w.layer(f"{place}.ff.net.2", width, 4 * width)


def hift_weights(seed: int = 0) -> Weights:
    """The pitch lies about the threshold of voicing: some frames are voiced, some are not."""
    w, width, bins = Weights(seed + 1), 16, 18
    for index in (0, 2, 4, 6, 8):
        w.normed(f"f0_predictor.condnet.{index}", 6, 6 if index else MEL, 3)
    w.noise("f0_predictor.classifier.weight", 1, 6, scale=200)
    w.noise("f0_predictor.classifier.bias", 1)
    w.layer("m_source.l_linear", 1, 9)
    w.normed("conv_pre", width, MEL, 7)
    for stage, kernel in enumerate((7, 11)):
        wide, narrow = width >> stage, width >> stage + 1
        w.normed(f"ups.{stage}", wide, narrow, 16, width=narrow)
        w.layer(f"source_downs.{stage}", narrow, bins, 1 if stage else 16)
        _snake_block(w, f"source_resblocks.{stage}", narrow, kernel)
        for index, size in enumerate((3, 7, 11)):
            _snake_block(w, f"resblocks.{3 * stage + index}", narrow, size)
    w.normed("conv_post", bins, width >> 2, 7, gain=0.2)
    return w


def _snake_block(w: Weights, place: str, width: int, kernel: int) -> None:
    for index in range(3):
        for part in ("convs1", "convs2"):
            w.normed(f"{place}.{part}.{index}", width, width, kernel)
        for part in ("activations1", "activations2"):
            w.noise(f"{place}.{part}.{index}.alpha", width, scale=0.1, about=1)


def codec(folder: Path) -> None:
    """Both folders under their published names, and the file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder / "glm-4-voice-tokenizer")
    decoder(folder / "glm-4-voice-decoder")
    said = {"tokenizer": "glm-4-voice-tokenizer", "decoder": "glm-4-voice-decoder", "steps": 3}
    (folder / "glm4voice_codec.json").write_text(json.dumps({"format": "elocute-glm4voice-codec-1"} | said))


def speech(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Something that changes all the time: a gliding tone in noise, float32 [samples]."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    glide = np.cumsum(2 * np.pi * (300 + 250 * np.sin(np.arange(count) / rate * 9 + seed)) / rate)
    louder = 0.3 + 0.3 * np.sin(np.arange(count) / rate * 5)
    return (louder * np.sin(glide) + 0.05 * rng.standard_normal(count)).astype(np.float32)
