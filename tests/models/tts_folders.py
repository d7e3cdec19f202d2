"""Tiny TTS LMs with random weights over the shipped codec, in the layout of docs/own-tts-model.md."""

import math
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elocute.models.tts_lm import TtsLM, make_layout, make_template
from elocute.speech.codec import StarterCodec
from starter.train_base import make_tokenizer

CONTEXT = 256
SCHEMA = """
prompt: "({labels}) {text}"
dimensions:
  emotion:
    description: What the voice feels.
    labels: {Neutral: none, Happy: glad, Very Sad: in tears}
  speed:
    description: How fast it speaks.
    ordered: true
    labels: {Slow: slowly, Medium: as usual, Fast: fast}
"""
LABELS = [f"<|emotion:{label}|>" for label in ("Neutral", "Happy", "Very Sad")]
LABELS += [f"<|speed:{label}|>" for label in ("Slow", "Medium", "Fast")]
WORDS = "the train leaves at nine one two three four five six".split()
TOKENS = {"unit_0": "<|audio_0|>", "speech_begin": "<|speech|>", "speech_end": "<|speech_end|>"}
PROMPTS = {
    "tokens": {"prompt": "<|text|>{labels}{text}", "label_token": "<|{dimension}:{label}|>"},
    "words": {"prompt": "<|text|>{instruction}"},
    "none": {"prompt": "<|text|>{text}"},
}


def tts_lm(folder: Path, labels: str = "tokens", **more) -> TtsLM:
    """A model that answers with whole blocks of random units, and ends after about every second one.

    folder: where its schema is written; more: of elocute.json. See the speaking_lm of conftest.py.
    """
    torch.manual_seed(1)
    codec = StarterCodec.load("starter/codec")
    tokenizer = make_tokenizer(WORDS * 3, codec.n_units)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|text|>", "<|speech|>", "<|speech_end|>", *LABELS]})
    (folder / "schema.yaml").write_text(SCHEMA)
    settings = {"kind": "tts", "codec": "codec", "schema": "schema.yaml", "tokens": TOKENS} | PROMPTS[labels] | more
    layout = make_layout(folder, settings, tokenizer, codec)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    spectral = [[layout.first_unit + unit for unit in range(place, codec.shape.codebook, 4)] for place in range(4)]
    prosody = [layout.first_unit + unit for unit in range(codec.shape.codebook, codec.n_units)]
    follows = [(prosody, [layout.speech_begin] if layout.speech_begin else []), (spectral[0], prosody)]
    follows += [(spectral[place + 1], spectral[place]) for place in range(3)]
    follows += [([*prosody, layout.answer_end], spectral[3])]
    with torch.no_grad():
        embedding, head = network.get_input_embeddings().weight, network.lm_head.weight
        for state, (allowed, after) in enumerate(follows):
            embedding[after, state] += 4
            head[allowed, state] += 2
        head[layout.answer_end, 5] += math.log(len(prosody)) / 5.6
    return TtsLM(network, tokenizer, layout, codec, settings, make_template(folder, settings, tokenizer))
