"""Decoding through a network of Llama's kind, straight through its weights, prompts kept once for all of their answers.

transformers' modules run many operations a layer and step, each on a few numbers, and read a copy of its prompt for
each answer; hooks on them see no step of this. Here q, k and v are one matrix product, so are gate and up, and what is
added to the residual is added by the product itself; attention to the prompts is one matrix product for each group.
Weights are joined once a batch of answers, with those of LoRA merged in, hence for float32 weights only: in bfloat16,
merging would round what is sampled from away from what is scored.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel, Qwen2Model

from elocute.models import one_stream
from elocute.models.growing_cache import ROOM

KINDS = (LlamaModel, Qwen2Model)
_BIAS = re.compile(r"\.(o|gate|up|down)_proj\.bias$")


def fits(trunk) -> bool:
    """Whether a network is one of these, in float32, of plain linear layers or such with plain LoRA."""
    if type(trunk) not in KINDS or type(trunk.embed_tokens) is not torch.nn.Embedding:
        return False
    parts = [_projections(layer) for layer in trunk.layers]
    return (
        trunk.config.hidden_act == "silu"
        and not getattr(trunk.config, "use_sliding_window", False)
        and all(type(part) is torch.nn.Linear or _has_plain_lora(part) for of in parts for part in of)
        and not any(_base(part).bias is not None for of in parts for part in of[3:])
        and all(weight.dtype == torch.float32 for weight in trunk.parameters())
    )


def would_fit(config: Mapping[str, Any], weights: Iterable[str]) -> bool:
    """What `fits` will say of a causal LM in float32, by its config and its weights' names, before it is loaded."""
    return (
        config.get("model_type") in [kind.config_class.model_type for kind in KINDS]
        and config.get("hidden_act", "silu") == "silu"
        and not config.get("use_sliding_window", False)
        and not any(map(_BIAS.search, weights))
    )


