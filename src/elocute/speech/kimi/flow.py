"""Kimi-Audio's codes → mel spectrogram: a flow that a diffusion transformer (DiT, Peebles & Xie 2023) predicts.

A code is four frames of 20 ms. From noise x at t = 0, explicit Euler steps along dx/dt = v(x, t, codes) at 30 equally
spaced times lead to the log-mel at t = 1. v, with c = t_emb(⌊1000 t⌋) + Emb(code) a vector for each frame:

    block : x += g1·attention(LN(x)·(1 + s1) + b1);  x += g2·MLP(LN(x)·(1 + s2) + b2),  (b1,s1,g1,b2,s2,g2) = W·SiLU(c)
    v     = linear(LN(x)·(1 + s) + b),  (b, s) = W·SiLU(c);   the norms without weights of their own

Codes come in chunks of 30, each with up to 12 codes behind it to look ahead. Frames of a chunk see each other and the
keys of at most 900 frames before; those keys are of the finished frames, at t = 0.999.

What no published file was at hand to confirm: the names of the keys in config.yaml (they are looked for anywhere in
it); that t's sinusoids stand cosine first and the modulations in the order above, both as in DiT; and that positions
begin anew with an empty past where a chunk would pass the longest position. A checkpoint that holds a position
embedding besides is refused.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from elocute.data.shards import check_fit
from elocute.errors import InputError
from elocute.speech.kimi.torch_file import read_state

FRAMES, CHUNK, AHEAD, PAST, TIMES = 4, 30, 12, 900, 30
_PREFIX = "speech_model."

Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""For each block, keys and values [heads, frames, d] of the frames before."""


@dataclass(frozen=True)
class FlowConfig:
    """What the weights' shapes do not say. mean, std: of log-mels (0 and 1 where they are not normalised)."""

    heads: int
    rope_base: float
    positions: int
    mean: float = 0.0
    std: float = 1.0


