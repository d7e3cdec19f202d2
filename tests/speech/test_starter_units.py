"""The starter's units without repeats: what goes in, what sounds out, what is refused."""

import numpy as np
import pytest
import torch

from elocute.data.audio import load_audio
from elocute.errors import InputError
from elocute.speech import load_codec
from elocute.speech.codec import StarterCodec
from elocute.speech.features import BLOCK
from elocute.speech.repeats import merge_repeats, without_repeats
from elocute.speech.starter_units import Prosody, Shape, StarterUnits
from elocute.speech.units import BrokenUnits

ANSWER = "starter/audio/heldout-sum-0000.answer.wav"


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    torch.manual_seed(0)
    codec = StarterCodec.load("starter/codec")
    shape = Shape(units=codec.shape.codebook, channels=16, layers=1)
    made = StarterUnits(codec, shape, Prosody(shape))
    folder = tmp_path_factory.mktemp("units")
    made.save(folder)
    loaded = load_codec(folder)
    assert isinstance(loaded, StarterUnits) and loaded.digest == made.digest
    return loaded


def test_the_digest_says_nothing_of_where_the_codec_lies(tmp_path):
    shipped = StarterUnits.load("starter/units")
    shipped.save(tmp_path / "beside_a_model")
    assert load_codec(tmp_path / "beside_a_model").digest == shipped.digest
    with torch.no_grad():
        shipped.prosody.leave.bias += 1
    shipped.save(tmp_path / "other")
    assert load_codec(tmp_path / "other").digest != load_codec(tmp_path / "beside_a_model").digest


def test_encoding_is_the_codecs_spectral_units_without_repeats(units):
    waveform, rate = load_audio(ANSWER)
    spectral = units.codec.split(units.codec.encode(waveform, rate))[0]
    found = units.encode(waveform, rate)
    assert (found[1:] != found[:-1]).all() and 1 < len(found) < len(spectral)
    kept, durations = without_repeats(spectral)
    assert np.array_equal(found, kept) and np.array_equal(np.repeat(kept, durations), spectral)


def test_a_sound_lasts_what_the_net_says_in_whole_blocks(units):
    given = np.array([5, 5, 7, 5, 900])
    merged = torch.from_numpy(merge_repeats(given))
    patches = int(units.prosody(merged)[1].sum())
    waveform = units.decode(given)
    assert len(waveform) == -(-patches // 4) * BLOCK
    assert np.array_equal(waveform, units.decode(merged.numpy()))  # deterministic; repeats do not count
    assert len(units.decode([])) == 0


def test_given_durations_are_the_ones_that_are_used(units):
    _, durations, pitch, energy = units.prosody(torch.tensor([1, 2, 3]), torch.tensor([2, 5, 1]))
    assert durations.tolist() == [2, 5, 1] and len(pitch) == len(energy) == 2


def test_a_unit_that_is_none_is_refused(units):
    with pytest.raises(BrokenUnits, match="units: expected 0 … 1023, got 3 … 1024"):
        units.decode([3, 1024])


def test_a_damaged_folder_is_said(units, tmp_path):
    units.save(tmp_path)
    (tmp_path / "prosody.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not the starter's units"):
        StarterUnits.load(tmp_path)
