"""VITA-Audio by its equations: float64, one sequence, no cache, from the published weights. Slow and plain."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.contracts.vita_audio import HEADS, KV_HEADS, LAST, WIDTH


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    state = {}
    for file in folder.glob("model*.safetensors"):
        state |= load_file(file)
    return {name: tensor.double() for name, tensor in state.items()}


def rms(x, weight):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x, positions):
    """x [T, heads, D]; pairs (i, i + D/2) turn by position · 10^6^(−2i/D)."""
    half = x.shape[-1] // 2
    angle = positions.double()[:, None] * 1e6 ** (-torch.arange(half).double() / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class NaiveVita:
    def __init__(self, folder: Path, main: int):
        self.state, self.main = read_weights(folder), main
        self.n_mtp = sum(name.startswith("mtp_projs.") for name in self.state)

    def layer(self, index, x, positions):
        w, name = self.state, f"model.layers.{index}"
        h = rms(x, w[f"{name}.input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{name}.self_attn.{part}_proj.weight"].T + w[f"{name}.self_attn.{part}_proj.bias"]).view(
                len(x), -1, WIDTH // HEADS
            )
            for part in "qkv"
        )
        q, k = rotate(q, positions), rotate(k, positions)
        out = []
        for head in range(HEADS):
            shared = head * KV_HEADS // HEADS
            scores = q[:, head] @ k[:, shared].T / (WIDTH // HEADS) ** 0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(out, -1) @ w[f"{name}.self_attn.o_proj.weight"].T
        h = rms(x, w[f"{name}.post_attention_layernorm.weight"])
        gate = h @ w[f"{name}.mlp.gate_proj.weight"].T
        up = h @ w[f"{name}.mlp.up_proj.weight"].T
        return x + (gate * torch.sigmoid(gate) * up) @ w[f"{name}.mlp.down_proj.weight"].T

    def embed(self, ids):
        return self.state["model.embed_tokens.weight"][ids]

    def states(self, ids, embeds=None):
        """ids [T] → [h_0 [T, D], h_1 [T − 1, D] …]; as many as T allows."""
        w = self.state
        x, positions = self.embed(ids) if embeds is None else embeds.double(), torch.arange(len(ids))
        for index in range(self.main):
            x = self.layer(index, x, positions)
        states = [rms(x, w["model.norm.weight"])]
        for k in range(self.n_mtp):
            if len(ids) < k + 2:
                break
            e = rms(self.embed(ids[k + 1 :]), w[f"mtp_embed_norms.{k}.weight"])
            h = rms(states[-1][:-1], w[f"mtp_hidden_norms.{k}.weight"])
            z = torch.cat([e, h], -1) @ w[f"mtp_projs.{k}.weight"].T
            z = self.layer(self.main + k, z, torch.arange(k + 1, len(ids)))
            states.append(rms(z, w["model.norm.weight"]))
        return states

    def logits(self, hidden):
        return hidden @ self.state["lm_head.weight"].T


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def naive_encoder(weights, features, heads=4):
    """features [F, 560] → [F + 4, D], from the published weights."""
    prefix = "model.audio_model.model."
    w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    x = torch.cat([w["embed.weight"][[0, 1, 2, 15]], features.to(torch.bfloat16).double()])
    size = w["encoder.after_norm.weight"].shape[0]
    step = torch.log(torch.tensor(10000.0).double()) / 279
    angle = torch.arange(1, len(x) + 1).double()[:, None] * torch.exp(-torch.arange(280).double() * step)
    x = x * size**0.5 + torch.cat([angle.sin(), angle.cos()], 1)

    def layer(name, x, residual=True):
        h = layer_norm(x, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
        qkv = h @ w[f"{name}.self_attn.linear_q_k_v.weight"].T + w[f"{name}.self_attn.linear_q_k_v.bias"]
        q, k, v = qkv.split(size, 1)
        kernel = w[f"{name}.self_attn.fsmn_block.weight"][:, 0]
        padded = torch.cat([v.new_zeros(5, size), v, v.new_zeros(5, size)])
        memory = v + sum(padded[tap : tap + len(v)] * kernel[:, tap] for tap in range(11))
        wide = size // heads
        mixed = [
            (q[:, s] @ k[:, s].T / wide**0.5).softmax(-1) @ v[:, s]
            for s in (slice(head * wide, (head + 1) * wide) for head in range(heads))
        ]
        out = torch.cat(mixed, 1) @ w[f"{name}.self_attn.linear_out.weight"].T
        out = out + w[f"{name}.self_attn.linear_out.bias"] + memory
        x = x + out if residual else out
        h = layer_norm(x, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
        h = (h @ w[f"{name}.feed_forward.w_1.weight"].T + w[f"{name}.feed_forward.w_1.bias"]).clamp(min=0)
        return x + h @ w[f"{name}.feed_forward.w_2.weight"].T + w[f"{name}.feed_forward.w_2.bias"]

    x = layer("encoder.encoders0.0", x, residual=False)
    blocks = len({name.split(".")[2] for name in w if name.startswith("encoder.encoders.")})
    for index in range(blocks):
        x = layer(f"encoder.encoders.{index}", x)
    x = layer_norm(x, w["encoder.after_norm.weight"], w["encoder.after_norm.bias"])
    for index in range(LAST):
        x = layer(f"encoder.tp_encoders.{index}", x)
    return layer_norm(x, w["encoder.tp_norm.weight"], w["encoder.tp_norm.bias"])


def naive_projector(weights, states):
    prefix = "model.audio_projection."
    w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    x = layer_norm(states, w["pre_proj_layernorm.weight"], w["pre_proj_layernorm.bias"]) @ w["mlp.0.weight"].T
    return 0.5 * x * (1 + torch.erf(x / 2**0.5)) @ w["mlp.2.weight"].T
