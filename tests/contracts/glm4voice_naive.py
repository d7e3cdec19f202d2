"""GLM-4-Voice's codec a second time, by its equations, in float64 and one step after the other.

Weights come under their published names, those under weight norm in two parts.
"""

import math

import numpy as np
import torch

erf = np.vectorize(math.erf)


class Naive:
    def __init__(self, weights: dict[str, torch.Tensor]):
        self.w = {name: tensor.double().numpy() for name, tensor in weights.items()}

    def kernel(self, name: str) -> np.ndarray:
        if f"{name}.weight" in self.w:
            return self.w[f"{name}.weight"]
        pairs = zip(self.w[f"{name}.weight_g"], self.w[f"{name}.weight_v"], strict=True)
        return np.stack([g * v / np.sqrt((v**2).sum()) for g, v in pairs])

    def bias(self, name: str):
        return self.w.get(f"{name}.bias", 0.0)

    def linear(self, x, name):  # x [T, C]
        return x @ self.kernel(name).T + self.bias(name)

    def conv(self, x, name, before, after, stride=1, dilation=1):  # x [C, T]
        kernel = self.kernel(name)
        x = np.pad(x, ((0, 0), (before, after)))
        count = (x.shape[1] - dilation * (kernel.shape[2] - 1) - 1) // stride + 1
        heard = (x[:, tap * dilation :: stride][:, :count] for tap in range(kernel.shape[2]))
        return sum(kernel[:, :, tap] @ part for tap, part in enumerate(heard)) + self.column(name)

    def spread(self, x, name, rate, cut):  # every input frame adds its kernel to the output
        kernel = self.kernel(name)
        out = np.zeros((kernel.shape[1], (x.shape[1] - 1) * rate + kernel.shape[2]))
        for t in range(x.shape[1]):
            out[:, t * rate : t * rate + kernel.shape[2]] += np.einsum("i,iok->ok", x[:, t], kernel)
        return out[:, cut : out.shape[1] - cut] + self.column(name)

    def column(self, name):
        return self.w[f"{name}.bias"][:, None]

    def norm(self, x, name):  # x [T, C], over C
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def group_norm(self, x, name, groups):  # x [C, T]
        parts = [(p - p.mean()) / np.sqrt(p.var() + 1e-5) for p in np.split(x, groups)]
        return np.concatenate(parts) * self.w[f"{name}.weight"][:, None] + self.column(name)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def silu(x):
    return x / (1 + np.exp(-x))


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


# ---- tokenizer


