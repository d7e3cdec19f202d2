"""A tiny random CSM in the layout that transformers saves and the Hub has: files, config keys, tokens, tensors.

The processor's chat template is the published one's layout, less its checks.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    EncodecFeatureExtractor,
    PreTrainedTokenizerFast,
)

CODEBOOKS, CODES = 4, 16
MIMI = {
    "model_type": "mimi", "hidden_size": 16, "num_filters": 4, "codebook_size": CODES, "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8, "num_quantizers": 6, "num_hidden_layers": 1, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "upsample_groups": 16, "frame_rate": 12.5,
    "sampling_rate": 24000,
}  # fmt: skip
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>"]
TEXT = 256 + len(SPECIAL)
TEMPLATE = """{%- for message in messages %}
    {{- bos_token }}
    {{- '[' + message['role'] + ']' }}
    {{- message['content'][0]['text'] }}
    {{- eos_token }}
    {%- if message['content']|length > 1 %}
        {{- '<|AUDIO|><|audio_eos|>' }}
    {%- endif %}
{%- endfor %}
"""


def config(spare: int = 3, **changes) -> CsmConfig:
    """spare: codes of the model that the codec does not have."""
    said = {
        "num_codebooks": CODEBOOKS, "vocab_size": CODES + spare, "text_vocab_size": TEXT, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "codebook_pad_token_id": CODES + 2, "codebook_eos_token_id": 0,
        "bos_token_id": 256, "pad_token_id": 258, "audio_token_id": 258, "audio_eos_token_id": 259,
        "codec_config": MIMI | {"num_quantizers": CODEBOOKS},
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model", "num_codebooks": CODEBOOKS, "vocab_size": CODES + spare,
            "backbone_hidden_size": 32, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12,
            "max_position_embeddings": CODEBOOKS + 1,
        },
    }  # fmt: skip
    return CsmConfig(**(said | changes))


def checkpoint(folder: Path, seed: int = 0, shards: int = 3, ending: float = 1, **changes) -> Path:
    """The whole folder: weights in shards with their index, configs, tokenizer and processor.

    ending: how much larger than the others' the logits of the end's code are, so that some answers come to their end.
    """
    torch.manual_seed(seed)
    network = CsmForConditionalGeneration(config(**changes))
    shake(network)
    with torch.no_grad():
        network.lm_head.weight[0] *= ending
        network.depth_decoder.codebooks_head.weight[..., 0] *= ending
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    shard(folder, shards)
    processor().save_pretrained(folder)
    return folder


def processor() -> CsmProcessor:
    return CsmProcessor(EncodecFeatureExtractor(feature_size=1, sampling_rate=24000), tokenizer(), TEMPLATE)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1],
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def shake(network: torch.nn.Module) -> None:
    """Large enough that every part of the network does something."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, tensor.shape[-1] ** -0.5)
        for name, tensor in network.named_buffers():
            if name.endswith("embed_sum"):
                tensor.normal_()


def shard(folder: Path, count: int) -> None:
    """One file of weights as several, of which no part has one to itself."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(state), {}
    for index in range(count):
        mine = names[index * len(names) // count : (index + 1) * len(names) // count]
        file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: state[name] for name in mine}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def as_on_the_hub(folder: Path) -> None:
    """Name a sharded folder's weights as sesame/csm-1b does, and put beside them those that its authors' code reads."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        (folder / file).rename(folder / file.replace("model", "transformers", 1))
    index["weight_map"] = {name: f.replace("model", "transformers", 1) for name, f in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").unlink()
    (folder / "transformers.safetensors.index.json").write_text(json.dumps(index, indent=2))
    said = json.loads((folder / "config.json").read_text())
    said["transformers_weights"] = "transformers.safetensors.index.json"
    (folder / "config.json").write_text(json.dumps(said, indent=2))
    save_file({"backbone.layers.0.attn.q_proj.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    torch.save({"audio_head": torch.zeros(2)}, folder / "ckpt.pt")
