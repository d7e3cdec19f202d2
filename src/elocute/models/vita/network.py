"""VITA-Audio's network (Long et al. 2025): transformers' Qwen2, and behind it layers that predict further ahead.

With n the final norm, which all stages share, and emb the token embeddings,

    h_0[p]  = n(main layers(x)[p])                                     predicts token p + 1
    h_d[p]  = n(layer_d(proj_d[norm(emb(token p + d)); norm(h_{d−1}[p])]))   predicts token p + d + 1,  d = 1 … n_mtp

`d` is called a depth here; depth d is the published mtp module d − 1. A depth rotates by the position of the token it
embeds, p + d, and is causal over its own rows. x is emb(token) but where the features of heard audio replace it
(`write_audio`); the depths always embed the token itself.

Plus also has the projector here, through which the states of its frozen audio encoder (user_audio.py) come in: the
original freezes that encoder alone.

The names of the parameters are the published ones: the depths' layers stand in `model.layers` behind the main ones.
They are *not* layers of the LLM – a stock Qwen2 would run them as such – so what lists layers (LoRA, sharding) asks
`is_mtp`.
"""

import copy
import re

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2ForCausalLM, Qwen2Model, Qwen2PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from elocute.models.vita.config import VitaConfig


class Projector(nn.Module):
    """Linear(GELU(Linear(LayerNorm(state)))): [.., size] → [.., hidden size of the LLM]."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(states))


class VitaModel(Qwen2Model):
    """The LLM's trunk; runs the main layers only, and holds those of multi-token prediction behind them."""

    config: VitaConfig

    def __init__(self, config: VitaConfig):
        main = copy.deepcopy(config)
        main.layer_types = main.layer_types[: max(1, config.n_main)]  # a depth alone, too, asks for the first
        main.num_hidden_layers, main.num_nextn_predict_layers = config.n_main, 0
        super().__init__(main)
        # Layer index 0: each has a cache of its own, whose length lags behind the main layers'.
        self.layers.extend(Qwen2DecoderLayer(main, 0) for _ in range(config.n_mtp))
        if config.hears_features:
            self.audio_projection = Projector(config.audio_state_size, config.hidden_size)
        self.post_init()


class VitaForCausalLM(Qwen2ForCausalLM):
    """Ids → logits as any causal LM of transformers, without the depths; they are asked for by `mtp` and `depths`."""

    config: VitaConfig
    _tied_weights_keys = {}
    _keys_to_ignore_on_load_unexpected = [r"^model\.audio_model\."]  # loaded apart, see `user_audio`

    def __init__(self, config: VitaConfig):
        Qwen2PreTrainedModel.__init__(self, config)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.model = VitaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(config.n_mtp))
        self.mtp_embed_norms = nn.ModuleList(Qwen2RMSNorm(width, eps) for _ in range(config.n_mtp))
        self.mtp_hidden_norms = nn.ModuleList(Qwen2RMSNorm(width, eps) for _ in range(config.n_mtp))
        self.post_init()

    @property
    def n_mtp(self) -> int:
        return len(self.mtp_projs)

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """As transformers' own; the trunk has a config of its own."""
        super().set_attn_implementation(*args, **kwargs)
        self.model.set_attn_implementation(*args, **kwargs)

    def mtp(
        self,
        depth: int,
        hidden: Tensor,
        embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """One depth, 1 … n_mtp: states h_{depth−1} [B, R, D] → h_depth [B, R, D].

        embeds [B, R, D] and position_ids [B, R]: of the tokens `depth` behind the rows. attention_mask [B, S + R]: 0
        where a row, of the S in the cache or of these, is padding. cache: this depth's own, grows by R rows.
        """
        module = depth - 1
        parts = [self.mtp_embed_norms[module](embeds), self.mtp_hidden_norms[module](hidden)]
        x = self.mtp_projs[module](torch.cat(parts, -1))
        mask = create_causal_mask(self.model.config, x, attention_mask, cache, position_ids=position_ids)
        x = self.model.layers[self.config.n_main + module](
            x,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=self.model.rotary_emb(x, position_ids),
        )
        return self.model.norm(x)

    def depths(
        self,
        ids: Tensor,
        hidden: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        deepest: int | None = None,
    ) -> list[Tensor]:
        """All depths in parallel: ids [B, T] and the trunk's h_0 [B, T, D] → [h_0, h_1 …], h_d [B, T − d, D].

        Row p of h_d has read the tokens 0 … p + d and predicts token p + d + 1. A row of the batch is one sequence;
        attention_mask [B, T] marks padding, on either side, and without position_ids they count from 0. deepest: the
        last depth that is asked for, default n_mtp; T must be greater, for every depth to have a row.
        """
        if position_ids is None:
            position_ids = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        embeds, states = self.model.embed_tokens(ids), [hidden]
        for depth in range(1, (self.n_mtp if deepest is None else deepest) + 1):
            valid = None if attention_mask is None else attention_mask[:, :-depth] * attention_mask[:, depth:]
            states.append(self.mtp(depth, states[-1][:, :-1], embeds[:, depth:], position_ids[:, depth:], valid))
        return states


def write_audio(embeds: Tensor, where: Tensor, features: Tensor) -> Tensor:
    """Put heard audio in: embeds [B, T, D] with the rows of `features` [M, D] at the M places of `where`, bool [B, T].

    In reading order, row of the batch by row. ValueError unless there are as many features as places.
    """
    if len(features) != int(where.sum()):
        raise ValueError(f"{len(features)} features of audio for {int(where.sum())} places in the prompt")
    return embeds.masked_scatter(where[..., None], features.to(embeds.dtype))


def is_mtp(name: str, n_main: int) -> bool:
    """Whether a parameter of this name belongs to multi-token prediction alone (norm, head and embeddings do not)."""
    return depth_of(name, n_main) > 0


def depth_of(name: str, n_main: int) -> int:
    """The depth that the parameter of this name belongs to alone; 0 where it is none's."""
    if module := re.search(r"(?:^|\.)mtp_(?:projs|embed_norms|hidden_norms)\.(\d+)\.", name):
        return int(module[1]) + 1
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return max(0, int(layer[1]) - n_main + 1) if layer else 0
