"""Kimi-Audio's Whisper features: the published equations, the published files."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elocute.errors import InputError
from elocute.speech.kimi import WhisperFeatures
from tests.contracts import kimi

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return kimi.build(tmp_path_factory.mktemp("kimi")) / "whisper-large-v3"


@pytest.fixture(scope="module")
def whisper(folder) -> WhisperFeatures:
    return WhisperFeatures.load(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def sound(samples: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(samples) * 0.02
    return (noise + 0.3 * np.sin(np.arange(samples) * 0.05) * np.sin(np.arange(samples) * 2e-4)).astype(np.float32)


def naive_mel(window: np.ndarray) -> np.ndarray:
    """Log-mel [128, 3000] of a window padded to 30 s, float64: hann 400, hop 160, Slaney's filters."""
    padded = np.pad(np.pad(window.astype(np.float64), (0, 480000 - len(window))), 200, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * at : 160 * at + 400] * hann for at in range(3000)])
    power = np.abs(np.fft.rfft(frames)) ** 2

    def hertz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))

    points = hertz(np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 130))
    bins = np.arange(201) * RATE / 400
    rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (points[2:] - points[:-2]))[:, None]
    log = np.log10(np.maximum(filters @ power.T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def naive_features(folder: Path, window: np.ndarray) -> np.ndarray:
    """One window's features [n, 32] by the equations, float64."""
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("model.encoder."): x.double().numpy() for name, x in state.items()}
    gelu = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))

    def convolve(x, name, stride):
        x, kernel = np.pad(x, ((0, 0), (1, 1))), weights[f"{name}.weight"]
        out = sum(kernel[:, :, k] @ x[:, k : x.shape[1] - 2 + k] for k in range(3)) + weights[f"{name}.bias"][:, None]
        return gelu(out[:, ::stride])

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    x = convolve(convolve(naive_mel(window), "conv1", 1), "conv2", 2).T + weights["embed_positions.weight"]
    heads, width = config["encoder_attention_heads"], config["d_model"] // config["encoder_attention_heads"]
    for layer in range(config["encoder_layers"]):
        normed = norm(x, f"layers.{layer}.self_attn_layer_norm")
        q, k, v = (linear(normed, f"layers.{layer}.self_attn.{name}_proj") for name in "qkv")
        said = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            share = np.exp(scores - scores.max(1, keepdims=True))
            said.append(share / share.sum(1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(said, 1), f"layers.{layer}.self_attn.out_proj")
        normed = norm(x, f"layers.{layer}.final_layer_norm")
        x = x + linear(gelu(linear(normed, f"layers.{layer}.fc1")), f"layers.{layer}.fc2")
    x = norm(x, "layer_norm")
    count = (len(window) - 1) // 1280 + 1
    return np.stack([np.concatenate(x[4 * at : 4 * at + 4]) for at in range(count)])


def test_features_follow_the_published_equations(folder, whisper):
    waveform = sound(20000)
    found, wanted = whisper.encode(waveform, RATE).numpy(), naive_features(folder, waveform)
    assert found.shape == (16, 32) == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4
    assert wanted.std(0).mean() > 0.1


@pytest.mark.parametrize(("samples", "count"), [(0, 0), (1, 1), (1280, 1), (1281, 2), (480000, 375), (480001, 376)])
def test_as_many_features_as_codes(whisper, samples, count):
    assert whisper.encode(sound(samples), RATE).shape == (count, 32)


def test_a_long_recording_is_heard_in_windows_of_30_s(whisper):
    waveform = sound(500000)
    whole = whisper.encode(waveform, RATE)
    parts = [whisper.encode(waveform[:480000], RATE), whisper.encode(waveform[480000:], RATE)]
    assert torch.equal(whole, torch.cat(parts))


def test_other_rates_are_resampled(whisper):
    assert whisper.encode(sound(24000), 24000).shape == (13, 32)


def test_bfloat16_is_computed_in_but_not_given_back(folder, whisper):
    rough = WhisperFeatures.load(folder, dtype=torch.bfloat16).encode(sound(5000), RATE)
    assert rough.dtype == torch.float32
    exact = whisper.encode(sound(5000), RATE)
    assert 0 < (rough - exact).abs().max() < 0.2


def test_it_is_frozen(whisper):
    assert not any(parameter.requires_grad for parameter in whisper.encoder.parameters())
    assert not whisper.encode(sound(2000), RATE).requires_grad


def test_an_encoder_alone_as_fine_tuning_exports_it(copy, whisper):
    state = load_file(copy / "model.safetensors")
    alone = {name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.encoder.")}
    save_file(alone, copy / "model.safetensors")
    assert torch.equal(WhisperFeatures.load(copy).encode(sound(3000), RATE), whisper.encode(sound(3000), RATE))


def test_saved_it_is_the_same_files(folder, whisper, tmp_path):
    whisper.save(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    WhisperFeatures.load(tmp_path / "saved").save(tmp_path / "saved")


def config(folder: Path, **values) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "hubert"}, "model_type: expected whisper"),
        ({"max_source_positions": 100}, "max_source_positions: expected 1500"),
        ({"encoder_layers": 3}, "do not fit config.json"),
        ({"encoder_layers": 1}, "do not fit config.json"),
    ],
)
def test_another_model_is_one_line(copy, values, message):
    config(copy, **values)
    with pytest.raises(InputError, match=message) as caught:
        WhisperFeatures.load(copy)
    assert "\n" not in str(caught.value)


def test_strange_missing_and_damaged_weights_are_one_line(copy):
    file = copy / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"holds lm_head.weight"):
        WhisperFeatures.load(copy)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a Whisper's safetensors file"):
        WhisperFeatures.load(copy)
    file.unlink()
    with pytest.raises(InputError, match="not a Whisper's safetensors file"):
        WhisperFeatures.load(copy)


def test_a_waveform_of_two_channels_is_refused(whisper):
    with pytest.raises(ValueError, match="mono"):
        whisper.encode(np.zeros((2, 5), dtype=np.float32), RATE)
