"""HuBERT units: the published equations, and units that depend on the recording alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import HubertModel

from elocute.data.audio import resample, save_wav
from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef
from elocute.errors import InputError
from elocute.speech.hubert import HubertUnits, Reading
from elocute.speech.repeats import merge_repeats
from elocute.speech.unit_codec import UnitCodec
from tests.speech import unit_models
from tests.speech.unit_models import speech

TWO = Reading(layer=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hubert")
    unit_models.hubert(folder / "hubert")
    unit_models.centres(folder / "centres.safetensors", folder / "hubert", TWO)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> HubertUnits:
    return HubertUnits.load(folder / "hubert", folder / "centres.safetensors", TWO)


# the equations


def naive_states(state: dict[str, np.ndarray], config, waveform: np.ndarray, layer: int) -> np.ndarray:
    """Hidden states [T, D] by the equations of the paper, float64, one step after the other."""
    weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in state.items()}

    def norm(x, name, eps=config.layer_norm_eps):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def convolve(x, kernel, stride=1):  # x [C, T], kernel [O, C, K]
        size = kernel.shape[2]
        starts = range(0, x.shape[1] - size + 1, stride)
        return np.stack([(kernel * x[None, :, start : start + size]).sum((1, 2)) for start in starts], 1)

    x = waveform[None].astype(np.float64)
    for index, stride in enumerate(config.conv_stride):
        place = f"feature_extractor.conv_layers.{index}"
        x = convolve(x, weights[f"{place}.conv.weight"], stride)
        if index == 0:  # each channel over all of time
            x = norm_over_time(x) * weights[f"{place}.layer_norm.weight"][:, None]
            x = x + weights[f"{place}.layer_norm.bias"][:, None]
        x = gelu(x)
    x = linear(norm(x.T, "feature_projection.layer_norm"), "feature_projection.projection")
    place = "encoder.pos_conv_embed"
    spread = np.sqrt(weights[f"{place}.batch_norm.running_var"] + 1e-5)
    positions = (x - weights[f"{place}.batch_norm.running_mean"]) / spread
    positions = positions * weights[f"{place}.batch_norm.weight"] + weights[f"{place}.batch_norm.bias"]
    kernel, groups = weights[f"{place}.conv.weight"], config.num_conv_pos_embedding_groups
    around = np.pad(positions.T, ((0, 0), (kernel.shape[2] // 2,) * 2))[:, : len(x) + kernel.shape[2] - 1]
    parts = zip(np.split(around, groups), np.split(kernel, groups), strict=True)
    positions = np.concatenate([convolve(part, own) for part, own in parts]).T + weights[f"{place}.conv.bias"]
    x = norm(x + gelu(positions), "encoder.layer_norm")
    for index in range(layer):
        place, heads = f"encoder.layers.{index}", config.num_attention_heads
        query, key, value = (linear(x, f"{place}.attention.{name}_proj") for name in "qkv")
        mixed = []
        for q, k, v in zip(*(np.split(part, heads, axis=1) for part in (query, key, value)), strict=True):
            weight = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            mixed.append(weight / weight.sum(1, keepdims=True) @ v)
        x = norm(x + linear(np.concatenate(mixed, 1), f"{place}.attention.out_proj"), f"{place}.layer_norm")
        inner = gelu(linear(x, f"{place}.feed_forward.intermediate_dense"))
        x = norm(x + linear(inner, f"{place}.feed_forward.output_dense"), f"{place}.final_layer_norm")
    return x


def norm_over_time(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def test_layer_11_of_the_published_shape_equals_a_naive_float64_hubert(tmp_path):
    """hidden_states[11], no normalisation of the waveform, the nearest centre; repeats merged."""
    unit_models.hubert(tmp_path / "hubert", layers=12)
    file = unit_models.centres(tmp_path / "centres.safetensors", tmp_path / "hubert", Reading())
    tokenizer = HubertUnits.load(tmp_path / "hubert", file)
    waveform = speech(1.3, seed=5)
    expected = naive_states(tokenizer.model.state_dict(), tokenizer.model.config, waveform, 11)
    found = tokenizer.features(waveform)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    distances = ((expected[:, None] - load_file(file)["centres"][None].astype(np.float64)) ** 2).sum(2)
    units = distances.argmin(1)
    kept = [unit for place, unit in enumerate(units) if place == 0 or unit != units[place - 1]]
    assert tokenizer.encode(waveform, 16000).tolist() == kept
    assert len(set(kept)) > 5


def test_25_frames_a_second(tokenizer):
    assert len(tokenizer.features(np.pad(speech(1.0), 40))) == 25  # as SlamKit pads
    for samples in (0, 1, 719, 720, 721, 1359, 1360, 32000):
        expected = samples
        for kernel, stride in zip([10, 3, 3, 3, 3, 2, 2, 2], [5, 2, 2, 2, 2, 2, 2, 2], strict=True):
            expected = max(0, (expected - kernel) // stride + 1)
        assert len(tokenizer.features(speech(2.0)[:samples])) == expected


# units of a recording are its own


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    return [speech(seconds, seed=index) for index, seconds in enumerate((0.7, 2.0, 1.1, 0.7, 3.0))]


@settings(max_examples=5)
@given(st.permutations(range(5)))
def test_defect_align_6_units_do_not_depend_on_what_else_is_encoded(tokenizer, recordings, order):
    alone = [tokenizer.encode(recording, 16000).tolist() for recording in recordings]
    assert [tokenizer.encode(recordings[index], 16000).tolist() for index in order] == [alone[i] for i in order]


def test_defect_align_6_a_padded_batch_would_give_other_units(tokenizer, recordings):
    """What the test above rules out is real: the same network on two recordings padded to one length."""
    short, long = recordings[0], recordings[4]
    batch = np.stack([np.pad(short, (0, len(long) - len(short))), long])
    with torch.no_grad():
        states = tokenizer.model(torch.from_numpy(batch), output_hidden_states=True).hidden_states[2].numpy()
    padded = states[0, : len(tokenizer.features(short))]
    assert np.abs(padded - tokenizer.features(short)).max() > 0.1
    assert np.allclose(states[1], tokenizer.features(long), atol=1e-4)


def test_long_recordings_are_cut_into_the_same_pieces_every_time(folder, recordings):
    tokenizer = HubertUnits.load(folder / "hubert", folder / "centres.safetensors", Reading(2, chunk_seconds=1.0))
    long = recordings[4]
    pieces = [tokenizer.features(long[start : start + 16000]) for start in (0, 16000, 32000)]
    assert np.array_equal(tokenizer.features(long), np.concatenate(pieces))
    # a rest that is too short for a frame gives none
    assert len(tokenizer.features(long[:16100])) == len(tokenizer.features(long[:16000]))


def test_padding_as_slamkit_does(folder, recordings):
    padded = HubertUnits.load(folder / "hubert", folder / "centres.safetensors", Reading(2, pad_samples=40))
    plain = HubertUnits.load(folder / "hubert", folder / "centres.safetensors", TWO)
    for recording in recordings:
        assert np.array_equal(padded.features(recording), plain.features(np.pad(recording, 40)))
    assert padded.digest != plain.digest


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_any_sample_rate(tokenizer, rate):
    sound = speech(1.0)
    assert len(tokenizer.features(resample(resample(sound, 16000, rate), rate, 16000))) == len(
        tokenizer.features(sound)
    )
    assert tokenizer.encode(resample(sound, 16000, rate), rate).dtype == np.int64


@given(st.lists(st.integers(0, 3), max_size=30))
def test_merging_repeats(units):
    merged = merge_repeats(np.array(units, dtype=np.int64)).tolist()
    assert all(a != b for a, b in zip(merged, merged[1:], strict=False))
    assert merge_repeats(np.array(merged, dtype=np.int64)).tolist() == merged
    kept = iter(merged)
    runs = [unit for place, unit in enumerate(units) if place == 0 or unit != units[place - 1]]
    assert runs == merged and all(unit in kept for unit in runs)


# one digest a tokenizer


def test_the_digest_is_the_tokenizers(folder, tokenizer, tmp_path):
    again = HubertUnits.load(folder / "hubert", folder / "centres.safetensors", TWO)
    assert again.digest == tokenizer.digest
    digests = {tokenizer.digest}
    for reading in (Reading(1), Reading(2, pad_samples=40), Reading(2, chunk_seconds=30.0)):
        digests.add(HubertUnits.load(folder / "hubert", folder / "centres.safetensors", reading).digest)
    other = unit_models.centres(tmp_path / "centres.safetensors", folder / "hubert", TWO, seed=1)
    digests.add(HubertUnits.load(folder / "hubert", other, TWO).digest)
    unit_models.hubert(tmp_path / "hubert", seed=1)
    digests.add(HubertUnits.load(tmp_path / "hubert", folder / "centres.safetensors", TWO).digest)
    assert len(digests) == 6


def test_defect_align_3_every_tokenizer_has_its_own_cache(tmp_path):
    """Two codebooks, one cache folder, one file: each gets its own units, and a store of the other is refused."""
    sound = tmp_path / "sound.wav"
    save_wav(sound, speech(2.0), 16000)
    codecs = [UnitCodec.load(unit_models.unit_codec(tmp_path / f"codec-{seed}", seed)) for seed in (0, 1)]
    waveform = np.clip(np.round(speech(2.0) * 32767), -32768, 32767).astype(np.float32) / 32768
    own = []
    for codec in [*codecs, *codecs]:
        audio = EncodedAudio(codec, tmp_path / "cache")
        own.append(audio.units(AudioRef(sound)).tolist())
        assert own[-1] == codec.encode(waveform, 16000).tolist()
    assert own[0] != own[1] and own[:2] == own[2:]
    ref = AudioRef(sound, units=tuple(own[0]), codec=codecs[0].digest)
    assert EncodedAudio(codecs[0], tmp_path / "cache").units(ref).tolist() == own[0]
    with pytest.raises(InputError, match="the codec in use is"):
        EncodedAudio(codecs[1], tmp_path / "cache").units(ref)


# bad input


def test_a_folder_that_is_no_hubert_is_refused(folder, tmp_path):
    file = folder / "centres.safetensors"
    with pytest.raises(InputError, match="not a HuBERT folder: expected config.json"):
        HubertUnits.load(tmp_path, file)
    with pytest.raises(InputError, match=r"layer: expected 0 … 3, got 11"):
        HubertUnits.load(folder / "hubert", file)
    model = HubertModel.from_pretrained(folder / "hubert")
    model.save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"model_type": "wav2vec2"}))
    with pytest.raises(InputError, match="model_type: expected hubert, got 'wav2vec2'"):
        HubertUnits.load(tmp_path / "other", file, TWO)
    del model.encoder.layers[1].final_layer_norm
    model.save_pretrained(tmp_path / "lacking")
    with pytest.raises(InputError, match=r"the weights lack encoder.layers.1.final_layer_norm.bias"):
        HubertUnits.load(tmp_path / "lacking", file, TWO)


def test_weights_that_the_config_has_no_place_for_are_refused(folder, tokenizer, tmp_path):
    """As those of layers that a config.json leaves out: another network than the published one would be read."""
    file, weights = folder / "centres.safetensors", load_file(folder / "hubert/model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "hubert/config.json").read_bytes())
    head = {"lm_head.weight": np.zeros((8, 32), np.float32), "lm_head.bias": np.zeros(8, np.float32)}
    save_file(weights | head, tmp_path / "model.safetensors", {"format": "pt"})
    found = HubertUnits.load(tmp_path, file, TWO)  # no hidden state depends on a recogniser's head
    assert np.array_equal(found.features(speech(0.5)), tokenizer.features(speech(0.5)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"the weights hold encoder\.layers\.2\.\S+, for which config"):
        HubertUnits.load(tmp_path, file, TWO)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"centres": np.zeros((4, 31), np.float32)}, r"expected finite centres \[K, 32\], got \[4, 31\]"),
        ({"a": np.zeros((4, 32), np.float32), "b": np.zeros((4, 32), np.float32)}, "with one tensor"),
        ({"centres": np.full((4, 32), np.nan, np.float32)}, "expected finite centres"),
    ],
)
def test_centres_that_do_not_fit_are_refused(folder, tmp_path, tables, said):
    save_file(tables, tmp_path / "centres.safetensors")
    with pytest.raises(InputError, match=said):
        HubertUnits.load(folder / "hubert", tmp_path / "centres.safetensors", TWO)
    (tmp_path / "centres.safetensors").write_bytes(b"a pickle, perhaps")
    with pytest.raises(InputError, match="not a safetensors file"):
        HubertUnits.load(folder / "hubert", tmp_path / "centres.safetensors", TWO)