def states(weights, said: dict, features: np.ndarray, valid: int) -> np.ndarray:
    """Log-mel [mel, F] of which the first `valid` frames are sound → [F / 8, D], what is compared to the codebook."""
    n, block, heads = Naive(weights), said["quantize_causal_block_size"], said["encoder_attention_heads"]
    x = gelu(n.conv(features.astype(np.float64), "conv1", 2, 0))
    x = gelu(n.conv(x, "conv2", 2, 0, stride=2)).T
    x = x + n.w["embed_positions.weight"][: len(x)]
    hears = [
        [j for j in range(len(x)) if 2 * j < valid and (j <= i or j // block == i // block)] for i in range(len(x))
    ]
    for layer in range(said["quantize_position"]):
        place, size = f"layers.{layer}", x.shape[1] // heads
        y = n.norm(x, f"{place}.self_attn_layer_norm")
        q, k, v = (n.linear(y, f"{place}.self_attn.{part}_proj") for part in "qkv")
        mixed = np.zeros_like(x)
        for i, heard in enumerate(hears):
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                mixed[i, own] = softmax(k[heard, own] @ q[i, own] / math.sqrt(size)) @ v[heard, own]
        x = x + n.linear(mixed, f"{place}.self_attn.out_proj")
        y = n.norm(x, f"{place}.final_layer_norm")
        x = x + n.linear(gelu(n.linear(y, f"{place}.fc1")), f"{place}.fc2")
    return x.reshape(-1, said["pooling_kernel_size"], x.shape[1]).mean(1)


# ---- flow


def distance_code(distance: int, width: int) -> np.ndarray:
    code = np.zeros(width)
    for k in range(width // 2):
        code[2 * k] = math.sin(distance / 10000 ** (2 * k / width))
        code[2 * k + 1] = math.cos(distance / 10000 ** (2 * k / width))
    return code


def conformer(n: Naive, units, heads: int, blocks: int, block: int) -> np.ndarray:
    """Units [N] → states [N, D]."""
    x = n.norm(n.linear(n.w["input_embedding.weight"][units], "encoder.embed.out.0"), "encoder.embed.out.1")
    width, size = x.shape[1], x.shape[1] // heads
    x = x * math.sqrt(width)
    for index in range(blocks):
        place = f"encoder.encoders.{index}"
        y = n.norm(x, f"{place}.norm_mha")
        q, k, v = (n.linear(y, f"{place}.self_attn.linear_{part}") for part in "qkv")
        u_bias, v_bias = n.w[f"{place}.self_attn.pos_bias_u"], n.w[f"{place}.self_attn.pos_bias_v"]
        mixed = np.zeros_like(x)
        for i in range(len(x)):
            heard = [j for j in range(len(x)) if j <= i or j // block == i // block]
            far = np.stack([n.linear(distance_code(i - j, width), f"{place}.self_attn.linear_pos") for j in heard])
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                scores = k[heard, own] @ (q[i, own] + u_bias[head]) + far[:, own] @ (q[i, own] + v_bias[head])
                mixed[i, own] = softmax(scores / math.sqrt(size)) @ v[heard, own]
        x = x + n.linear(mixed, f"{place}.self_attn.linear_out")
        y = n.norm(x, f"{place}.norm_ff")
        x = x + n.linear(silu(n.linear(y, f"{place}.feed_forward.w_1")), f"{place}.feed_forward.w_2")
    return n.norm(x, "encoder.after_norm")


def mean(n: Naive, units) -> np.ndarray:
    """Units [N] → [mel, T]."""
    x = n.linear(conformer(n, units, heads=2, blocks=2, block=10), "encoder_proj").T
    frames = len(units) * 441 // 64  # 12.5 units and 22050 / 256 frames a second
    x = x[:, [frame * len(units) // frames for frame in range(frames)]]
    for index in (0, 3, 6, 9):
        x = n.conv(x, f"length_regulator.model.{index}", 1, 1)
        x = mish(n.group_norm(x, f"length_regulator.model.{index + 1}", 1))
    return n.conv(x, "length_regulator.model.12", 0, 0)


def estimate(n: Naive, x: np.ndarray, time: float, heads: int) -> np.ndarray:
    """[4 · mel, T] → [mel, T]."""
    top, half = "decoder.estimator", len(x) // 2
    angles = [1000 * time * 10000 ** (-k / (half - 1)) for k in range(half)]
    code = np.array([*map(math.sin, angles), *map(math.cos, angles)])
    code = n.linear(silu(n.linear(code, f"{top}.time_mlp.linear_1")), f"{top}.time_mlp.linear_2")

    def conv_block(x, name):
        return mish(n.group_norm(n.conv(x, f"{name}.block.0", 1, 1), f"{name}.block.1", 8))

    def residual(x, name):
        h = conv_block(x, f"{name}.block1") + n.linear(mish(code), f"{name}.mlp.1")[:, None]
        return conv_block(h, f"{name}.block2") + n.conv(x, f"{name}.res_conv", 0, 0)

    def transformer(x, name):  # x [T, C]
        y = n.norm(x, f"{name}.norm1")
        q, k, v = (n.linear(y, f"{name}.attn1.to_{part}") for part in "qkv")
        size, mixed = q.shape[1] // heads, np.zeros_like(q)
        for i in range(len(x)):
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                mixed[i, own] = softmax(k[:, own] @ q[i, own] / math.sqrt(size)) @ v[:, own]
        x = x + n.linear(mixed, f"{name}.attn1.to_out.0")
        y = n.norm(x, f"{name}.norm3")
        return x + n.linear(gelu(n.linear(y, f"{name}.ff.net.0.proj")), f"{name}.ff.net.2")

    def level(x, name):
        x = residual(x, f"{top}.{name}.0").T
        for index in range(2):
            x = transformer(x, f"{top}.{name}.1.{index}")
        return x.T

    long = level(x, "down_blocks.0")
    short = level(n.conv(long, f"{top}.down_blocks.0.2.conv", 1, 1, stride=2), "down_blocks.1")
    x = n.conv(short, f"{top}.down_blocks.1.2", 1, 1)
    x = level(level(x, "mid_blocks.0"), "mid_blocks.1")
    x = n.spread(level(np.concatenate([x, short]), "up_blocks.0"), f"{top}.up_blocks.0.2.conv", 2, 1)
    x = level(np.concatenate([x[:, : long.shape[1]], long]), "up_blocks.1")
    x = n.conv(x, f"{top}.up_blocks.1.2", 1, 1)
    return n.conv(conv_block(x, f"{top}.final_block"), f"{top}.final_proj", 0, 0)


def log_mel(weights, units, noise: np.ndarray, steps: int, speaker: np.ndarray) -> np.ndarray:
    """Units [N] and noise [mel, T] → [mel, T]."""
    n = Naive(weights)
    mu = mean(n, units)
    length = math.sqrt((speaker**2).sum())
    voice = n.linear(speaker / length if length else speaker, "spk_embed_affine_layer")
    nothing, x = np.zeros_like(mu), noise.astype(np.float64)
    for step in range(steps):
        now, then = (1 - math.cos(math.pi / 2 * place / steps) for place in (step, step + 1))
        told = estimate(n, np.concatenate([x, mu, np.tile(voice[:, None], mu.shape[1]), nothing]), now, heads=2)
        free = estimate(n, np.concatenate([x, nothing, nothing, nothing]), now, heads=2)
        x = x + (then - now) * (1.7 * told - 0.7 * free)
    return x


# ---- vocoder


def pitch(n: Naive, mel: np.ndarray) -> np.ndarray:
    """[mel, T] → Hz [T]."""
    x = mel
    for index in (0, 2, 4, 6, 8):
        x = n.conv(x, f"f0_predictor.condnet.{index}", 1, 1)
        x = np.where(x > 0, x, np.exp(x) - 1)
    return np.abs(n.linear(x.T, "f0_predictor.classifier"))[:, 0]


def source(n: Naive, f0: np.ndarray, phases: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Hz [T], phases [9], noise [9, 256 · T] → [256 · T]."""
    f0 = np.repeat(f0, 256)
    turns = np.cumsum(f0) / 22050
    waves = np.zeros_like(noise, dtype=np.float64)
    for index in range(9):
        sine = 0.1 * np.sin(2 * np.pi * (index + 1) * turns + (phases[index] if index else 0))
        waves[index] = np.where(f0 > 10, sine + 0.003 * noise[index], 0.1 / 3 * noise[index])
    return np.tanh(n.linear(waves.T, "m_source.l_linear"))[:, 0]


def sound(n: Naive, mel: np.ndarray, source: np.ndarray) -> np.ndarray:
    """[mel, T] and its source [256 · T] → [256 · T]."""

    def snake(x, name):
        alpha = n.w[f"{name}.alpha"][:, None]
        return x + np.sin(alpha * x) ** 2 / alpha

    def block(x, name, kernel):
        for index, dilation in enumerate((1, 3, 5)):
            reach = dilation * (kernel - 1) // 2
            y = snake(x, f"{name}.activations1.{index}")
            y = n.conv(y, f"{name}.convs1.{index}", reach, reach, dilation=dilation)
            y = snake(y, f"{name}.activations2.{index}")
            x = x + n.conv(y, f"{name}.convs2.{index}", kernel // 2, kernel // 2)
        return x

    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * t / 16) for t in range(16)])
    padded = np.pad(source, 8, mode="reflect")
    spectrum = np.stack([np.fft.rfft(padded[at : at + 16] * window) for at in range(0, len(padded) - 15, 4)], 1)
    driven = np.concatenate([spectrum.real, spectrum.imag])
    x = n.conv(mel, "conv_pre", 3, 3)
    for stage, kernel in enumerate((7, 11)):
        x = n.spread(leaky(x, 0.1), f"ups.{stage}", 8, 4)
        if stage == 1:
            x = np.concatenate([x[:, 1:2], x], 1)
        down = n.conv(driven, "source_downs.1", 0, 0) if stage else n.conv(driven, "source_downs.0", 4, 4, stride=8)
        x = x + block(down, f"source_resblocks.{stage}", kernel)
        x = sum(block(x, f"resblocks.{3 * stage + index}", size) for index, size in enumerate((3, 7, 11))) / 3
    x = n.conv(leaky(x, 0.01), "conv_post", 3, 3)
    spectrum = np.minimum(np.exp(x[:9]), 100) * np.exp(1j * np.sin(x[9:]))
    total, weight = np.zeros(len(source) + 16), np.zeros(len(source) + 16)
    for frame in range(spectrum.shape[1]):
        total[4 * frame : 4 * frame + 16] += np.fft.irfft(spectrum[:, frame]) * window
        weight[4 * frame : 4 * frame + 16] += window**2
    return np.clip(total[8:-8] / weight[8:-8], -0.99, 0.99)


def waveform(flow_weights, hift_weights, units, steps: int) -> np.ndarray:
    """What the original says: everything random after `torch.manual_seed(42)`, from torch's global generator."""
    frames = len(units) * 441 // 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        noise = torch.randn(1, 8, frames)[0].numpy()
        phases = torch.distributions.Uniform(-np.pi, np.pi).sample((1, 9, 1))[0, :, 0].double().numpy()
        hiss = torch.randn(1, 9, 256 * frames)[0].double().numpy()
    mel = log_mel(flow_weights, units, noise, steps, np.zeros(12))
    n = Naive(hift_weights)
    return sound(n, mel, source(n, pitch(n, mel), phases, hiss))
