"""A tiny MiniCPM-o 2.6 with random weights: the published folder's file names, config keys, tokenizers and tensors.

Names and shapes are written out here, not taken from the code that is tested.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.audio_utils import mel_filter_bank

LLM = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
AUDIO = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 80}
TTS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
DVAE = {"bins": 100, "width": 24, "hidden": 16, "bottleneck": 8, "layers": 2}
PUBLISHED_DVAE = {"bins": 100, "width": 512, "hidden": 256, "bottleneck": 128, "layers": 12}

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<image>", "</image>", "<|audio_start|>", "<|audio|>",
    "<|audio_end|>", "<|spk_bos|>", "<|spk|>", "<|spk_eos|>", "<|tts_bos|>", "<|tts_eos|>", "<|listen|>", "<|speak|>",
    "<|interrupt|>", "<|vad_start|>", "<|vad_end|>", "<reserved_43>", "<reserved_53>",
]  # fmt: skip
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[Stts]", "[Ptts]", "[Etts]", "[spk_emb]"]
WORDS = ["hello", "world", "the", "cat", "sat", "on", "mat", ",", ".", "!", "?", "'", "##s", "##ing"]


def config(**changes) -> dict:
    """config.json; `tts_config` and `audio_config` in changes are merged into theirs."""
    said = {
        "architectures": ["MiniCPMO"], "model_type": "minicpmo",
        "auto_map": {"AutoModel": "modeling_minicpmo.MiniCPMO"},
        **LLM, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "max_position_embeddings": 512, "tie_word_embeddings": False, "use_cache": True,
        "bos_token_id": 256, "eos_token_id": 258, "audio_chunk_length": 1.0, "audio_pool_step": 2,
        "chunk_input": True, "drop_vision_last_layer": False, "init_vision": False, "query_num": 64,
        "audio_config": {**AUDIO, "max_source_positions": 1500, "model_type": "whisper"},
        "tts_config": {
            **TTS, "model_type": "conditional_chattts", "llm_dim": LLM["hidden_size"],
            "spk_emb_token_id": MARKS.index("[spk_emb]"), "audio_bos_token_id": MARKS.index("[Ptts]"),
            "text_eos_token_id": MARKS.index("[Etts]"), "streaming_audio_chunk_size": 50,
        },
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    for key in ("audio_config", "tts_config"):
        said[key] |= changes.pop(key, {})
    return said | changes


def checkpoint(folder: Path, seed: int = 0, dvae: dict = DVAE, dtype: torch.dtype = torch.bfloat16, **changes) -> Path:
    """The whole folder: four shards and their index, config, both tokenizers, assets and the originals' code files."""
    folder.mkdir(parents=True, exist_ok=True)
    said = config(**changes)
    (folder / "config.json").write_text(json.dumps(said, indent=2))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "MiniCPMVImageProcessor"}')
    for name in ("configuration_minicpm.py", "modeling_minicpmo.py"):
        (folder / name).write_text('raise RuntimeError("code from a checkpoint must not run")\n')
    state = {name: tensor.to(dtype) for name, tensor in weights(said, seed, dvae).items()}
    llm_tokenizer(folder)
    text_tokenizer(folder / "assets/chattts_tokenizer")
    torch.save(vocos(seed), folder / "assets/Vocos.pt")
    return shard(folder, state)


