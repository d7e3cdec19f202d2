"""Kimi-Audio's voice: the published equations, the published files."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from elocute.errors import InputError
from elocute.speech.kimi import BigVGAN, Detokenizer, Flow
from elocute.speech.kimi.bigvgan import Activation
from elocute.speech.units import BrokenUnits
from tests.contracts import kimi_sound
from tests.contracts.kimi_sound import CODES, DEPTH, HEADS, HIDDEN, MELS, SINES, VOCODER, YAML


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi_sound.build(tmp_path_factory.mktemp("voice"))


@pytest.fixture(scope="module")
def flow(folder) -> Flow:
    return Flow.load(folder / "audio_detokenizer")


@pytest.fixture(scope="module")
def voice(folder) -> Detokenizer:
    return Detokenizer.load(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


class NaiveFlow:
    """The flow by its equations, float64, frame by frame."""

    def __init__(self, folder: Path):
        state = torch.load(folder / "audio_detokenizer/model.pt", weights_only=True)["state_dict"]
        self.weights = {name.removeprefix("speech_model."): x.double().numpy() for name, x in state.items()}

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def time(self, t):
        angles = [t * 10000 ** (-k / (SINES // 2)) for k in range(SINES // 2)]
        x = self.linear(np.array([*map(math.cos, angles), *map(math.sin, angles)]), "t_embedder.mlp.0")
        return self.linear(silu(x), "t_embedder.mlp.2")

    def turned(self, x, position):
        out = x.copy()
        for head in range(HEADS):
            for pair in range(HIDDEN // HEADS // 2):
                turn = np.exp(1j * position * 10000.0 ** (-2 * pair / (HIDDEN // HEADS)))
                z = complex(x[head, 2 * pair], x[head, 2 * pair + 1]) * turn
                out[head, 2 * pair : 2 * pair + 2] = z.real, z.imag
        return out

    def velocity(self, x, t, codes, start, past):
        """past: for each block, the (key, value) [H, d] of every frame before → v, those of these frames."""
        condition = self.time(t) + self.weights["semantic_token_embedding.weight"][codes]
        x, present = self.linear(x, "input_linear"), []
        for block in range(DEPTH):
            name = f"blocks.{block}"
            parts = np.split(self.linear(silu(condition), f"{name}.adaLN_modulation.1"), 6, axis=1)
            normed = norm(x) * (1 + parts[1]) + parts[0]
            qkv = self.linear(normed, f"{name}.attn.qkv").reshape(len(x), 3, HEADS, -1)
            now = [(self.turned(row[1], start + at), row[2]) for at, row in enumerate(qkv)]
            seen = [*past[block], *now]
            said = np.zeros((len(x), HEADS, HIDDEN // HEADS))
            for at, row in enumerate(qkv):
                query = self.turned(row[0], start + at)
                for head in range(HEADS):
                    scores = np.array([key[head] @ query[head] for key, _ in seen]) / math.sqrt(HIDDEN // HEADS)
                    share = np.exp(scores - scores.max())
                    said[at, head] = sum(
                        w * value[head] for w, (_, value) in zip(share / share.sum(), seen, strict=True)
                    )
            x = x + parts[2] * self.linear(said.reshape(len(x), -1), f"{name}.attn.proj")
            inner = self.linear(norm(x) * (1 + parts[4]) + parts[3], f"{name}.mlp.fc1")
            inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + parts[5] * self.linear(inner, f"{name}.mlp.fc2")
            present.append(now)
        shift, scale = np.split(self.linear(silu(condition), "final_layer.adaLN_modulation.1"), 2, axis=1)
        return self.linear(norm(x) * (1 + scale) + shift, "final_layer.linear"), present


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def frames(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, MELS, generator=torch.Generator().manual_seed(seed))


def test_the_flow_follows_its_equations_with_and_without_a_past(folder, flow):
    naive, codes = NaiveFlow(folder), torch.tensor([5, 5, 0, 47, 3])
    first, second = frames(5, 0), frames(3, 1)
    found, past = flow(first, 999, codes, 11)
    wanted, naive_past = naive.velocity(first.double().numpy(), 999, codes.numpy(), 11, [[]] * DEPTH)
    assert np.abs(found.numpy() - wanted).max() < 1e-5 and np.abs(wanted).mean() > 0.1
    found, _ = flow(second, 310, codes[:3], 16, past)
    wanted, _ = naive.velocity(second.double().numpy(), 310, codes[:3].numpy(), 16, naive_past)
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    alone, _ = flow(second, 310, codes[:3], 16)
    assert (found - alone).abs().max() > 1e-3


STEPS = 3
"""Of the flow below, for speed; there are 29."""


def naive_mel(flow: Flow, codes: list[int], noise: list[torch.Tensor], past_frames: int) -> torch.Tensor:
    """Chunk by chunk as published, on top of the velocity that was compared above."""
    past, start, out = None, 0, []
    for chunk, x in enumerate(noise):
        own, ahead = codes[30 * chunk : 30 * chunk + 30], codes[30 * chunk + 30 : 30 * chunk + 42]
        seen = torch.tensor([code for code in own + ahead for _ in range(4)])
        for step in range(STEPS):
            x = x + flow(x, 1000 * step // STEPS, seen, start, past)[0] / STEPS
        x = x[: 4 * len(own)]
        _, now = flow(x, 999, seen[: len(x)], start, past)
        if past is not None:
            now = [(torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1)) for a, b in zip(past, now, strict=True)]
        past = [(key[:, -past_frames:], value[:, -past_frames:]) for key, value in now]
        start += len(x)
        out.append(x)
    return torch.cat(out) * YAML["mel_std"] + YAML["mel_mean"]


@pytest.mark.parametrize("limit", [900, 100])
def test_a_mel_grows_in_chunks_that_look_ahead_and_back(flow, monkeypatch, limit):
    monkeypatch.setattr("elocute.speech.kimi.flow.PAST", limit)
    monkeypatch.setattr("elocute.speech.kimi.flow.TIMES", STEPS + 1)
    codes = torch.randint(0, CODES, (70,), generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(4 * count, MELS, generator=generator) for count in (42, 40, 10)]
    mel = flow.mel(codes, torch.Generator().manual_seed(3))
    assert mel.shape == (280, MELS)
    assert torch.allclose(mel, naive_mel(flow, codes.tolist(), noise, limit), atol=1e-4)


def test_positions_begin_anew_before_the_longest(copy, monkeypatch):
    monkeypatch.setattr("elocute.speech.kimi.flow.TIMES", STEPS + 1)
    file = copy / "audio_detokenizer/config.yaml"
    file.write_text(file.read_text().replace("4096", "250"))
    flow, codes = Flow.load(copy / "audio_detokenizer"), torch.arange(40)
    generator = torch.Generator().manual_seed(4)
    mel = flow.mel(torch.cat([codes[:30], codes[:30], codes]), torch.Generator().manual_seed(4))
    noise = [torch.randn(4 * count, MELS, generator=generator) for count in (42, 42, 40, 10)]
    fresh = naive_mel(flow, codes.tolist(), noise[2:], 900)  # 120 + 120 + 160 > 250: no past
    assert torch.allclose(mel[240:], fresh, atol=1e-4)


def test_times_are_whole_thousandths(flow, monkeypatch):
    seen = []
    forward = Flow.forward
    monkeypatch.setattr(
        Flow, "forward", lambda self, x, time, *rest: seen.append(time) or forward(self, x, time, *rest)
    )
    flow.mel(torch.tensor([1]), torch.Generator().manual_seed(0))
    assert seen == [1000 * step // 29 for step in range(29)] + [999]


# BigVGAN


def test_the_filters_computed_are_kaisers():
    beta = 0.1102 * (2.285 * 5 * math.pi * 1.2 + 7.95 - 8.7)
    taps = np.kaiser(12, beta) * np.sinc(0.5 * (np.arange(12) - 5.5))
    activation = Activation(3, True)
    for found in (activation.upsample.filter, activation.downsample.lowpass.filter):
        assert np.abs(found.numpy()[0, 0] - taps / taps.sum()).max() < 1e-6


def naive_vocoder(state: dict[str, torch.Tensor], mel: np.ndarray) -> np.ndarray:
    """mel [M, T] → sound by the equations, float64."""
    state = {name: tensor.double().numpy() for name, tensor in state.items()}

    def kernel(name):
        direction = state[f"{name}.weight_v"]
        rows = [g * v / np.sqrt((v**2).sum()) for g, v in zip(state[f"{name}.weight_g"], direction, strict=True)]
        return np.stack(rows), state.get(f"{name}.bias", np.zeros(1))[:, None]

    def convolve(x, name, dilation=1):
        weight, bias = kernel(name)
        size = weight.shape[2]
        padded = np.pad(x, ((0, 0), (dilation * (size - 1) // 2,) * 2))
        return sum(weight[:, :, k] @ padded[:, k * dilation : k * dilation + x.shape[1]] for k in range(size)) + bias

    def spread(x, name, rate):
        weight, bias = kernel(name)
        size = weight.shape[2]
        out = np.zeros((weight.shape[1], (x.shape[1] - 1) * rate + size))
        for t in range(x.shape[1]):
            out[:, t * rate : t * rate + size] += np.einsum("i,iok->ok", x[:, t], weight)
        cut = (size - rate) // 2
        return out[:, cut : out.shape[1] - cut] + bias

    def activate(x, name):
        taps = state[f"{name}.upsample.filter"][0, 0]
        doubled = np.zeros((len(x), 2 * (x.shape[1] + 10)))
        doubled[:, ::2] = np.pad(x, ((0, 0), (5, 5)), mode="edge")
        up = 2 * np.stack([np.convolve(row[:-1], taps) for row in doubled])[:, 15:-15]
        alpha, beta = (np.exp(state[f"{name}.act.{part}"])[:, None] for part in ("alpha", "beta"))
        up = up + np.sin(alpha * up) ** 2 / (beta + 1e-9)
        taps = state[f"{name}.downsample.lowpass.filter"][0, 0]
        padded = np.pad(up, ((0, 0), (5, 6)), mode="edge")
        return np.stack([np.convolve(row, taps[::-1], mode="valid")[::2] for row in padded])

    x, blocks = convolve(mel, "conv_pre"), len(VOCODER["resblock_kernel_sizes"])
    for stage, rate in enumerate(VOCODER["upsample_rates"]):
        x, parts = spread(x, f"ups.{stage}.0", rate), []
        for block, dilations in enumerate(VOCODER["resblock_dilation_sizes"]):
            y, name = x, f"resblocks.{stage * blocks + block}"
            for index, dilation in enumerate(dilations):
                inner = convolve(activate(y, f"{name}.activations.{2 * index}"), f"{name}.convs1.{index}", dilation)
                y = y + convolve(activate(inner, f"{name}.activations.{2 * index + 1}"), f"{name}.convs2.{index}")
            parts.append(y)
        x = sum(parts) / blocks
    return np.clip(convolve(activate(x, "activation_post"), "conv_post")[0], -1, 1)


def test_the_vocoder_follows_its_equations(folder):
    vocoder, mel = BigVGAN.load(folder / "vocoder"), frames(4, 5)
    state = torch.load(folder / "vocoder/model.pt", weights_only=True)["generator"]
    found, wanted = vocoder(mel.T[None])[0].numpy(), naive_vocoder(state, mel.T.double().numpy())
    assert found.shape == wanted.shape == (4 * 480,)
    assert np.abs(found - wanted).max() < 1e-4
    assert 0.01 < np.abs(wanted).mean() and np.abs(wanted).max() < 1


def test_a_final_tanh_and_its_bias_where_the_config_is_silent(copy):
    file, weights = copy / "vocoder/config.json", copy / "vocoder/model.pt"
    said = {key: value for key, value in VOCODER.items() if not key.endswith("at_final")}
    mel, plain = 30 * frames(2, 6).T[None], BigVGAN.load(copy / "vocoder")
    file.write_text(json.dumps(said))
    with pytest.raises(InputError, match="conv_post.bias"):
        BigVGAN.load(copy / "vocoder")
    state = torch.load(weights, weights_only=True)["generator"]
    torch.save({"generator": state | {"conv_post.bias": torch.zeros(1)}}, weights)
    bounded = BigVGAN.load(copy / "vocoder")(mel)
    inside = plain(mel).abs() < 1
    assert torch.allclose(bounded[inside], torch.tanh(plain(mel)[inside]), atol=1e-6)


# both


def test_codes_become_sound_always_the_same(voice):
    codes = np.random.default_rng(0).integers(0, CODES, 4)
    sound = voice.decode(codes)
    assert sound.dtype == np.float32 and sound.shape == (4 * 1920,) and np.abs(sound).max() <= 1
    assert (voice.sample_rate, voice.samples_per_code, voice.n_codes) == (24000, 1920, CODES)
    assert np.array_equal(sound, voice.decode(list(codes)))
    other = voice.decode(CODES - 1 - codes)
    assert np.abs(sound - other).max() > 1e-3


def test_no_codes_no_sound_and_no_code_is_refused(voice):
    assert voice.decode([]).shape == (0,)
    for wrong in (CODES, -1):  # the embedding has one row more, for no code
        with pytest.raises(BrokenUnits, match="units: expected 0 … 47"):
            voice.decode([1, wrong])


def test_saved_it_sounds_the_same_from_the_same_names(folder, voice, tmp_path):
    voice.save(tmp_path)
    again = Detokenizer.load(tmp_path)
    assert np.array_equal(again.decode([1, 2, 3]), voice.decode([1, 2, 3]))
    again.save(tmp_path)  # onto itself
    for part in ("audio_detokenizer", "vocoder"):
        assert {file.name for file in (tmp_path / part).iterdir()} == {file.name for file in (folder / part).iterdir()}
    old, new = (torch.load(place / "audio_detokenizer/model.pt", weights_only=True) for place in (folder, tmp_path))
    kept = {name: x for name, x in old["state_dict"].items() if name.startswith("speech_model.")}
    assert kept.keys() == new["state_dict"].keys()
    assert all(torch.equal(kept[name], new["state_dict"][name]) for name in kept)


# bad input


def change_yaml(folder: Path, **values) -> None:
    said = {"flat": YAML["model"]["dit"] | values, "mel_mean": 0.0, "mel_std": 1.0}
    said["flat"] = {key: value for key, value in said["flat"].items() if value is not ...}
    (folder / "audio_detokenizer/config.yaml").write_text(yaml.safe_dump(said))


def test_the_yaml_may_nest_as_it_likes_and_mels_need_not_be_normalised(copy):
    change_yaml(copy)
    config = Flow.load(copy / "audio_detokenizer").config
    assert (config.heads, config.rope_base, config.positions, config.mean, config.std) == (HEADS, 10000.0, 4096, 0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": ...}, "num_heads: missing"),
        ({"use_rope": False}, "use_rope: expected true"),
        ({"num_heads": "two"}, "expected numbers"),
        ({"more": {"num_heads": 3}}, "num_heads: stands there more than once"),
    ],
)
def test_a_yaml_that_does_not_fit_is_one_line(copy, values, message):
    change_yaml(copy, **values)
    with pytest.raises(InputError, match=message) as caught:
        Flow.load(copy / "audio_detokenizer")
    assert "\n" not in str(caught.value)


def rewrite(file: Path, key: str, change) -> None:
    held = torch.load(file, weights_only=True)
    change(held[key])
    torch.save(held, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("speech_model.blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias"),
        (lambda state: state.update({"speech_model.extra": torch.ones(1)}), "extra"),
        (lambda state: state.update({"speech_model.position_embedding.weight": torch.ones(1)}), "rotary alone"),
        (lambda state: state.pop("speech_model.input_linear.weight"), "not a flow"),
        (lambda state: state.clear(), "no weights speech_model"),
    ],
)
def test_a_flow_that_is_not_whole_is_one_line(copy, change, message):
    rewrite(copy / "audio_detokenizer/model.pt", "state_dict", change)
    with pytest.raises(InputError, match=message) as caught:
        Detokenizer.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resblock": "2"}, "resblock: expected 1"),
        ({"activation": "snake"}, "activation: expected snakebeta"),
        ({"num_mels": 0}, "num_mels: missing"),
        ({"upsample_rates": [5, 2]}, "does not fit"),
    ],
)
def test_another_vocoder_is_one_line(copy, values, message):
    (copy / "vocoder/config.json").write_text(json.dumps(VOCODER | values))
    with pytest.raises(InputError, match=message) as caught:
        Detokenizer.load(copy)
    assert "\n" not in str(caught.value)


def test_nothing_is_run_from_a_file(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"generator": Trap()}, copy / "vocoder/model.pt")
    with pytest.raises(InputError, match="not a file of weights"):
        Detokenizer.load(copy)
    assert not (tmp_path / "ran").exists()
