import numpy as np
import pytest

from elocute.prosody.pitch import f0_track

RATE, HOP = 16000, 160


def voice_like(f0: np.ndarray) -> np.ndarray:
    """Ten harmonics that follow F0 (Hz at every sample)."""
    phase = 2 * np.pi * np.cumsum(f0 / RATE)
    return sum(np.sin(k * phase) / k for k in range(1, 11)) * 0.1


@pytest.mark.parametrize("hertz", [70, 95, 150, 310, 480])
def test_steady_tone_is_found_within_half_a_percent(hertz):
    found = f0_track(voice_like(np.full(RATE, float(hertz))), RATE, HOP)[3:-3]
    assert np.abs(found / hertz - 1).max() < 0.005


def test_pitch_is_found_where_the_fundamental_is_missing():
    time = np.arange(RATE) / RATE
    found = f0_track(sum(np.cos(2 * np.pi * 96 * k * time) for k in range(2, 12)) * 0.05, RATE, HOP)[3:-3]
    assert np.abs(found / 96 - 1).max() < 0.01


def test_glide_is_followed():
    f0 = np.linspace(100, 200, RATE)
    found = f0_track(voice_like(f0), RATE, HOP)[5:-5]
    true = f0[HOP // 2 :: HOP][5:-5]
    assert np.abs(np.log(found / true)).max() < 0.02


def test_noise_and_silence_are_unvoiced():
    noise = np.random.default_rng(0).standard_normal(RATE) * 0.1
    assert (f0_track(noise, RATE, HOP) > 0).mean() < 0.1
    assert not f0_track(np.zeros(RATE), RATE, HOP).any()


def test_every_whole_hop_has_a_value():
    assert [len(f0_track(np.zeros(n), RATE, HOP)) for n in (0, 159, 160, 1600, 1700)] == [0, 0, 1, 10, 10]
