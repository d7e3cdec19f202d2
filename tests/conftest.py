"""Shared parts: a tiny speech LM with random weights over the shipped codec, built like the starter."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.models.interleaved import InterleavedLM, make_layout
from elocute.speech.codec import StarterCodec
from starter.train_base import SETTINGS, make_tokenizer


@pytest.fixture(scope="session")
def tiny_lm() -> InterleavedLM:
    torch.manual_seed(0)
    codec = StarterCodec.load("starter/codec")
    texts = [*Path("starter/answers.txt").read_text().splitlines(), *Path("starter/vocabulary.txt").read_text().split()]
    tokenizer = make_tokenizer(texts * 3, codec.n_units)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    layout = make_layout(Path("tiny"), SETTINGS, tokenizer, codec)
    return InterleavedLM(LlamaForCausalLM(config).eval(), tokenizer, layout, codec, SETTINGS)
