"""The codec of textless models: published parts in a folder, moved without a change."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.speech import load_codec
from elocute.speech.codec import StarterCodec
from elocute.speech.unit_codec import UnitCodec
from elocute.speech.units import BrokenUnits
from tests.speech import unit_models
from tests.speech.unit_models import UNITS, speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return unit_models.unit_codec(tmp_path_factory.mktemp("codec"), pad_samples=40, chunk_seconds=1.5)


@pytest.fixture(scope="module")
def codec(folder) -> UnitCodec:
    return UnitCodec.load(folder)


def test_the_folder_chooses_the_codec(folder):
    assert isinstance(load_codec(folder), UnitCodec)
    assert isinstance(load_codec("starter/codec"), StarterCodec)
    with pytest.raises(InputError, match="expected a codec's, mimi, xcodec2 or dac, got 'hubert'"):
        load_codec(folder / "mhubert")


def test_units_in_without_repeats_sound_out(codec):
    units = codec.encode(speech(2.0), 16000)
    assert units.dtype == np.int64 and 10 < len(units) <= 50 and set(units) <= set(range(UNITS))
    assert (np.diff(units) != 0).all()
    sound = codec.decode(units)
    assert sound.dtype == np.float32 and len(sound) >= 640 * len(units) and np.abs(sound).max() <= 1
    assert codec.sample_rate == 16000 and codec.n_units == UNITS
    assert len(codec.encode(speech(2.0)[:100], 16000)) == 0 and len(codec.decode([])) == 0


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, UNITS - 1), st.integers(1, 4)), min_size=1, max_size=8))
def test_repeats_are_merged_before_anything_sounds(codec, runs):
    once = [unit for place, (unit, _) in enumerate(runs) if place == 0 or unit != runs[place - 1][0]]
    assert np.array_equal(codec.decode([unit for unit, count in runs for _ in range(count)]), codec.decode(once))


@pytest.mark.parametrize("units", [[0, UNITS], [-1]])
def test_an_id_that_is_no_unit_is_broken(codec, units):
    with pytest.raises(BrokenUnits, match=f"expected 0 … {UNITS - 1}"):
        codec.decode(units)


def test_a_saved_codec_is_whole_and_the_same(codec, tmp_path):
    codec.save(tmp_path / "one")
    again = UnitCodec.load(tmp_path / "one")
    again.save(tmp_path / "two")
    again.save(tmp_path / "two")  # over itself, too
    (tmp_path / "one").rename(tmp_path / "gone")
    again = UnitCodec.load(tmp_path / "two")
    assert again.digest == codec.digest and again.tokenizer.reading == codec.tokenizer.reading
    units = codec.encode(speech(2.0), 16000)
    assert np.array_equal(again.encode(speech(2.0), 16000), units)
    assert np.array_equal(again.decode(units), codec.decode(units))


def test_another_vocoder_is_another_voice_for_the_same_units(folder, codec, tmp_path):
    unit_models.vocoder(tmp_path / "v.pt", tmp_path / "v.json", seed=9)
    said = json.loads((folder / "unit_codec.json").read_text())
    said |= {key: str(folder / said[key]) for key in ("hubert", "centres")}
    said |= {"vocoder": "v.pt", "vocoder_config": "v.json"}
    (tmp_path / "unit_codec.json").write_text(json.dumps(said))
    other = UnitCodec.load(tmp_path)
    units = codec.encode(speech(1.0), 16000)
    assert other.digest == codec.digest and np.array_equal(other.encode(speech(1.0), 16000), units)
    assert not np.array_equal(other.decode(units), codec.decode(units))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "format: expected 'elocute-unit-codec-1'"),
        ({"layers": 2}, "layers: unknown key"),
        ({"vocoder": None}, "vocoder: expected a path, got None"),
        ({"layer": 2.5}, "layer: expected a number, at least 0, got 2.5"),
        ({"pad_samples": -1}, "pad_samples: expected a number, at least 0, got -1"),
        ({"chunk_seconds": 0}, "chunk_seconds: expected a number, at least 1, got 0"),
        ({"layer": 40}, "layer: expected 0 … 3, got 40"),
        ({"centres": "nowhere.safetensors"}, "nowhere.safetensors: not a safetensors file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, tmp_path, change, said):
    base = json.loads((folder / "unit_codec.json").read_text())
    base |= {key: str(folder / base[key]) for key in ("hubert", "centres", "vocoder", "vocoder_config")}
    (tmp_path / "unit_codec.json").write_text(json.dumps(base | change))
    with pytest.raises(InputError, match=said):
        UnitCodec.load(tmp_path)


def test_a_vocoder_of_fewer_units_is_refused(folder, tmp_path):
    said = json.loads((folder / "unit_codec.json").read_text())
    said |= {key: str(folder / said[key]) for key in ("hubert", "centres")}
    unit_models.vocoder(tmp_path / "hifigan.pt", tmp_path / "hifigan_config.json", num_embeddings=7)
    (tmp_path / "unit_codec.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="the vocoder knows 7 units, there are 20 centres"):
        UnitCodec.load(tmp_path)
