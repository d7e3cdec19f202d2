"""A unit LM's folder, for suites from end to end."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.speech.codec import StarterCodec


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A unit LM's folder over the shipped codec, whose random units are seldom speech."""
    torch.manual_seed(0)
    codec = StarterCodec.load("starter/codec")
    config = LlamaConfig(
        vocab_size=2 + codec.n_units, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    codec.save(folder / "codec")
    settings = {"kind": "units", "codec": "codec", "unit_0": 2, "bos": 1, "eos": None}
    (folder / "elocute.json").write_text(json.dumps(settings))
    return folder
