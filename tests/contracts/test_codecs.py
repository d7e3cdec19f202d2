"""X-Codec 2 and DAC from their published folders, against transformers' own models and extractors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DacFeatureExtractor, DacModel, SeamlessM4TFeatureExtractor, Xcodec2Model

from elocute.data.audio import load_audio, resample
from elocute.errors import InputError
from elocute.speech import load_codec
from elocute.speech.dac import Dac
from elocute.speech.units import BrokenUnits
from elocute.speech.xcodec2 import XCodec2
from tests.contracts import codecs

MAKE = {"xcodec2": codecs.xcodec2, "dac": codecs.dac}
KINDS = {"xcodec2": XCodec2, "dac": Dac}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("codecs")
    return {kind: make(home / kind) for kind, make in MAKE.items()}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two seconds at 16 kHz."""
    waveform, rate = load_audio("starter/audio/heldout-sum-0000.answer.wav")
    return resample(waveform, rate, 16000)[:32000]


@pytest.mark.parametrize("kind", MAKE)
def test_there_and_back(folders, speech, kind):
    codec = load_codec(folders[kind])
    assert isinstance(codec, KINDS[kind]) and codec.sample_rate == 16000
    units = codec.encode(speech, 16000)
    hop = {"xcodec2": 320, "dac": 512}[kind]
    assert len(units) == -(-(len(speech) + (kind == "xcodec2")) // hop) and units.dtype == np.int64
    assert 0 <= units.min() and units.max() < codec.n_units and len(np.unique(units)) > 5
    sound = codec.decode(units)
    assert sound.dtype == np.float32 and len(sound) == hop * len(units) and 0 < np.abs(sound).max() <= 1
    assert codec.encode(speech[:0], 16000).size == 0 and len(codec.decode(units[:0])) == 0


@pytest.mark.parametrize("kind", MAKE)
def test_another_rate_is_resampled(folders, speech, kind):
    """At least most units are those of the recording that was resampled before."""
    codec = load_codec(folders[kind])
    fast = resample(speech, 16000, 48000)
    assert np.array_equal(codec.encode(fast, 48000), codec.encode(resample(fast, 48000, 16000), 16000))
    assert len(codec.encode(fast, 48000)) == len(codec.encode(speech, 16000))


@pytest.mark.parametrize("kind", MAKE)
def test_what_was_encoded_before_does_not_matter(folders, speech, kind):
    codec = load_codec(folders[kind])
    alone = codec.encode(speech[:9000], 16000), codec.decode(codec.encode(speech[:9000], 16000))
    codec.decode(codec.encode(speech, 16000))
    again = codec.encode(speech[:9000], 16000)
    assert np.array_equal(alone[0], again) and np.array_equal(alone[1], codec.decode(again))


@pytest.mark.parametrize("kind", MAKE)
def test_saved_byte_for_byte(folders, tmp_path, kind):
    codec = load_codec(folders[kind])
    codec.save(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in folders[kind].iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    again = load_codec(tmp_path / "saved")
    again.save(tmp_path / "saved")  # onto itself
    assert again.digest == codec.digest != load_codec(MAKE[kind](tmp_path / "other", seed=1)).digest


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_unit_is_broken(folders, kind):
    codec = load_codec(folders[kind])
    with pytest.raises(BrokenUnits, match=rf"expected 0 … {codec.n_units - 1}, got 0 … {codec.n_units}"):
        codec.decode([0, 1, codec.n_units])
    with pytest.raises(BrokenUnits, match="got -1"):
        codec.decode([0, -1, 1])


def test_xcodec2_is_transformers(folders, speech):
    codec, model = XCodec2.load(folders["xcodec2"]), Xcodec2Model.from_pretrained(folders["xcodec2"]).eval()
    sound = codec.padded(speech[:9001])
    assert len(sound) == 9280 and np.array_equal(sound[:9001], speech[:9001]) and not sound[9001:].any()
    features = codec.features(sound)
    with torch.no_grad():
        codes = model.encode(sound[None, None], features[None]).audio_codes
        expected = model.decode(codes).audio_values[0, 0].clamp(-1, 1)
    assert np.array_equal(codec.encode(speech[:9001], 16000), codes[0, 0].numpy())
    assert np.allclose(codec.decode(codes[0, 0].numpy()), expected.numpy(), atol=1e-5)


def test_xcodec2_features_are_those_of_the_original_extractor(folders, speech):
    """X-Codec 2 was made with SeamlessM4T's extractor, which transformers has without torchaudio."""
    codec = XCodec2.load(folders["xcodec2"])
    sound = codec.padded(speech[:9001])
    original = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16000, stride=2)
    given = np.pad(sound.numpy(), 160)
    expected = original(given, sampling_rate=16000, return_tensors="np", padding=False).input_features[0]
    assert np.allclose(codec.features(sound).numpy(), expected, atol=2e-3)


def test_dac_is_transformers(folders, speech):
    codec, model = Dac.load(folders["dac"]), DacModel.from_pretrained(folders["dac"]).eval()
    extractor = DacFeatureExtractor.from_pretrained(folders["dac"])
    given = torch.as_tensor(extractor(speech[:9001], sampling_rate=16000, return_tensors="pt")["input_values"])
    with torch.no_grad():
        codes = model.encode(given).audio_codes
        expected = model.decode(audio_codes=codes).audio_values[0].clamp(-1, 1)
    assert np.array_equal(codec.encode(speech[:9001], 16000), codes[0].T.numpy()) and codec.codebooks == 3
    assert np.allclose(codec.decode(codes[0].T.numpy()), expected.numpy(), atol=1e-5)


@pytest.fixture
def copy(folders, tmp_path, request) -> Path:
    return Path(shutil.copytree(folders[request.param], tmp_path / "copy"))


def rewrite(file: Path, **said) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | said))


