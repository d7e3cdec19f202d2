import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from elocute.prosody import measure as module
from elocute.prosody.measure import measure
from elocute.prosody.pronunciation import by_letters, count_phones, count_syllables

RATE = 16_000


def voice(f0, seconds=None, rate=RATE, level=0.1) -> np.ndarray:
    """Ten harmonics that follow F0: a number of Hz, or one at every sample."""
    f0 = np.full(int(seconds * rate), float(f0)) if np.isscalar(f0) else f0
    phase = 2 * np.pi * np.cumsum(f0 / rate)
    return level * sum(np.sin(k * phase) / k for k in range(1, 11))


def pause(seconds, rate=RATE) -> np.ndarray:
    return np.zeros(int(seconds * rate))


@pytest.mark.parametrize(
    ("text", "phones", "syllables"),
    [("cold", 4, 1), ("It is 21.", 4 + 9, 2 + 3), ("banana, banana!", 12, 6), ("", 0, 0), ("?!", 0, 0)],
)
def test_words_are_counted_by_the_dictionary(text, phones, syllables):
    assert (count_phones(text), count_syllables(text)) == (phones, syllables)


@pytest.mark.parametrize(
    ("word", "phones", "syllables"),
    [("blick", 4, 1), ("flomed", 5, 1), ("snatted", 6, 2), ("grobble", 6, 2), ("tz", 3, 1), ("zhaitch", 4, 1)],
)
def test_a_word_that_no_dictionary_has_is_counted_by_its_letters(word, phones, syllables):
    assert by_letters(word) == (phones, syllables)


def test_speed_counts_pauses_within_and_not_around():
    spoken = np.concatenate([pause(0.7), voice(120, 0.8), pause(0.4), voice(120, 0.8), pause(1.3)])
    found = measure(spoken, RATE, "cold banana")
    assert found.phones_per_second == pytest.approx(10 / 2.0, rel=0.02)
    assert found.syllables_per_second == pytest.approx(4 / 2.0, rel=0.02)
    assert found.seconds == pytest.approx(4.0)
    assert found.silence_share == pytest.approx(2.4 / 4.0, abs=0.02)
    assert found.voiced_share == pytest.approx(1.6 / 4.0, abs=0.02)


def test_pitch_is_a_median_and_a_range_in_semitones():
    octave = 100 * 2 ** np.linspace(0, 1, 2 * RATE)
    found = measure(voice(octave), RATE, "a")
    assert found.pitch_median == pytest.approx(100 * 2**0.5, rel=0.01)
    assert found.pitch_range == pytest.approx(0.9 * 12, abs=0.3)
    assert measure(voice(100, 1.0), RATE, "a").pitch_range == pytest.approx(0, abs=0.1)


def test_energy_is_that_of_what_sounds():
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    assert measure(tone, RATE, "a").energy == pytest.approx(-3.01, abs=0.2)
    quiet = np.concatenate([pause(2.0), 0.1 * tone, pause(3.0)])
    assert measure(quiet, RATE, "a").energy == pytest.approx(-23.0, abs=0.5)


def test_clipped_samples_are_counted():
    loud = np.clip(3 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE), -1, 1)
    assert measure(loud, RATE, "a").clipping_share == pytest.approx(2 * np.arccos(1 / 3) / np.pi, abs=0.01)
    assert measure(0.9 * loud, RATE, "a").clipping_share == 0


@pytest.mark.parametrize("samples", [0, 1, 100, RATE])
def test_silence_has_no_speed_no_pitch_and_no_energy(samples):
    found = measure(np.zeros(samples, np.float32), RATE, "cold")
    assert (found.phones_per_second, found.pitch_median, found.pitch_range, found.energy) == (None,) * 4
    assert (found.silence_share, found.voiced_share, found.clipping_share) == (1.0, 0.0, 0.0)


def test_without_words_there_is_no_speed():
    found = measure(voice(120, 0.5), RATE, "…")
    assert found.phones_per_second is None and found.syllables_per_second is None and found.pitch_median is not None


@settings(max_examples=20)
@given(st.floats(80, 400), st.floats(0.02, 0.3), st.sampled_from([8_000, 22_050, 24_000, 48_000]))
def test_the_sample_rate_does_not_matter(f0, level, rate):
    spoken = np.concatenate([pause(0.2), voice(f0, 0.4, level=level), pause(0.3)])
    here, there = (
        measure(waveform, at, "cold")
        for waveform, at in ((spoken, RATE), (soxr.resample(spoken, RATE, rate).astype(np.float32), rate))
    )
    assert there.pitch_median == pytest.approx(here.pitch_median, rel=0.01)
    assert there.energy == pytest.approx(here.energy, abs=1.0)
    assert there.phones_per_second == pytest.approx(here.phones_per_second, rel=0.1)


def test_what_was_measured_is_not_measured_again_and_nothing_else_is_taken_for_it(monkeypatch):
    sounds = [np.random.default_rng(n).uniform(-0.5, 0.5, 8000).astype(np.float32) for n in range(2)]
    monkeypatch.setattr(module, "_measured", {})
    found = [measure(sound, rate, text) for sound in sounds for rate in (8000, 16000) for text in ("one", "seven")]
    again = [
        measure(sound.copy(), rate, text) for sound in sounds for rate in (8000, 16000) for text in ("one", "seven")
    ]
    assert len({id(one) for one in found}) == 8 and all(one is two for one, two in zip(found, again, strict=True))
    monkeypatch.setattr(module, "_REMEMBERED", 8)
    measure(sounds[0], 16000, "two")
    assert len(module._measured) == 8 and measure(sounds[0], 8000, "one") == found[0]