def shard(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Four files, of which no part has one to itself."""
    places, names = {}, sorted(state)
    for index in range(4):
        mine = names[index * len(names) // 4 : (index + 1) * len(names) // 4]
        file = f"model-0000{index + 1}-of-00004.safetensors"
        save_file({name: state[name].contiguous() for name in mine}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def weights(said: dict, seed: int, dvae: dict) -> dict[str, torch.Tensor]:
    """Random weights of all parts, vision in place of which a little something stands."""
    shapes = llm_shapes(said) | audio_shapes(said) | tts_shapes(said["tts_config"]) | dvae_shapes(**dvae)
    shapes |= {"vpm.embeddings.position_embedding.weight": [9, 4], "resampler.query": [4, 6]}
    generator = torch.Generator().manual_seed(seed)
    return {name: draw(name, shape, generator) for name, shape in sorted(shapes.items())}


def draw(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Large enough that every part of the network does something: what a layer adds has the size of what it gets."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight") or name.endswith(("gamma", "coef")):
        return 1 + 0.2 * noise
    if name.endswith("original0"):  # the length of each row of a head
        return 2 + 0.3 * noise
    if len(shape) < 2:
        return 0.1 * noise
    if "emb" in name or name.endswith("query"):
        return 0.5 * noise
    return noise * 1.2 / math.sqrt(math.prod(shape[1:]))


def llm_shapes(said: dict) -> dict[str, list[int]]:
    width, inner, words = said["hidden_size"], said["intermediate_size"], said["vocab_size"]
    narrow = width * said["num_key_value_heads"] // said["num_attention_heads"]
    shapes = {"llm.model.embed_tokens.weight": [words, width], "llm.lm_head.weight": [words, width]}
    for layer in range(said["num_hidden_layers"]):
        at = f"llm.model.layers.{layer}"
        shapes |= decoder_layer(at, width, inner, narrow)
        shapes |= {f"{at}.self_attn.q_proj.bias": [width]}
        shapes |= {f"{at}.self_attn.{part}_proj.bias": [narrow] for part in "kv"}
    return shapes | {"llm.model.norm.weight": [width]}


def decoder_layer(at: str, width: int, inner: int, narrow: int) -> dict[str, list[int]]:
    return {
        f"{at}.self_attn.q_proj.weight": [width, width], f"{at}.self_attn.k_proj.weight": [narrow, width],
        f"{at}.self_attn.v_proj.weight": [narrow, width], f"{at}.self_attn.o_proj.weight": [width, width],
        f"{at}.mlp.gate_proj.weight": [inner, width], f"{at}.mlp.up_proj.weight": [inner, width],
        f"{at}.mlp.down_proj.weight": [width, inner], f"{at}.input_layernorm.weight": [width],
        f"{at}.post_attention_layernorm.weight": [width],
    }  # fmt: skip


def audio_shapes(said: dict) -> dict[str, list[int]]:
    sizes = said["audio_config"]
    width, inner, bins = sizes["d_model"], sizes["encoder_ffn_dim"], sizes["num_mel_bins"]
    shapes = {
        "apm.conv1.weight": [width, bins, 3], "apm.conv1.bias": [width], "apm.conv2.weight": [width, width, 3],
        "apm.conv2.bias": [width], "apm.embed_positions.weight": [sizes["max_source_positions"], width],
        "apm.layer_norm.weight": [width], "apm.layer_norm.bias": [width],
    }  # fmt: skip
    for layer in range(sizes["encoder_layers"]):
        at = f"apm.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.{part}.weight": [width, width] for part in ("k_proj", "v_proj", "q_proj", "out_proj")
        }
        shapes |= {f"{at}.self_attn.{part}.bias": [width] for part in ("v_proj", "q_proj", "out_proj")}
        shapes |= {f"{at}.fc1.weight": [inner, width], f"{at}.fc1.bias": [inner]}
        shapes |= {f"{at}.fc2.weight": [width, inner], f"{at}.fc2.bias": [width]}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{at}.{norm}.weight": [width], f"{at}.{norm}.bias": [width]}
    at, out = "audio_projection_layer", said["hidden_size"]
    shapes |= {f"{at}.linear1.weight": [out, inner // 4], f"{at}.linear1.bias": [out]}
    return shapes | {f"{at}.linear2.weight": [out, out], f"{at}.linear2.bias": [out]}


def tts_shapes(said: dict) -> dict[str, list[int]]:
    """Without the DVAE. The sizes of both tables of embeddings are fixed in the original."""
    width, inner = said["hidden_size"], said["intermediate_size"]
    shapes = {
        "tts.projector.linear1.weight": [width, said["llm_dim"]], "tts.projector.linear1.bias": [width],
        "tts.projector.linear2.weight": [width, width], "tts.projector.linear2.bias": [width],
        "tts.emb_text.weight": [21178, width], "tts.model.embed_tokens.weight": [32000, width],
        "tts.model.norm.weight": [width],
    }  # fmt: skip
    for q in range(4):
        at = f"tts.head_code.{q}.parametrizations.weight"
        shapes |= {
            f"tts.emb_code.{q}.weight": [626, width],
            f"{at}.original0": [626, 1],
            f"{at}.original1": [626, width],
        }
    for layer in range(said["num_hidden_layers"]):
        shapes |= decoder_layer(f"tts.model.layers.{layer}", width, inner, width)
    return shapes


def dvae_shapes(bins: int, width: int, hidden: int, bottleneck: int, layers: int) -> dict[str, list[int]]:
    at = "tts.dvae"
    shapes = {
        f"{at}.coef": [1, bins, 1], f"{at}.out_conv.weight": [bins, width, 3],
        f"{at}.downsample_conv.0.weight": [width, bins, 3], f"{at}.downsample_conv.0.bias": [width],
        f"{at}.downsample_conv.2.weight": [width, width, 4], f"{at}.downsample_conv.2.bias": [width],
    }  # fmt: skip
    for part, out in {"encoder": 2 * width, "decoder": width}.items():
        side = f"{at}.{part}"
        shapes |= {f"{side}.conv_in.0.weight": [bottleneck, width, 3], f"{side}.conv_in.0.bias": [bottleneck]}
        shapes |= {f"{side}.conv_in.2.weight": [hidden, bottleneck, 3], f"{side}.conv_in.2.bias": [hidden]}
        shapes |= {f"{side}.conv_out.weight": [out, hidden, 1]}
        for layer in range(layers):
            block = f"{side}.decoder_block.{layer}"
            shapes |= {f"{block}.coef": [hidden]} | convnext(block, hidden, 4 * hidden)
    for group in range(2):
        rvq = f"{at}.vq_layer.quantizer.rvqs.{group}"
        shapes |= {f"{rvq}.project_in.weight": [4, width], f"{rvq}.project_in.bias": [4]}
        shapes |= {f"{rvq}.project_out.weight": [width, 4], f"{rvq}.project_out.bias": [width]}
    return shapes


def convnext(at: str, width: int, inner: int) -> dict[str, list[int]]:
    return {
        f"{at}.dwconv.weight": [width, 1, 7], f"{at}.dwconv.bias": [width], f"{at}.norm.weight": [width],
        f"{at}.norm.bias": [width], f"{at}.pwconv1.weight": [inner, width], f"{at}.pwconv1.bias": [inner],
        f"{at}.pwconv2.weight": [width, inner], f"{at}.pwconv2.bias": [width],
    }  # fmt: skip


def vocos(seed: int, width: int = 32, inner: int = 48, layers: int = 2, bins: int = 100) -> dict[str, torch.Tensor]:
    """assets/Vocos.pt, quiet enough that no sample is clipped."""
    shapes = {"backbone.embed.weight": [width, bins, 7], "backbone.embed.bias": [width]}
    for norm in ("norm", "final_layer_norm"):
        shapes |= {f"backbone.{norm}.weight": [width], f"backbone.{norm}.bias": [width]}
    for layer in range(layers):
        at = f"backbone.convnext.{layer}"
        shapes |= {f"{at}.gamma": [width]} | convnext(at, width, inner)
    shapes |= {"head.out.weight": [1026, width], "head.out.bias": [1026]}
    generator = torch.Generator().manual_seed(seed + 1)
    state = {name: draw(name, shape, generator) for name, shape in sorted(shapes.items())}
    banks = mel_filter_bank(513, bins, 0.0, 12000.0, 24000, norm=None, mel_scale="htk")
    features = "feature_extractor.mel_spec"
    return state | {
        f"{features}.spectrogram.window": torch.hann_window(1024), "head.istft.window": torch.hann_window(1024),
        f"{features}.mel_scale.fb": torch.from_numpy(banks).float(),
    }  # fmt: skip


def llm_tokenizer(folder: Path) -> None:
    """Bytes and the special tokens. Its class is the originals', which only their code could make."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {token: len(alphabet) + index for index, token in enumerate(SPECIALS)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "vocab.json").write_text(json.dumps({byte: index for index, byte in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>", "unk_token": "<unk>"}))
    settings = {
        "tokenizer_class": "MiniCPMOTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<unk>",
        "auto_map": {"AutoTokenizer": ["tokenization_minicpmo_fast.MiniCPMOTokenizerFast", None]},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def text_tokenizer(folder: Path) -> None:
    """The speech decoder's: word pieces, lower case, its marks in brackets."""
    vocabulary = [*MARKS, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    pieces = {word: index for index, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    named |= {"mask_token": "[MASK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named | {"additional_special_tokens": MARKS[5:]}))
    settings = named | {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"additional_special_tokens": MARKS[5:]}))