@pytest.mark.parametrize("copy", MAKE, indirect=True)
def test_folders_that_do_not_fit(copy):
    kind = json.loads((copy / "config.json").read_text())["model_type"]
    rewrite(copy / "preprocessor_config.json", sampling_rate=24000)
    with pytest.raises(InputError, match="preprocessor_config.json: sampling_rate: expected 16000, got 24000"):
        load_codec(copy)
    rewrite(copy / "preprocessor_config.json", sampling_rate=16000)

    state = load_file(copy / "model.safetensors")
    lost = next(name for name in sorted(state) if "quantizer" in name)
    save_file({name: tensor for name, tensor in state.items() if name != lost}, copy / "model.safetensors")
    with pytest.raises(InputError, match=f"the weights lack {lost}"):
        load_codec(copy)
    save_file(state | {"ghost": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(InputError, match="the weights hold ghost, for which config.json has no place"):
        load_codec(copy)
    (copy / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="model.safetensors: not a whole safetensors file"):
        load_codec(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected model.safetensors.index.json or model.safetensors, there is none"):
        load_codec(copy)

    rewrite(copy / "config.json", model_type="llama")
    with pytest.raises(
        InputError, match="config.json: model_type: expected a codec's, mimi, xcodec2 or dac, got 'llama'"
    ):
        load_codec(copy)
    with pytest.raises(InputError, match=f"config.json: model_type: expected {kind}, got 'llama'"):
        KINDS[kind].load(copy)
    with pytest.raises(InputError, match=f"config.json: not there: expected the folder of a model of type {kind}"):
        KINDS[kind].load(copy / "none")


@pytest.mark.parametrize("copy", ["xcodec2"], indirect=True)
def test_an_xcodec2_of_other_frames_is_refused(copy):
    rewrite(copy / "config.json", sampling_rate=24000)
    with pytest.raises(InputError, match="expected a codec of 16000 Hz with a unit for 320 samples, got 24000 Hz"):
        load_codec(copy)
