"""Shared parts: a tiny speech LM with random weights over the shipped codec, built like the starter."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.models.interleaved import InterleavedLM, make_layout
from elocute.speech.codec import StarterCodec
from starter.train_base import SETTINGS, TEMPLATE, make_tokenizer

# How long an example takes says how busy the machine is. The same examples each time: a red run is the change's fault.
settings.register_profile("elocute", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)  # others each time: pytest --hypothesis-profile search
settings.load_profile("elocute")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What tests keep for other runs is thrown away with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELOCUTE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_lm() -> InterleavedLM:
    torch.manual_seed(0)
    codec = StarterCodec.load("starter/codec")
    texts = [*Path("starter/answers.txt").read_text().splitlines(), *Path("starter/vocabulary.txt").read_text().split()]
    tokenizer = make_tokenizer(texts * 3, codec.n_units)
    tokenizer.chat_template = TEMPLATE
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


@pytest.fixture(scope="session")
def speaking_lm(tiny_lm) -> InterleavedLM:
    """A tiny LM whose random answers are mostly proper ones: some words, then whole blocks of units.

    Its embeddings say what may follow a token (words; prosody; the four spectral units of a block in their order), its
    head reads that, and small random layers between them add the noise that training can move.
    """
    torch.manual_seed(1)
    codec, tokenizer, settings = tiny_lm.codec, tiny_lm.tokenizer, SETTINGS | {"ratio": "text-first"}
    layout = make_layout(Path("speaking"), settings, tokenizer, codec)
    lm = InterleavedLM(LlamaForCausalLM(tiny_lm.model.config).eval(), tokenizer, layout, codec, settings)
    words = [tokenizer.encode(f" {word}")[0] for word in ("one", "two", "three", "four", "five", "six")]
    spectral = [[layout.first_unit + unit for unit in range(place, codec.shape.codebook, 4)] for place in range(4)]
    prosody = [layout.first_unit + unit for unit in range(codec.shape.codebook, codec.n_units)]
    follows = [([*words, layout.text_end], []), (prosody, [layout.speech_begin]), (spectral[0], prosody)]
    follows += [(spectral[place + 1], spectral[place]) for place in range(3)]
    follows += [([*prosody, layout.answer_end], spectral[3])]
    with torch.no_grad():
        embedding, head = lm.model.get_input_embeddings().weight, lm.head().weight
        embedding[:, 0] += 4  # words follow whatever is not named below
        for state, (allowed, after) in enumerate(follows):
            embedding[after, 0] -= 4
            embedding[after, state] += 4
            head[allowed, state] += 2
        head[layout.answer_end, 6] += math.log(len(prosody)) / 5.6  # about every second block is the last
    return lm


@pytest.fixture(scope="session")
def tiny_folder(tiny_lm, tmp_path_factory) -> Path:
    """Of all tests: to be read only."""
    tiny_lm.save(folder := tmp_path_factory.mktemp("tiny"))
    return folder


@pytest.fixture(scope="session")
def speaking_folder(speaking_lm, tmp_path_factory) -> Path:
    """Of all tests: to be read only."""
    speaking_lm.save(folder := tmp_path_factory.mktemp("speaking"))
    return folder
