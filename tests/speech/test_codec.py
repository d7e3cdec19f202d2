import json
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from elocute.errors import InputError
from elocute.prosody.pitch import f0_track
from elocute.speech import features
from elocute.speech.codec import BLOCK_UNITS, ENERGY_BINS, StarterCodec, nearest
from elocute.speech.units import BrokenUnits

SHIPPED = Path(__file__).parents[2] / "starter" / "codec"
RATE = 16000


@pytest.fixture(scope="module")
def codec() -> StarterCodec:
    return StarterCodec.load(SHIPPED)


def vowel(hertz: float, seconds: float = 0.8, level: float = 0.1) -> np.ndarray:
    """A vowel-like sound: harmonics under three formants."""
    time = np.arange(int(seconds * RATE)) / RATE
    formants = [(700, 1.0), (1200, 0.5), (2600, 0.2)]
    total = np.zeros(len(time))
    for k in range(1, int(7000 / hertz)):
        weight = sum(gain / (1 + ((k * hertz - centre) / 120) ** 2) for centre, gain in formants)
        total += weight * np.cos(2 * np.pi * k * hertz * time)
    return (total / total.std() * level).astype(np.float32)


def test_five_units_for_each_started_block(codec):
    assert codec.units_per_second == 62.5
    for samples in (0, 1, 1280, 1281, 12800):
        units = codec.encode(vowel(120)[:1] if samples == 1 else vowel(120, 2.0)[:samples], RATE)
        assert units.dtype == np.int64 and len(units) == 5 * -(-samples // 1280)
        assert len(codec.decode(units)) == 1280 * -(-samples // 1280)


def test_kinds_of_units_are_in_their_places(codec):
    units = codec.encode(vowel(150), RATE).reshape(-1, BLOCK_UNITS)
    assert (units[:, 0] >= codec.shape.codebook).all() and (units[:, 0] < codec.n_units).all()
    assert (units[:, 1:] >= 0).all() and (units[:, 1:] < codec.shape.codebook).all()


def test_the_same_sound_gives_the_same_units_and_samples_whatever_came_before(codec):
    first, other = vowel(120), vowel(210)
    units = codec.encode(first, RATE)
    sound = codec.decode(units)
    codec.decode(codec.encode(other, RATE))
    fresh = StarterCodec.load(SHIPPED)
    assert np.array_equal(fresh.encode(first, RATE), units) and np.array_equal(fresh.decode(units), sound)


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100, 48000])
def test_any_sample_rate_is_accepted(codec, rate):
    sound = soxr.resample(vowel(140), RATE, rate)
    units = codec.encode(sound, rate)
    assert abs(len(units) - len(codec.encode(vowel(140), RATE))) <= BLOCK_UNITS
    assert codec.decode(units).dtype == np.float32


@pytest.mark.parametrize("hertz", [80, 110, 160, 230, 280])
def test_pitch_survives_within_a_bin(codec, hertz):
    made = codec.decode(codec.encode(vowel(hertz), RATE))
    f0 = f0_track(made, RATE, 160)[10:-10]
    assert (f0 > 0).mean() > 0.9
    assert abs(np.log2(np.median(f0[f0 > 0]) / hertz)) < 0.2


def test_a_raised_voice_stays_raised(codec):
    low, high = (codec.decode(codec.encode(vowel(hertz), RATE)) for hertz in (120, 168))
    ratio = np.median(f0_track(high, RATE, 160)[10:-10]) / np.median(f0_track(low, RATE, 160)[10:-10])
    assert 1.25 < ratio < 1.55


def test_louder_sound_changes_energy_units_only(codec):
    step_db = (features.HIGHEST_DB - features.LOWEST_DB) / (ENERGY_BINS - 1)
    gains = (1, 10 ** (step_db / 20))
    quiet, loud = (codec.encode(vowel(150, level=0.02 * gain), RATE).reshape(-1, 5) for gain in gains)
    assert np.array_equal(quiet[:-1, 1:], loud[:-1, 1:])
    assert np.array_equal(quiet[:-1, 0] + 1, loud[:-1, 0])
    low, high = codec.decode(quiet.reshape(-1)), codec.decode(loud.reshape(-1))
    assert abs(20 * np.log10(high.std() / low.std()) - step_db) < 2.5


def test_silence_stays_silent(codec):
    made = codec.decode(codec.encode(np.zeros(RATE, dtype=np.float32), RATE))
    assert np.abs(made).max() < 0.01


def test_loud_clipped_input_does_not_leave_the_range(codec):
    made = codec.decode(codec.encode(np.sign(vowel(120)).astype(np.float32), RATE))
    assert np.isfinite(made).all() and np.abs(made).max() <= 1.0


def test_trailing_incomplete_block_is_dropped(codec):
    units = codec.encode(vowel(120), RATE)
    assert np.array_equal(codec.decode(units[:-2]), codec.decode(units[:-5]))
    assert len(codec.decode(units[:4])) == 0 and len(codec.decode([])) == 0


def test_wrong_kind_says_where(codec):
    units = codec.encode(vowel(120), RATE)
    prosody, spectral = "a prosody", "a spectral"
    for place, wrong, kind in [(5, 3, prosody), (7, 1024, spectral), (9, -1, spectral), (0, 99999, prosody)]:
        broken = units.copy()
        broken[place] = wrong
        with pytest.raises(BrokenUnits, match=f"unit {place} is {wrong}, expected {kind} unit"):
            codec.decode(broken)


def test_missing_or_foreign_folder_is_an_input_error(codec, tmp_path):
    with pytest.raises(InputError, match="not a starter codec"):
        StarterCodec.load(tmp_path / "nothing")
    codec_copy = StarterCodec.load(SHIPPED)
    codec_copy.save(tmp_path)
    (tmp_path / "codec.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(InputError, match="format"):
        StarterCodec.load(tmp_path)
    codec_copy.save(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not a starter codec"):
        StarterCodec.load(tmp_path)


def test_save_and_load_keep_everything(codec, tmp_path):
    copy = StarterCodec.load(SHIPPED)
    copy.save(tmp_path)
    assert copy.digest == StarterCodec.load(tmp_path).digest == codec.digest
    units = codec.encode(vowel(130), RATE)
    assert np.array_equal(StarterCodec.load(tmp_path).decode(units), codec.decode(units))


def test_shipped_codec_is_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8e6


def test_nearest_equals_the_naive_distance():
    draw = np.random.default_rng(0)
    patches, codebook = draw.normal(size=(300, 42)).astype(np.float32), draw.normal(size=(50, 42)).astype(np.float32)
    naive = ((patches[:, None].astype(np.float64) - codebook[None]) ** 2).sum(-1).argmin(1)
    assert np.array_equal(nearest(patches, codebook), naive)


def test_stereo_is_refused(codec):
    with pytest.raises(ValueError, match="mono"):
        codec.encode(np.zeros((100, 2), dtype=np.float32), RATE)


def test_decoding_does_not_touch_the_global_random_state(codec):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    codec.decode(codec.encode(vowel(120), RATE))
    assert torch.equal(torch.rand(1), expected)