class Decoder(one_stream.Decoder):
    """Answers that grow, as models/one_stream.py has it.

    An answer lives in a slot. When some have ended, those in the last slots move into theirs, so that the slots in use
    stay in front and nothing else is copied: `slots` says where the rows are, in their order.
    """

    def _share(self, group_size: int) -> None:
        trunk, count, device = self.lm.trunk(), len(self.mask) * group_size, self.mask.device
        config, attention = trunk.config, trunk.layers[0].self_attn
        self.width, self.eps = attention.head_dim, config.rms_norm_eps
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        # rotate_half(x) = [−x₂, x₁]: a roll, and this sign on its factor.
        self.sign = torch.ones(self.width, device=device)
        self.sign[: self.width // 2] = -1
        self.layers = [_Layer.of(layer) for layer in trunk.layers]
        self.read = [_Read.of(layer.keys, layer.values, count) for layer in self.cache.layers]
        self.cache, self.steps = None, 0
        unseen = self.prompt.new_zeros(self.mask.shape).masked_fill_(self.mask == 0, -torch.inf)
        self.unseen = unseen.repeat_interleave(self.keys, 0)[:, None]  # [P·heads, 1, S], what padding is given
        self.slots = torch.arange(count, device=device)
        self.owner = self.slots // group_size  # each slot's prompt
        self._group()

    def step(self, ids: Tensor) -> None:
        """Take the rows' next tokens, int64 [rows, 1]."""
        self.position = self.position + 1
        mine = torch.empty_like(ids[:, 0]).index_put_((self.slots,), ids[:, 0])
        self.hidden = [self._states(mine)[self.slots]]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64."""
        count, slots = len(rows), self.slots[rows]
        moving = slots >= count
        free = torch.ones(count, dtype=torch.bool, device=rows.device)
        free[slots[~moving]] = False
        [free] = free.nonzero(as_tuple=True)
        for read in self.read:
            read.own[:, free, :, : self.steps] = read.own[:, slots[moving], :, : self.steps]
        for of in (self.owner, self.position):
            of[free] = of[slots[moving]]
        self.owner, self.position = self.owner[:count], self.position[:count]
        self.slots = slots.index_put((moving,), free)
        self._group()

    def _group(self) -> None:
        """Where in the slots a prompt's answers are, and back.

        grouped: of each prompt, head and place in its group, the row of [slots·heads] that stands there, some answer's
        where none is left; back: of each of these rows, where it stands.
        """
        device, prompts = self.owner.device, len(self.prompt)
        counts = self.owner.bincount(minlength=prompts)
        order = self.owner.argsort(stable=True)
        inside = torch.arange(len(order), device=device) - (counts.cumsum(0) - counts)[self.owner[order]]
        self.places = int(counts.max())
        table = torch.zeros(prompts, self.places, dtype=torch.long, device=device)
        table[self.owner[order], inside] = order
        heads = torch.arange(self.keys, device=device)
        self.grouped = (table[:, None] * self.keys + heads[:, None]).flatten()
        place = torch.empty_like(order).index_put_((order,), inside)
        self.back = ((self.owner[:, None] * self.keys + heads) * self.places + place[:, None]).flatten()

    def _states(self, ids: Tensor) -> Tensor:
        """The states [slots, D] after these tokens, whose keys and values are written behind the others."""
        trunk = self.lm.trunk()
        x = functional.embedding(ids, trunk.embed_tokens.weight)
        cos, sin = trunk.rotary_emb(x, self.position[:, None])
        sin = sin * self.sign
        for layer, read in zip(self.layers, self.read, strict=True):
            qkv = self._normed(x) @ layer.qkv
            qkv = (qkv if layer.qkv_bias is None else qkv.add_(layer.qkv_bias)).view(len(ids), -1, self.width)
            turned, values = qkv.split([self.queries + self.keys, self.keys], 1)
            turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, -1), sin)
            query, key = turned.split([self.queries, self.keys], 1)
            read.write(self.steps, key, values)
            x.addmm_(self._attended(query.reshape(len(key) * self.keys, -1), read), layer.out)
            gate, up = (self._normed(x) @ layer.gate_up).chunk(2, -1)
            x.addmm_(functional.silu(gate).mul_(up), layer.down)
        self.steps += 1
        return self._normed(x, trunk.norm.weight)

    def _attended(self, query: Tensor, read: "_Read") -> Tensor:
        """What a layer's heads saw, [slots, heads·width]. query: [slots·heads, queries of a head·width]."""
        rows, groups = len(query), len(self.unseen)
        own_keys, own_values = read.own[:, : len(self.owner), :, : self.steps + 1].flatten(1, 2)
        asked = query[self.grouped].view(groups, -1, self.width)
        to_prompt = torch.baddbmm(self.unseen, asked, read.prompt_keys)
        to_prompt = to_prompt.view(groups * self.places, -1)[self.back].view(rows, -1, self.unseen.shape[-1])
        to_own = query.view(rows, -1, self.width) @ own_keys.transpose(1, 2)
        weights = torch.softmax(torch.cat([to_prompt, to_own], -1), -1)
        to_prompt, to_own = weights.split([to_prompt.shape[-1], self.steps + 1], -1)
        seen = to_prompt[self.grouped].view(groups, -1, to_prompt.shape[-1]) @ read.prompt_values
        seen = seen.view(groups * self.places, -1)[self.back].view(rows, -1, self.width)
        return seen.baddbmm_(to_own, own_values).view(len(self.owner), -1)

    def _normed(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, self.eps)


@dataclass(frozen=True)
class _Layer:
    """Matrices of x·W, which hold the weights of the norms before them; queries come out scaled."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer) -> "_Layer":
        query, key, value, out, gate, up, down = _projections(layer)
        biases = [_base(part).bias for part in (query, key, value)]
        queries, scaling = query.out_features, layer.self_attn.scaling
        qkv = _joined(query, key, value).mul_(layer.input_layernorm.weight[:, None])
        qkv[:, :queries] *= scaling
        bias = None if biases[0] is None else torch.cat(biases)
        if bias is not None:
            bias[:queries] *= scaling
        gate_up = _joined(gate, up).mul_(layer.post_attention_layernorm.weight[:, None])
        return cls(qkv, bias, _joined(out), gate_up, _joined(down))


@dataclass
class _Read:
    """What a layer has read.

    prompt_keys [P·heads, width, S], prompt_values [P·heads, S, width]; own [2, slots, heads, room, width]: the
    answers' keys and values.
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    own: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, slots: int) -> "_Read":
        """keys, values: the prompts', [P, heads, S, width]."""
        _, heads, _, width = keys.shape
        own = keys.new_empty(2, slots, heads, 0, width)
        return cls(keys.flatten(0, 1).transpose(1, 2).contiguous(), values.flatten(0, 1), own)

    def write(self, step: int, keys: Tensor, values: Tensor) -> None:
        """Those of a step, [slots, heads, width], behind the others; after ROOM steps all is copied once."""
        if step == self.own.shape[3]:
            longer = self.own.new_empty(*self.own.shape[:3], step + ROOM, self.own.shape[4])
            longer[:, :, :, :step] = self.own
            self.own = longer
        self.own[0, : len(keys), :, step] = keys
        self.own[1, : len(keys), :, step] = values


def _projections(layer) -> tuple:
    of, mlp = layer.self_attn, layer.mlp
    return of.q_proj, of.k_proj, of.v_proj, of.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _has_plain_lora(linear) -> bool:
    """Whether it is a linear layer with LoRA and none of LoRA's variants."""
    return hasattr(linear, "lora_A") and type(_base(linear)) is torch.nn.Linear and not linear.lora_variant


def _base(linear) -> torch.nn.Linear:
    """The layer itself, beneath its adapter if it has one."""
    return linear.get_base_layer() if hasattr(linear, "lora_A") else linear


def _joined(*linear) -> Tensor:
    """Layers side by side as one matrix [D, D'] of x·W: so it is read faster, at 64 rows, than its transpose."""
    return torch.cat([_weight(part).t() for part in linear], 1)


def _weight(linear) -> Tensor:
    """A linear layer's weight, with those of its adapters that are on."""
    weight = _base(linear).weight
    if not hasattr(linear, "lora_A") or linear.disable_adapters or linear.merged:
        return weight
    return sum((linear.get_delta_weight(name) for name in linear.active_adapters), weight)
