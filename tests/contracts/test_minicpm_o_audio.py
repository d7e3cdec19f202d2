"""How MiniCPM-o 2.6 hears: a naive float64 encoder, the chunk mask and its quirk, places in the prompt."""

import math

import numpy as np
import pytest
import torch

from elocute.models.minicpm_o import MiniCPMO
from elocute.models.minicpm_o.audio import chunk_mask, embedding_count, fill, hear, log_mel
from tests.contracts import minicpm_o


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> MiniCPMO:
    folder = minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "model", dtype=torch.float32)
    return MiniCPMO.load(folder, ["apm", "audio_projection_layer"])


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    weights = minicpm_o.weights(minicpm_o.config(), 0, minicpm_o.DVAE)
    return {name: tensor.double().numpy() for name, tensor in weights.items()}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    count = round(seconds * 16000)
    return (draw.normal(size=count) * np.linspace(0.01, 0.2, count)).astype(np.float32)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer_norm(x, w, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def convolve(x, w, name, stride):  # [in, T], kernel 3, a zero on each side
    x = np.pad(x, ((0, 0), (1, 1)))
    places = range(0, x.shape[1] - 2, stride)
    taps = [np.tensordot(w[f"{name}.weight"], x[:, p : p + 3], ([1, 2], [0, 1])) for p in places]
    return np.stack(taps, 1) + w[f"{name}.bias"][:, None]


def naive_hear(w: dict, mel: np.ndarray, mel_frames: int, heads: int = 4) -> np.ndarray:
    """One clip of a batch, mel [80, F] zeros behind its own frames → its embeddings [n, 48]."""
    h = gelu(convolve(gelu(convolve(mel, w, "apm.conv1", 1)), w, "apm.conv2", 2)).T
    count, width = h.shape
    assert count == (mel.shape[1] - 1) // 2 + 1
    h = h + w["apm.embed_positions.weight"][:count]
    size = width // heads
    for layer in range(2):
        at = f"apm.layers.{layer}"
        y = layer_norm(h, w, f"{at}.self_attn_layer_norm")
        q, k, v = (y @ w[f"{at}.self_attn.{part}_proj.weight"].T for part in "qkv")
        q, v = q + w[f"{at}.self_attn.q_proj.bias"], v + w[f"{at}.self_attn.v_proj.bias"]
        mixed = np.zeros_like(h)
        for i in range(count):
            keys = [j for j in range(count) if j < (i // 50 + 1) * 50 and j < mel_frames]
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                scores = k[keys, mine] @ q[i, mine] / math.sqrt(size)
                p = np.exp(scores - scores.max())
                mixed[i, mine] = p @ v[keys, mine] / p.sum()
        h = h + mixed @ w[f"{at}.self_attn.out_proj.weight"].T + w[f"{at}.self_attn.out_proj.bias"]
        y = gelu(layer_norm(h, w, f"{at}.final_layer_norm") @ w[f"{at}.fc1.weight"].T + w[f"{at}.fc1.bias"])
        h = h + y @ w[f"{at}.fc2.weight"].T + w[f"{at}.fc2.bias"]
    h = layer_norm(h, w, "apm.layer_norm")
    at = "audio_projection_layer"
    y = np.maximum(h @ w[f"{at}.linear1.weight"].T + w[f"{at}.linear1.bias"], 0)
    y = y @ w[f"{at}.linear2.weight"].T + w[f"{at}.linear2.bias"]
    own = ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1
    return np.stack([(y[2 * n] + y[2 * n + 1]) / 2 for n in range(own)])


@pytest.mark.parametrize("seconds", [0.31, 1.0, 2.345])
def test_a_clip_is_heard_as_by_the_naive_float64_encoder(network, state, seconds):
    (mel,) = log_mel(noise(seconds))
    (heard,) = hear(network.apm, network.audio_projection_layer, [mel])
    expected = naive_hear(state, mel.double().numpy(), mel.shape[1])
    assert heard.shape == expected.shape == (embedding_count(round(seconds * 16000)), 48)
    assert np.abs(heard.detach().numpy() - expected).max() < 2e-5


def test_trap_in_a_batch_a_clip_sees_padding_unless_shorter_than_half(network, state):
    """Keys are masked from the number of mel frames on, twice what the encoder has: the original's way is kept."""
    mels = [log_mel(noise(seconds, seed))[0] for seed, seconds in enumerate([2.0, 1.3, 0.9])]
    together = hear(network.apm, network.audio_projection_layer, mels)
    for mel, heard in zip(mels, together, strict=True):
        padded = np.pad(mel.double().numpy(), ((0, 0), (0, 200 - mel.shape[1])))
        expected = naive_hear(state, padded, mel.shape[1])
        assert np.abs(heard.detach().numpy() - expected).max() < 2e-5
    alone = [hear(network.apm, network.audio_projection_layer, [mel])[0] for mel in mels]
    gaps = [(one - many).abs().max().item() for one, many in zip(alone, together, strict=True)]
    assert gaps[0] < 1e-5 < 1e-3 < gaps[1]


def test_chunk_mask_by_name():
    mask = chunk_mask(120, torch.tensor([240, 70]), 50)[:, 0]
    assert mask.shape == (2, 120, 120)
    assert mask[0, 0].sum() == mask[0, 49].sum() == 50 and mask[0, 50].sum() == 100 and mask[0, 119].all()
    assert mask[1, 119].sum() == 70  # mel frames, though the clip has but 35 of the encoder's


def test_what_comes_later_than_its_chunk_is_not_heard(network):
    mel = log_mel(noise(3))[0]
    changed = mel.clone()
    changed[:, 205:] = 0  # mel frame 205 reaches encoder frame 102, so the first two chunks keep
    one, other = (hear(network.apm, network.audio_projection_layer, [m])[0] for m in (mel, changed))
    assert torch.allclose(one[:50], other[:50], atol=1e-6) and not torch.allclose(one[50:], other[50:], atol=1e-3)


def test_log_mel_is_normalised_over_30_padded_seconds(network):
    """Trap: the loudest value is looked for in the padded recording; silence there is the floor of quiet clips."""
    quiet = np.full(16000, 1e-7, dtype=np.float32)
    (mel,) = log_mel(quiet)
    assert mel.shape == (80, 100) and mel.dtype == torch.float32
    (loud,) = log_mel(noise(1.001))
    assert loud.shape == (80, 101) and loud.max() - loud.min() <= 2.0 + 1e-6


def test_log_mel_by_its_definition():
    """Hann windows of 400 every 160, reflected at the ends, over the padded 30 s; log10, 8 below the top, (x+4)/4."""
    sound = noise(0.5)
    padded = np.pad(np.pad(sound.astype(np.float64), (0, 480000 - len(sound))), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = [np.abs(np.fft.rfft(padded[t * 160 : t * 160 + 400] * window)) ** 2 for t in range(60)]
    banks = slaney_banks()
    log = np.log10(np.maximum(np.stack(power) @ banks, 1e-10)).T
    log = (np.maximum(log, log.max() - 8) + 4) / 4
    assert np.abs(log_mel(sound)[0].numpy() - log[:, :50]).max() < 1e-3


def slaney_banks() -> np.ndarray:
    """80 triangles between 0 and 8000 Hz on Slaney's scale, each of area 1: [201, 80]."""
    top = 15 + np.log(8) / (np.log(6.4) / 27)
    mels = np.linspace(0, top, 82)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
    freqs = np.arange(201) * 40.0
    up = (freqs[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    down = (edges[2:] - freqs[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(up, down)) * 2 / (edges[2:] - edges[:-2])


def test_recordings_over_30_seconds_are_heard_in_pieces(network):
    sound = noise(31.2)
    mels = log_mel(sound)
    assert [mel.shape[1] for mel in mels] == [3000, 120]
    heard = hear(network.apm, network.audio_projection_layer, mels)
    assert sum(map(len, heard)) == embedding_count(len(sound))
    alone = hear(network.apm, network.audio_projection_layer, log_mel(sound[480000:]))[0]
    assert torch.allclose(heard[1][:25], alone[:25], atol=1e-5)  # each from position 0, as far as no padding is seen


@pytest.mark.parametrize("samples", [1, 160, 320, 321])
def test_what_is_too_short_for_an_embedding_gives_none(network, samples):
    heard = hear(network.apm, network.audio_projection_layer, log_mel(noise(1)[:samples]))
    assert [len(clip) for clip in heard] == [embedding_count(samples)] and heard[0].shape[1] == 48


def test_an_empty_recording_has_no_mel():
    assert log_mel(np.zeros(0, dtype=np.float32)) == []


def test_what_is_heard_stands_in_its_places():
    embedded, heard = torch.zeros(10, 3), torch.arange(1.0, 13).view(4, 3).requires_grad_()
    filled = fill(embedded, [(2, 4), (7, 9)], heard)
    assert torch.equal(filled[[2, 3, 7, 8]], heard) and filled[[0, 1, 4, 5, 6, 9]].eq(0).all()
    assert embedded.eq(0).all()
    filled.sum().backward()
    assert heard.grad.eq(1).all()
    with pytest.raises(ValueError, match="the prompt has 4 places for audio, 3 embeddings were heard"):
        fill(embedded, [(2, 4), (7, 9)], heard[:3])
