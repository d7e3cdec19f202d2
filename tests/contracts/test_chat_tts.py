"""The codec of MiniCPM-o 2.6: DVAE and Vocos against naive float64 twins, the published layout, nothing run from it."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from elocute.data.shards import Shards
from elocute.errors import InputError
from elocute.speech.chat_tts import ChatTTSCodec
from elocute.speech.chat_tts.codec import load_dvae
from elocute.speech.chat_tts.dvae import Dvae, DvaeShape, quantise
from elocute.speech.chat_tts.mel import LogMel
from elocute.speech.chat_tts.vocos import Vocos, inverse_stft
from elocute.speech.units import BrokenUnits
from tests.contracts import minicpm_o


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def codec(folder) -> ChatTTSCodec:
    return ChatTTSCodec.load(folder)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    weights = minicpm_o.weights(minicpm_o.config(), 0, minicpm_o.DVAE)
    at = "tts.dvae."
    return {n.removeprefix(at): t.double().numpy() for n, t in weights.items() if n.startswith(at)}


def sound(samples: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (0.2 * draw.normal(size=samples) * np.abs(np.sin(np.arange(samples) / 3000))).astype(np.float32)


# ---- naive twins, float64 ------------------------------------------------------------------------------------------


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def convolve(x, w, name, pad, stride=1):  # [in, T]
    weight = w[f"{name}.weight"]
    size = weight.shape[2]
    x = np.pad(x, ((0, 0), (pad, pad)))
    taps = [np.tensordot(weight, x[:, p : p + size], 2) for p in range(0, x.shape[1] - size + 1, stride)]
    return np.stack(taps, 1) + w.get(f"{name}.bias", np.zeros(len(weight)))[:, None]


def layer_norm(x, w, name):  # [C, T], over C
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    return x * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]


def block(x, w, name, scale, dilation):  # [C, T]
    pad, length = 3 * dilation, x.shape[1]
    padded = np.pad(x, ((0, 0), (pad, pad)))
    kernel = w[f"{name}.dwconv.weight"][:, 0]
    y = sum(kernel[:, k, None] * padded[:, k * dilation : k * dilation + length] for k in range(7))
    y = layer_norm(y + w[f"{name}.dwconv.bias"][:, None], w, f"{name}.norm")
    y = gelu(w[f"{name}.pwconv1.weight"] @ y + w[f"{name}.pwconv1.bias"][:, None])
    y = w[f"{name}.pwconv2.weight"] @ y + w[f"{name}.pwconv2.bias"][:, None]
    return x + w[f"{name}.{scale}"][:, None] * y


def stack(x, w, side, layers=2):
    x = convolve(gelu(convolve(x, w, f"{side}.conv_in.0", 1)), w, f"{side}.conv_in.2", 1)
    for layer in range(layers):
        x = block(x, w, f"{side}.decoder_block.{layer}", "coef", 2)
    return convolve(x, w, f"{side}.conv_out", 0)


def value(index: int) -> np.ndarray:
    return np.array([(index // 5**k % 5 - 2) / 2 for k in range(4)])


def naive_decode(w, codes) -> np.ndarray:
    """Codes [T][4] → log-mel [100, 2T]."""
    frames = []
    for frame in codes:
        groups = []
        for g in range(2):
            z = value(frame[2 * g]) + value(frame[2 * g + 1]) / 4
            at = f"vq_layer.quantizer.rvqs.{g}.project_out"
            groups.append(w[f"{at}.weight"] @ z + w[f"{at}.bias"])
        both = np.concatenate(groups)
        frames += [both[: len(both) // 2], both[len(both) // 2 :]]
    return convolve(stack(np.stack(frames, 1), w, "decoder"), w, "out_conv", 1) * w["coef"][0]


def naive_encode(w, mel) -> tuple[list[list[int]], float]:
    """Log-mel [100, F] → codes, and how near the nearest number came to the edge between two levels."""
    x = gelu(convolve(mel / w["coef"][0], w, "downsample_conv.0", 1))
    x = gelu(convolve(x, w, "downsample_conv.2", 1, stride=2))
    codes, margin = [], 1.0
    for frame in stack(x, w, "encoder").T:
        mine = []
        for g, part in enumerate(np.split(frame, 2)):
            at = f"vq_layer.quantizer.rvqs.{g}.project_in"
            z = w[f"{at}.weight"] @ part + w[f"{at}.bias"]
            for _ in range(2):
                bounded = 2.002 * np.tanh(z)
                q = np.round(bounded) / 2
                margin = min(margin, np.abs(np.abs(bounded - np.floor(bounded)) - 0.5).min())
                mine.append(int(sum((2 * q[k] + 2) * 5**k for k in range(4))))
                z = (z - q) / 0.25
        codes.append(mine)
    return codes, margin


def naive_vocos(w, mel) -> np.ndarray:
    x = layer_norm(convolve(mel, w, "backbone.embed", 3), w, "backbone.norm")
    for layer in range(2):
        x = block(x, w, f"backbone.convnext.{layer}", "gamma", 1)
    x = layer_norm(x, w, "backbone.final_layer_norm")
    x = w["head.out.weight"] @ x + w["head.out.bias"][:, None]
    magnitude, phase = np.minimum(np.exp(x[:513]), 100), x[513:]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    count = mel.shape[1]
    total, weight = np.zeros((2, 256 * (count - 1) + 1024))
    for t in range(count):
        place = slice(256 * t, 256 * t + 1024)
        total[place] += window * np.fft.irfft(magnitude[:, t] * np.exp(1j * phase[:, t]))
        weight[place] += window**2
    return total[384:-384] / weight[384:-384]


def test_decoding_is_the_naive_float64_dvae(codec, state):
    codes = np.random.default_rng(0).integers(0, 625, (11, 4))
    codes[0], codes[1] = 0, 624
    mel = codec.dvae.decode(torch.from_numpy(codes)).numpy()
    expected = naive_decode(state, codes.tolist())
    assert mel.shape == (100, 22) and np.abs(mel - expected).max() < 2e-5 * np.abs(expected).max()


def test_encoding_is_the_naive_float64_dvae(codec, state):
    mel = codec.mel(torch.from_numpy(sound(24000)))
    codes = codec.dvae.encode(mel)
    expected, margin = naive_encode(state, mel.double().numpy())
    assert margin > 1e-5, "a number lies on the edge of two levels: choose another recording"
    assert codes.tolist() == expected and len(np.unique(expected)) > 20


def test_every_code_comes_back_from_its_own_numbers(codec):
    """Codes whose numbers go in again are the same: all 625 as the first residual."""
    first = torch.arange(625)
    numbers = torch.stack([torch.tensor(value(index)) for index in first.tolist()])
    codes = quantise(torch.atanh((numbers * 2 / 2.002).clamp(-0.9999, 0.9999)))
    assert torch.equal(codes[0], first)


def test_the_vocoder_is_the_naive_float64_vocoder(codec):
    w = {name: tensor.double().numpy() for name, tensor in minicpm_o.vocos(0).items()}
    mel = np.random.default_rng(1).normal(size=(100, 9)).astype(np.float32)
    with torch.inference_mode():
        waveform = codec.vocos(torch.from_numpy(mel)).numpy()
    expected = naive_vocos(w, mel.astype(np.float64))
    assert waveform.shape == (9 * 256,) and np.abs(waveform - expected).max() < 1e-5 < np.abs(expected).max()


def test_trap_the_loudest_magnitude_is_100(codec, folder, tmp_path):
    weights = minicpm_o.vocos(0)
    weights["head.out.bias"][:513] = 30.0  # exp(30) would drown everything
    torch.save(weights, tmp_path / "loud.pt")
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    mel = np.random.default_rng(1).normal(size=(100, 5))
    with torch.inference_mode():
        waveform = Vocos.load(tmp_path / "loud.pt")(torch.from_numpy(mel).float()).numpy()
    expected = naive_vocos(w, mel)
    assert np.abs(waveform - expected).max() < 1e-4 * np.abs(expected).max()


def test_trap_padding_is_same_not_center():
    """Frames of a signal, 384 samples before its start, give it back, 256 samples a frame."""
    wave = torch.from_numpy(sound(256 * 12)).double()
    window = torch.hann_window(1024, dtype=torch.float64)
    frames = torch.nn.functional.pad(wave, (384, 384)).unfold(0, 1024, 256) * window
    back = inverse_stft(torch.fft.rfft(frames).T[None], window)[0]
    assert back.shape == wave.shape and (back - wave).abs().max() < 1e-9


def test_log_mel_by_its_definition():
    """Magnitudes, not powers; HTK's scale; centred with reflection; natural logarithm from 1e-5 on."""
    wave = sound(3000)
    padded = np.pad(wave.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    spectrum = [np.abs(np.fft.rfft(padded[256 * t : 256 * t + 1024] * window)) for t in range(3000 // 256 + 1)]
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), 102) / 2595) - 1)
    freqs = np.linspace(0, 12000, 513)
    up = (freqs[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    down = (edges[2:] - freqs[:, None]) / np.diff(edges)[1:]
    expected = np.log(np.maximum(np.stack(spectrum) @ np.maximum(0, np.minimum(up, down)), 1e-5)).T
    mel = LogMel()(torch.from_numpy(wave)).numpy()
    assert mel.shape == (100, 12) and np.abs(mel - expected).max() < 1e-3
    assert np.allclose(LogMel()(torch.zeros(2000)), math.log(1e-5))


# ---- the codec -----------------------------------------------------------------------------------------------------


def test_codes_to_sound(codec):
    codes = np.random.default_rng(3).integers(0, 625, (7, 4))
    waveform = codec.decode(codes)
    assert waveform.dtype == np.float32 and waveform.shape == (7 * 512,) and np.abs(waveform).max() <= 1
    assert np.array_equal(codec.decode(codes.tolist()), waveform) and np.array_equal(codec.decode(codes), waveform)
    assert codec.decode(np.zeros((0, 4))).shape == (0,)
    assert codec.sample_rate / 512 == 46.875


@pytest.mark.parametrize("bad", [625, -1])
def test_trap_the_end_is_no_code(codec, bad):
    codes = np.zeros((3, 4), dtype=int)
    codes[1, 2] = bad
    with pytest.raises(BrokenUnits, match=r"codes: expected 0 … 624, got"):
        codec.decode(codes)
    with pytest.raises(ValueError, match=r"codes: expected 0 … 624, got"):
        codec.dvae.decode(torch.from_numpy(codes))


@pytest.mark.parametrize("samples, frames", [(0, 0), (512, 0), (513, 1), (1279, 2), (1280, 3), (24000, 47)])
def test_sound_to_codes(codec, samples, frames):
    codes = codec.encode(sound(samples), 24000)
    assert codes.dtype == np.int64 and codes.shape == (frames, 4)
    assert frames == 0 or frames == (samples // 256 + 1) // 2


def test_any_sample_rate_is_heard_and_what_was_decoded_has_as_many_codes(codec):
    assert codec.encode(sound(16000), 16000).shape == (47, 4)
    codes = codec.encode(sound(24000), 24000)
    assert codec.encode(codec.decode(codes), 24000).shape == codes.shape
    with pytest.raises(ValueError, match="expected a mono waveform"):
        codec.encode(np.zeros((2, 9)), 24000)


def test_the_digest_is_that_of_the_encoder(folder, codec, tmp_path):
    def digest(name: str) -> str:
        dvae = load_dvae(Shards.open(folder))
        with torch.no_grad():
            dvae.get_parameter(name).add_(0.1)
        return ChatTTSCodec(dvae, codec.vocos).digest

    assert ChatTTSCodec.load(folder).digest == codec.digest
    assert digest("decoder.conv_out.weight") == digest("vq_layer.quantizer.rvqs.0.project_out.bias") == codec.digest
    for name in (
        "coef",
        "encoder.conv_out.weight",
        "downsample_conv.0.bias",
        "vq_layer.quantizer.rvqs.1.project_in.bias",
    ):
        assert digest(name) != codec.digest


# ---- the published layout ------------------------------------------------------------------------------------------


def test_each_part_alone_has_exactly_the_published_names(folder, codec):
    files = (load_file(file) for file in sorted(folder.glob("*.safetensors")))
    stored = {name for state in files for name in state if name.startswith("tts.dvae.")}
    assert {f"tts.dvae.{name}" for name in load_dvae(Shards.open(folder)).state_dict()} == stored
    vocos = torch.load(folder / "assets/Vocos.pt", weights_only=True)
    loaded = Vocos.load(folder / "assets/Vocos.pt").state_dict()
    assert loaded.keys() == vocos.keys() and all(torch.equal(loaded[name], vocos[name]) for name in vocos)


def test_published_sizes(tmp_path):
    shapes = minicpm_o.dvae_shapes(**minicpm_o.PUBLISHED_DVAE)
    with torch.device("meta"):
        expected = {f"tts.dvae.{name}": [*tensor.shape] for name, tensor in Dvae().state_dict().items()}
    assert shapes == expected
    assert DvaeShape.of({name.removeprefix("tts.dvae."): shape for name, shape in shapes.items()}) == DvaeShape()


def test_a_saved_codec_is_equal(codec, folder, tmp_path):
    codec.save(tmp_path / "codec")
    again = ChatTTSCodec.load(tmp_path / "codec")
    codes = codec.encode(sound(9000), 24000)
    assert np.array_equal(again.encode(sound(9000), 24000), codes) and again.digest == codec.digest
    assert np.array_equal(again.decode(codes), codec.decode(codes))
    with pytest.raises(InputError, match="a model's folder; the codec needs one of its own"):
        codec.save(folder)


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_bad_vocos_files(folder, tmp_path):
    file = tmp_path / "Vocos.pt"
    with pytest.raises(InputError, match="Vocos.pt: not a file of weights"):
        Vocos.load(file)
    torch.save({"weights": Trap(tmp_path / "sprung")}, file)
    with pytest.raises(InputError, match="Vocos.pt: not a file of weights"):
        Vocos.load(file)
    assert not (tmp_path / "sprung").exists()
    torch.save({"generator": torch.zeros(3)}, file)
    with pytest.raises(InputError, match="Vocos.pt: not the weights of a Vocos"):
        Vocos.load(file)
    weights = minicpm_o.vocos(0)
    torch.save({name: tensor for name, tensor in weights.items() if name != "backbone.convnext.1.gamma"}, file)
    with pytest.raises(InputError, match="Vocos.pt: the weights lack backbone.convnext.1.gamma"):
        Vocos.load(file)
    torch.save(weights | {"discriminator.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="Vocos.pt: the weights hold discriminator.weight"):
        Vocos.load(file)


def test_old_files_of_torch_load(folder, tmp_path):
    torch.save(minicpm_o.vocos(0), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert Vocos.load(tmp_path / "old.pt").head.out.weight.shape == (1026, 32)


def test_a_vocoder_for_other_mels(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    torch.save(minicpm_o.vocos(0, bins=80), copy / "assets/Vocos.pt")
    with pytest.raises(InputError, match="expected 100 mel bins as the DVAE has, got 80"):
        ChatTTSCodec.load(copy)
