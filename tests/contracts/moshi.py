"""A tiny random Moshi in the layout that transformers saves and the Hub has: files, config keys, tokens, tensors."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    EncodecFeatureExtractor,
    MoshiConfig,
    MoshiForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.contracts.csm import MIMI, shake, shard

CODEBOOKS = 4
PIECES = ["<unk>", "<s>", "</s>", "<pad>", "▁", *"abcdefghijklmnopqrstuvwxyz'", "▁hello", "▁the", "▁cat", "▁sat"]
TEXT = 40


def config(**changes) -> MoshiConfig:
    said = {
        "vocab_size": TEXT, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 300, "sliding_window": 300, "ffn_dim": 64, "num_codebooks": CODEBOOKS,
        "audio_encoder_config": MIMI,
        "depth_decoder_config": {
            "model_type": "moshi_depth", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": CODEBOOKS + 1, "sliding_window": CODEBOOKS, "ffn_dim": 32,
        },
    }  # fmt: skip
    return MoshiConfig(**(said | changes))


def checkpoint(folder: Path, seed: int = 0, shards: int = 3, **changes) -> Path:
    """The whole folder: weights in shards with their index, configs, tokenizer and feature extractor."""
    torch.manual_seed(seed)
    network = MoshiForConditionalGeneration(config(**changes))
    shake(network)
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    shard(folder, shards)
    tokenizer().save_pretrained(folder)
    EncodecFeatureExtractor(feature_size=1, sampling_rate=24000).save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words, the special ones first."""
    raw = Tokenizer(models.Unigram([(piece, -float(len(PIECES) - len(piece))) for piece in PIECES], unk_id=0))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
