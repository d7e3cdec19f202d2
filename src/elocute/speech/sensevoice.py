"""SenseVoice's encoder (An et al. 2024): 60 ms features → states, through transformers' Fun-ASR encoder.

    x   = [queries; features] · √D + sinusoids,  the queries being learnt vectors: language "auto", event, emotion,
          no inverse text normalisation
    out = SAN-M layers(x):  attention plus a depthwise convolution over the values,  x + …,  x + FFN(x)

The published names differ from transformers', see `published_names`.

Two things are as VITA-Audio runs it. The features are rounded to bfloat16 whatever the weights are. And positions,
timescales and the sinusoids' arguments are computed in the type of the weights: in bfloat16 positions beyond 256 are
rounded, and training saw that, so weights that are published in bfloat16 are heard as they were trained in bfloat16.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import FunAsrNanoEncoderConfig
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoder

from elocute.errors import InputError

QUERIES = (0, 1, 2, 15)
"""Rows of the table of learnt vectors that stand before the features."""
_PARTS = {
    "self_attn.linear_out": "self_attn.o_proj",
    "self_attn.fsmn_block": "self_attn.fsmn.conv",
    "feed_forward.w_1": "mlp.fc1",
    "feed_forward.w_2": "mlp.fc2",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
_FUSED = "self_attn.linear_q_k_v"
_SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class SenseVoice(nn.Module):
    """Features → states. Frozen and never in training mode, or its dropout would make what is heard random.

    width: of a feature; size: of a state. The recogniser's head is left out.
    """

    def __init__(self, config: FunAsrNanoEncoderConfig, n_embed: int):
        super().__init__()
        self.width, self.size = config.input_size, config.hidden_size
        self.embed = nn.Embedding(n_embed, self.width)
        self.encoder = FunAsrNanoEncoder(config)
        self.encoder.position_embeddings = Sinusoids()
        self.eval().requires_grad_(False)

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor], heads: int = 4) -> "SenseVoice":
        """Build it from weights in their published names (`embed.weight`, `encoder.encoders0.0…`).

        Every size is read from the weights; the number of attention heads is not in them. InputError where one lacks,
        is too many or does not fit the others.
        """
        blocks, last = _count(state, "encoders") + 1, _count(state, "tp_encoders")
        try:
            ffn, size = state["encoder.encoders0.0.feed_forward.w_1.weight"].shape
            width = state["embed.weight"].shape[1]
            config = FunAsrNanoEncoderConfig(
                num_mel_bins=width, num_stacked_frames=1, hidden_size=size, num_attention_heads=heads,
                intermediate_size=ffn, num_hidden_layers=blocks + last, num_timestamp_prediction_layers=last,
                fsmn_kernel_size=state["encoder.encoders0.0.self_attn.fsmn_block.weight"].shape[2],
            )  # fmt: skip
            n_embed = len(state["embed.weight"])
        except KeyError as error:
            raise InputError(f"the audio encoder's weights lack {error.args[0]}") from error
        if size % heads or last < 1 or n_embed <= max(QUERIES):
            raise InputError(
                f"no SenseVoice encoder: {heads} heads of states of {size}, {blocks} + {last} layers, {n_embed} queries"
            )
        with torch.device("meta"):
            model = cls(config, n_embed)
        names = published_names(blocks, last)
        expected = {
            published: (len(native) * len(tensor), *tensor.shape[1:])
            for published, native in names.items()
            for tensor in [model.get_parameter(native[0])]
        }
        _check(state, expected)
        native = {}
        for name, tensor in state.items():
            native |= dict(zip(names[name], tensor.chunk(len(names[name])), strict=True))
        model.load_state_dict(native, assign=True)
        return model.requires_grad_(False)

    def train(self, mode: bool = True) -> "SenseVoice":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        """[B, F, width], of which the first counts[b] ≥ 1 are real, → [B, 4 + F, size]; a row's first 4 + counts[b].

        A row does not depend on what it is padded with.
        """
        queries = self.embed(torch.tensor(QUERIES, device=features.device)).expand(len(features), -1, -1)
        places = torch.arange(features.shape[1] + len(QUERIES), device=features.device)
        mask = (places < counts[:, None] + len(QUERIES)).long()
        real = mask[:, len(QUERIES) :, None].bool()
        x = torch.cat([queries, features.masked_fill(~real, 0).to(torch.bfloat16).to(queries.dtype)], 1)
        return self.encoder(input_features=x, input_features_mask=mask).last_hidden_state


class Sinusoids(nn.Module):
    """sin and cos of position · 10000^(−i / (width/2 − 1)), positions from 1, all computed in the input's own type."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] → [1, T, width]."""
        half, device = x.shape[2] // 2, x.device
        step = torch.log(torch.tensor(10000.0, dtype=x.dtype, device=device)) / (half - 1)
        # Counted in integers and rounded then: torch's own bfloat16 ranges round otherwise.
        scales = torch.exp(torch.arange(half, device=device).to(x.dtype) * -step)
        angles = torch.arange(1, x.shape[1] + 1, device=device).to(x.dtype)[:, None] * scales
        return torch.cat([angles.sin(), angles.cos()], 1)[None]


def published_names(blocks: int, last: int) -> dict[str, tuple[str, ...]]:
    """Published name → those of transformers, three for the fused queries, keys and values.

    blocks: layers of the encoder proper; last: those behind it (`tp_encoders`).
    """
    names = {"embed.weight": ("embed.weight",)}
    layers = ["encoders0.0", *(f"encoders.{i}" for i in range(blocks - 1)), *(f"tp_encoders.{i}" for i in range(last))]
    for index, layer in enumerate(layers):
        parts = {part: (native,) for part, native in _PARTS.items()} | {_FUSED: _SPLIT}
        for part, natives in parts.items():
            for kind in ("weight",) if part == "self_attn.fsmn_block" else ("weight", "bias"):
                full = tuple(f"encoder.layers.{index}.{native}.{kind}" for native in natives)
                names[f"encoder.{layer}.{part}.{kind}"] = full
    for norm, index in (("after_norm", blocks - 1), ("tp_norm", blocks + last - 1)):
        for kind in ("weight", "bias"):
            names[f"encoder.{norm}.{kind}"] = (f"encoder.layers.{index}.final_layernorm.{kind}",)
    return names


def _count(state: Mapping[str, Tensor], stack: str) -> int:
    found = (re.match(rf"encoder\.{stack}\.(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})


def _check(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in state:
            raise InputError(f"the audio encoder's weights lack {name}")
        if tuple(state[name].shape) != shape:
            raise InputError(f"the audio encoder's {name}: expected shape {list(shape)}, got {list(state[name].shape)}")
    if strange := sorted(set(state) - set(expected)):
        raise InputError(f"the audio encoder's weights hold {strange[0]}, for which it has no place")