class Flow(nn.Module):
    """Codes → log-mel. Frozen. The names are those of the published weights behind `speech_model.`."""

    def __init__(self, config: FlowConfig, *, hidden: int, depth: int, mlp: int, n_mels: int, n_codes: int, sines: int):
        """sines: width of t's sinusoids; mlp: of the MLPs' inner layer."""
        super().__init__()
        self.config, self.n_mels, self.n_codes, self.sines = config, n_mels, n_codes, sines
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(sines, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.semantic_token_embedding = nn.Embedding(n_codes + 1, hidden)  # one more: no code
        self.input_linear = nn.Linear(n_mels, hidden)
        self.blocks = nn.ModuleList(Block(hidden, config.heads, mlp) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(hidden, n_mels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.yaml: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Flow":
        """A folder with config.yaml and model.pt, `audio_detokenizer` of the published model; float32, on the CPU."""
        flow, state = cls.opened(Path(folder))
        flow.to_empty(device="cpu").load_state_dict(state)
        return flow.float().eval().requires_grad_(False)

    @classmethod
    def opened(cls, folder: Path) -> tuple["Flow", dict[str, torch.Tensor]]:
        """The flow, which has no weights yet, and those, mapped. InputError unless they fit."""
        config, state = _read_config(folder / "config.yaml"), read_state(folder / "model.pt", "state_dict", _PREFIX)
        if strange := [name for name in state if name.startswith("position_embedding.")]:
            raise InputError(f"{folder}: holds {strange[0]}: expected a flow whose positions are rotary alone")
        try:
            blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
            codes, hidden = state["semantic_token_embedding.weight"].shape
            with torch.device("meta"):
                flow = cls(
                    config,
                    hidden=hidden,
                    depth=len(blocks),
                    mlp=len(state["blocks.0.mlp.fc1.bias"]),
                    n_mels=state["input_linear.weight"].shape[1],
                    n_codes=codes - 1,
                    sines=state["t_embedder.mlp.0.weight"].shape[1],
                )
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{folder}: not a flow of Kimi-Audio: {reason}") from error
        check_fit(flow, {name: tensor.shape for name, tensor in state.items()}, f"{folder}: not a flow of Kimi-Audio")
        flow.yaml = folder / "config.yaml"
        return flow, state

    def save(self, folder: str | Path) -> None:
        """Write model.pt with these weights alone (the published one holds more) and copy config.yaml."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {_PREFIX + name: tensor.cpu() for name, tensor in self.state_dict().items()}
        torch.save({"state_dict": state}, folder / "model.pt")
        if self.yaml.resolve() != (folder / "config.yaml").resolve():
            shutil.copyfile(self.yaml, folder / "config.yaml")

    def forward(
        self, x: torch.Tensor, time: int, codes: torch.Tensor, start: int, past: Cache | None = None
    ) -> tuple[torch.Tensor, Cache]:
        """v of frames x [T, n_mels] at the time 0 … 999, with one code a frame [T]; and the frames' keys and values.

        start: the position of the first frame; past: what `forward` gave for the frames before.
        """
        condition = self._time(time, x) + self.semantic_token_embedding(codes)
        positions = torch.arange(start, start + len(x), device=x.device)
        x, present = self.input_linear(x), []
        for index, block in enumerate(self.blocks):
            before = past[index] if past else None
            x, kept = block(x, condition, positions, self.config.rope_base, before)
            present.append(kept)
        shift, scale = self.final_layer.adaLN_modulation(condition).chunk(2, -1)
        return self.final_layer.linear(_modulated(x, shift, scale)), present

    @torch.inference_mode()
    def mel(self, codes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """int64 [U] in 0 … n_codes − 1 → log-mel [4·U, n_mels]; generator, on the CPU: where the noise comes from."""
        device = self.input_linear.weight.device
        pieces, past, start = [torch.zeros(0, self.n_mels, device=device)], None, 0
        for first in range(0, len(codes), CHUNK):
            seen = codes[first : first + CHUNK + AHEAD].to(device).repeat_interleave(FRAMES)
            own = FRAMES * min(CHUNK, len(codes) - first)
            if start + len(seen) > self.config.positions:
                past, start = None, 0
            x = self._flow(torch.randn(len(seen), self.n_mels, generator=generator).to(device), seen, start, past)[:own]
            _, present = self(x, 999, seen[:own], start, past)
            past, start = _longer(past, present), start + own
            pieces.append(x)
        return torch.cat(pieces) * self.config.std + self.config.mean

    def _flow(self, x: torch.Tensor, codes: torch.Tensor, start: int, past: Cache | None) -> torch.Tensor:
        times = torch.linspace(0, 1, TIMES)
        for now, then in zip(times[:-1], times[1:], strict=True):
            x = x + (then - now).item() * self(x, int(1000 * now), codes, start, past)[0]
        return x

    def _time(self, time: int, x: torch.Tensor) -> torch.Tensor:
        """t's embedding [hidden]."""
        half = self.sines // 2
        angles = time * torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        return self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()]).to(x.dtype))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, mlp: int):
        super().__init__()
        self.heads = heads
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x, condition, positions, base, past):
        """x, condition [T, hidden]; positions [T]; past: keys and values [heads, P, d] → x, keys and values of x."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        parts = self.attn.qkv(_modulated(x, shift1, scale1)).reshape(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        query, key, value = _turned(parts[0], positions, base), _turned(parts[1], positions, base), parts[2]
        keys, values = key, value
        if past is not None:
            keys, values = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
        said = F.scaled_dot_product_attention(query[None], keys[None], values[None])[0]
        x = x + gate1 * self.attn.proj(said.transpose(0, 1).reshape(len(x), -1))
        inner = F.gelu(self.mlp.fc1(_modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.mlp.fc2(inner), (key, value)


def _modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _turned(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """x [heads, T, d]: the neighbours (2k, 2k + 1) of position p turned by p · base^(−2k/d)."""
    width = x.shape[-1]
    angles = positions[:, None] * base ** (-torch.arange(0, width, 2, device=x.device) / width)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _longer(past: Cache | None, present: Cache) -> Cache:
    """What the next chunk sees: the last 900 frames."""
    if past is None:
        past = [(key[:, :0], value[:, :0]) for key, value in present]
    return [
        tuple(torch.cat([old, new], 1)[:, -PAST:] for old, new in zip(before, now, strict=True))
        for before, now in zip(past, present, strict=True)
    ]


def _read_config(file: Path) -> FlowConfig:
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not the config of a flow: {' '.join(str(error).split())[:300]}") from error
    found = {
        name: _anywhere(file, said, name)
        for name in ("num_heads", "rope_base", "max_position_embeddings", "use_rope", "normalize_mel")
    }
    if missing := [name for name in ("num_heads", "rope_base", "max_position_embeddings") if found[name] is None]:
        raise InputError(f"{file}: {missing[0]}: missing")
    if found["use_rope"] is not True:
        raise InputError(f"{file}: use_rope: expected true, got {found['use_rope']!r}")
    scale = {}
    if found["normalize_mel"]:
        scale = {"mean": _anywhere(file, said, "mel_mean"), "std": _anywhere(file, said, "mel_std")}
    try:
        scale = {name: float(value) for name, value in scale.items()}
        base, longest = float(found["rope_base"]), int(found["max_position_embeddings"])
        return FlowConfig(heads=int(found["num_heads"]), rope_base=base, positions=longest, **scale)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: expected numbers: {error}") from error


def _anywhere(file: Path, said, name: str):
    """The value of a key wherever it stands; None where it does not. InputError when it stands twice, differently."""
    values, open_parts = [], [said]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, dict):
            values += [part[name]] if name in part else []
            open_parts += part.values()
    if any(value != values[0] for value in values):
        raise InputError(f"{file}: {name}: stands there more than once: {values[0]!r}, {values[1]!r}")
    return values[0] if values else None
