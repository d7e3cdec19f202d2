"""Mimi alone, in the folder layout of kyutai/mimi, and the choice among codecs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, MimiConfig, MimiModel

from elocute.errors import InputError
from elocute.speech import load_codec, mimi
from elocute.speech.mimi import MimiCodec
from elocute.speech.units import BrokenUnits
from tests.contracts import csm, moshi

RATE = 24000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("codecs") / "mimi"
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**{key: value for key, value in csm.MIMI.items() if key != "model_type"}))
    csm.shake(model)
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def codec(folder) -> MimiCodec:
    return load_codec(folder)


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return (0.3 * np.random.default_rng(0).standard_normal(9001)).astype(np.float32)


def test_a_frame_is_80_ms_of_all_codebooks(codec, sound):
    codes = codec.encode(sound, RATE)
    assert codes.shape == (5, 6) and codes.dtype == np.int64 and len(np.unique(codes)) > 1
    waveform = codec.decode(codes)
    assert waveform.shape == (5 * 1920,) and waveform.dtype == np.float32 and np.abs(waveform).max() <= 1
    assert codec.encode(sound[:1], RATE).shape == (1, 6)
    assert codec.encode(sound[:0], RATE).shape == (0, 6) and codec.decode([]).shape == (0,)


def test_it_is_transformers(folder, codec, sound):
    theirs = MimiModel.from_pretrained(folder).eval()
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(sound)[None, None]).audio_codes
        waveform = theirs.decode(codes).audio_values[0, 0].clamp(-1, 1)
    assert np.array_equal(codec.encode(sound, RATE), codes[0].T)
    assert np.allclose(codec.decode(codes[0].T), waveform, atol=1e-5)


def test_fewer_codebooks_are_the_first_ones(folder, codec, sound):
    few = MimiCodec.load(folder, 3)
    assert np.array_equal(few.encode(sound, RATE), codec.encode(sound, RATE)[:, :3])
    assert few.digest != codec.digest and few.decode(few.encode(sound, RATE)).shape == (5 * 1920,)
    with pytest.raises(InputError, match="the codec has 6 codebooks, the model speaks 7"):
        MimiCodec.load(folder, 7)


def test_any_rate_is_resampled(codec, sound):
    from elocute.data.audio import resample

    assert np.array_equal(codec.encode(sound, 16000), codec.encode(resample(sound, 16000, RATE), RATE))
    with pytest.raises(ValueError, match="expected a mono waveform"):
        codec.encode(sound.reshape(-1, 1), RATE)


def test_what_is_no_code_is_broken(codec):
    with pytest.raises(BrokenUnits, match="codes: expected 0 … 15, got 0 … 16"):
        codec.decode([[0, 1, 2, 3, 4, 16]])


def test_many_answers_at_a_time_sound_as_each_alone(folder, monkeypatch):
    """Of any lengths, also none, and beside what is no code; in float64, where nothing hides behind rounding."""
    codec = MimiCodec.load(folder)
    codec.model.double()
    draw = np.random.default_rng(1)
    answers = [draw.integers(0, 16, (length, 6)) for length in (7, 1, 0, 30, 7, 12, 2)] + [[[0, 1, 2, 3, 4, 16]]]
    monkeypatch.setitem(mimi._AT_A_TIME, "cpu", 3)
    together = codec.decode_batch(answers)
    assert isinstance(together.pop(), BrokenUnits)
    for ours, answer in zip(together, answers, strict=False):
        assert ours.shape == (1920 * len(answer),)
        np.testing.assert_allclose(ours, codec.decode(answer), rtol=0, atol=1e-9)
    assert 0.01 < max(np.abs(ours).mean() for ours in together if len(ours)) < 1


def test_saved_it_is_a_folder_of_its_own(codec, sound, tmp_path):
    codec.save(tmp_path / "mimi")
    again = load_codec(tmp_path / "mimi")
    assert again.digest == codec.digest and np.array_equal(again.encode(sound, RATE), codec.encode(sound, RATE))
    assert MimiModel.from_pretrained(tmp_path / "mimi").config.sampling_rate == RATE
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "mimi").sampling_rate == RATE


def test_the_digest_is_of_what_codes_depend_on(folder, codec):
    other = MimiCodec.load(folder)
    with torch.no_grad():
        other.model.decoder.upsample.conv.weight.add_(1)
    assert MimiCodec(other.model, 6).digest == codec.digest
    with torch.no_grad():
        other.model.encoder.downsample.conv.weight.add_(1)
    assert MimiCodec(other.model, 6).digest != codec.digest


@pytest.mark.parametrize("build", [csm.checkpoint, moshi.checkpoint])
def test_it_is_read_out_of_a_models_folder(build, tmp_path, sound):
    whole = MimiCodec.load(build(tmp_path / "model"))
    whole.save(tmp_path / "alone")
    alone = load_codec(tmp_path / "alone")
    assert alone.digest == whole.digest and np.array_equal(alone.encode(sound, RATE), whole.encode(sound, RATE))


def test_what_is_no_mimi_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="config.json: expected the config of Mimi, or of CSM or Moshi with Mimi"):
        MimiCodec.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="expected the config of Mimi"):
        MimiCodec.load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match="expected model.safetensors.index.json or model.safetensors"):
        load_codec(tmp_path)
    said = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for change, complaint in (
        ({"num_hidden_layers": 2}, "the weights lack .*layers.1"),
        ({"codebook_size": 32}, "do not fit its config"),
        ({"audio_channels": 2}, "audio_channels: expected 1, got 2"),
        ({"codebook_size": 17}, "power of 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(InputError, match=complaint) as error:
            load_codec(tmp_path)
        assert "\n" not in str(error.value)
