"""Kimi-Audio's network: two streams of tokens in, one distribution over each stream's next token out.

At every position p stand an audio token a and a text token t. With the embeddings E, the folded Whisper features f of
what is heard, and the continuous mask m that is 1 on the codes of heard speech:

    VQ(f)  = LN(W3·SiLU(W0·f + b0) + b3)
    x_p    = √2·(E[a_p] + VQ(f_p)) where m_p, else E[a_p];    h⁰_p = x_p + E[t_p]
    main   : h = norm(the residual stream after all layers);   text logits  = lm_head(h)
    branch : the residual stream after layer `kimia_mimo_transformer_from_layer_index` runs through the mimo layers,
             g = mimo_norm(…);                                 audio logits = mimo_output(g)

The original leaves E[t_p] out of a pass whose text ids are all 0: sampling step by step, that is every `!`, which is
id 0; scoring or training a whole sequence, it is none. Here it is always added, so that what is sampled is what is
scored.

Layers, norms and positions are Qwen2's; both stacks see the same positions and the same causal mask. A cache holds the
main layers first, then those of the branch. The names are those of the published weights.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import ModelOutput
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
)

from elocute.models.kimi.config import KimiConfig


@dataclass
class KimiHidden(ModelOutput):
    """Normed states [B, T, D] before each stream's head, audio first as in the published code; keys and values."""

    audio: torch.Tensor | None = None
    text: torch.Tensor | None = None
    past_key_values: Cache | None = None


@dataclass
class KimiLogits(ModelOutput):
    """Logits [B, T, V] of each stream's next token, audio first as in the published code; keys and values."""

    audio: torch.Tensor | None = None
    text: torch.Tensor | None = None
    past_key_values: Cache | None = None


class VQAdaptor(nn.Module):
    """Folded Whisper features […, A] → [..., D] beside the codes' embeddings."""

    def __init__(self, config: KimiConfig):
        super().__init__()
        width, hidden = config.kimia_adaptor_input_dim, config.hidden_size
        norm = nn.LayerNorm(hidden, eps=config.rms_norm_eps)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.0), nn.Linear(hidden, hidden), norm
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


class KimiModel(Qwen2Model):
    """Everything below the two heads."""

    config: KimiConfig

    def __init__(self, config: KimiConfig):
        super().__init__(config)
        self.mimo_layers = nn.ModuleList(Qwen2DecoderLayer(config, 0) for _ in range(config.kimia_mimo_layers))
        for index, layer in enumerate(self.mimo_layers, config.num_hidden_layers):
            layer.self_attn.layer_idx = index  # its place in the cache
        self.mimo_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.vq_adaptor = VQAdaptor(config)
        self.post_init()

    def forward(
        self,
        audio_ids: torch.Tensor,
        text_ids: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        continuous: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> KimiHidden:
        """audio_ids, text_ids int64 [B, T], see `embed` for the rest of what comes in.

        attention_mask [B, past + T] 1 for what is no padding; position_ids [B, T], None: counted from what is cached.
        use_cache: give back past_key_values with these positions' keys and values added.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        hidden = self.embed(audio_ids, text_ids, features, continuous)
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        shared = {
            "attention_mask": create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            ),
            "position_embeddings": self.rotary_emb(hidden, position_ids),
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        branch = hidden
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, **shared)
            if index == self.config.kimia_mimo_transformer_from_layer_index:
                branch = hidden
        for layer in self.mimo_layers:
            branch = layer(branch, **shared)
        return KimiHidden(self.mimo_norm(branch), self.norm(hidden), past_key_values if use_cache else None)

    def embed(
        self,
        audio_ids: torch.Tensor,
        text_ids: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        continuous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum of both streams' embeddings, [B, T, D]. text_ids None: the audio stream's alone.

        continuous: bool [B, T], which cells are heard speech, None: none. features [N, A]: the folded Whisper features
        of its N cells, in their order, one row of the batch after the other. √2 scales the audio part alone.
        """
        embedded = self.embed_tokens(audio_ids)
        if (continuous is None) != (features is None):
            raise ValueError("features and the continuous mask that says where they stand come together")
        if continuous is not None:
            if continuous.sum() != len(features):
                raise ValueError(f"{len(features)} features for {int(continuous.sum())} cells of heard speech")
            heard = self.vq_adaptor(features.to(self.embed_tokens.weight.dtype))
            rows = math.sqrt(2) * (embedded[continuous] + heard)
            embedded = embedded.masked_scatter(continuous[..., None], rows.to(embedded.dtype))
        return embedded if text_ids is None else embedded + self.embed_tokens(text_ids)


class KimiForCausalLM(Qwen2PreTrainedModel, GenerationMixin):
    """The network with its heads: `lm_head` for text, `mimo_output` for audio, both over the whole vocabulary.

    `generate` is not its way to be sampled from: two streams grow at once (see `reply`).
    """

    config: KimiConfig
    config_class = KimiConfig
    _tied_weights_keys = None  # three matrices of their own

    def __init__(self, config: KimiConfig):
        super().__init__(config)
        self.model = KimiModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mimo_output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, audio_ids: torch.Tensor, text_ids: torch.Tensor | None = None, **inputs) -> KimiLogits:
        """As `KimiModel.forward`; logits of both streams at all positions."""
        hidden = self.model(audio_ids, text_ids, **inputs)
        return KimiLogits(self.mimo_output(hidden.audio), self.lm_head(hidden.text), hidden.past_key_values)
