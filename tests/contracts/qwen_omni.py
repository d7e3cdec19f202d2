"""A tiny Qwen2.5-Omni with random weights: the published folder's files, config keys, tokenizer and names of tensors.

The weights are those that transformers makes; only their names are put back to what was published (tests load the
folder with transformers' own class, too).
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from tests.contracts.minicpm_o import shard

WIDTH, WORDS, CODES = 48, 296, 21
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|vision_bos|>",
    "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>",
]  # fmt: skip
END, AUDIO = 256 + 2, 256 + 3
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROPE = {"rope_scaling": {"mrope_section": [2, 2, 2], "rope_type": "default", "type": "default"}, "rope_theta": 1e6}
LAYERS = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.25, **ROPE,
}  # fmt: skip


def config(ends: Sequence[int] = (END,)) -> dict:
    """config.json, with the published keys. ends: the ids that end the text."""
    thinker = {
        "model_type": "qwen2_5_omni_thinker", "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "text_config": {
            "model_type": "qwen2_5_omni_text", "hidden_size": WIDTH, "intermediate_size": 64, "vocab_size": WORDS,
            "tie_word_embeddings": False, **LAYERS,
        },
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder", "d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 64,
            "encoder_attention_heads": 4, "num_mel_bins": 16, "n_window": 20, "output_dim": WIDTH,
            "max_source_positions": 1500,
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder", "depth": 1, "hidden_size": 16, "intermediate_size": 24,
            "num_heads": 2, "out_hidden_size": WIDTH, "fullatt_block_indexes": [0],
        },
        "audio_token_index": AUDIO, "audio_start_token_id": AUDIO + 1, "audio_end_token_id": AUDIO + 2,
        "image_token_index": 256 + 9, "video_token_index": 256 + 10, "vision_start_token_id": 256 + 6,
        "vision_end_token_id": 256 + 7, "user_token_id": 117, "position_id_per_seconds": 25, "seconds_per_chunk": 2,
        "bos_token_id": 257, "eos_token_id": list(ends) if len(ends) > 1 else ends[0], "pad_token_id": 256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    talker = {
        "model_type": "qwen2_5_omni_talker", "architectures": ["Qwen2OmniTalkerForConditionalGeneration"],
        "embedding_size": WIDTH, "hidden_size": 32, "head_dim": 12, "intermediate_size": 40, "vocab_size": 32,
        "audio_token_index": AUDIO, "audio_start_token_id": AUDIO + 1, "audio_end_token_id": AUDIO + 2,
        "tts_text_pad_token_id": 290, "tts_text_start_token_id": 291, "tts_text_end_token_id": 292,
        "tts_codec_pad_token_id": 25, "tts_codec_start_token_id": 26, "tts_codec_end_token_id": 27,
        "tts_codec_mask_token_id": 29, **LAYERS,
    }  # fmt: skip
    token2wav = {
        "model_type": "qwen2_5_omni_token2wav",
        "dit_config": {
            "model_type": "qwen2_5_omni_dit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "head_dim": 16, "emb_dim": 16, "block_size": 4, "look_ahead_layers": [1], "look_backward_layers": [0],
            "num_embeds": CODES, "mel_dim": 8, "enc_emb_dim": 12, "enc_dim": 8, "enc_channels": [8, 8, 8, 8, 24],
            "enc_attention_channels": 4, "enc_se_channels": 4, "max_position_embeddings": 512, "dropout": 0.1,
        },
        "bigvgan_config": {
            "model_type": "qwen2_5_omni_bigvgan", "mel_dim": 8, "upsample_initial_channel": 32,
            "upsample_rates": [5, 3, 4, 4], "upsample_kernel_sizes": [11, 7, 8, 8],
            "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
        },
    }  # fmt: skip
    return {
        "architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "torch_dtype": "bfloat16",
        "enable_audio_output": True, "enable_talker": True, "thinker_config": thinker, "talker_config": talker,
        "token2wav_config": token2wav,
    }  # fmt: skip


def checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """The whole folder: four shards and their index, config, tokenizer, extractor, chat template, speakers."""
    folder.mkdir(parents=True, exist_ok=True)
    said = config(**changes)
    (folder / "config.json").write_text(json.dumps(said, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "Qwen2_5OmniProcessor",
        "feature_size": 16, "sampling_rate": 16000, "n_fft": 400, "hop_length": 160, "chunk_length": 300,
        "n_samples": 4800000, "nb_max_frames": 30000, "dither": 0.0, "padding_side": "right", "padding_value": 0.0,
        "return_attention_mask": True, "image_processor_type": "Qwen2VLImageProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2))
    tokenizer(folder)
    torch.save(speakers(seed), folder / "spk_dict.pt")
    return shard(folder, {name: tensor.to(dtype) for name, tensor in weights(said, seed).items()})


def weights(said: dict, seed: int) -> dict[str, torch.Tensor]:
    """Random, under the published names."""
    torch.manual_seed(seed)
    network = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig.from_dict(said))
    state = {}
    for name, tensor in network.state_dict().items():
        name = name.replace("thinker.model.language_model.", "thinker.model.")
        name = re.sub(r"^thinker\.model\.(audio_tower|visual)\.", r"thinker.\1.", name)
        state[name] = draw(tensor) if name.startswith(("token2wav.", "thinker.audio_tower.")) else tensor.clone()
    head = state["talker.codec_head.weight"]
    head[[25, 27]] *= 1.5  # so that some speech ends soon
    head[[22, 23, 24, 26, 28, 29, 30, 31]] = 0  # what is no code is never the likeliest
    return state


def draw(tensor: torch.Tensor) -> torch.Tensor:
    """Large enough to be heard: transformers begins these parts near silence."""
    if tensor.ndim < 2:
        return tensor + 0.1 * torch.randn(tensor.shape)
    return torch.randn(tensor.shape) / math.sqrt(math.prod(tensor.shape[1:]))


def speakers(seed: int) -> dict[str, dict]:
    generator = torch.Generator().manual_seed(seed)

    def speaker(bos: int) -> dict:
        return {
            "bos_token": bos,
            "cond": torch.randn(1, 12, generator=generator),
            "ref_mel": torch.randn(1, 30, 8, generator=generator),
        }

    return {"Ethan": speaker(294), "Chelsie": speaker(293)}


def tokenizer(folder: Path) -> None:
    """Bytes, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.save_pretrained(folder)
