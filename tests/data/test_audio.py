import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from sounds import tone

from elocute.data.audio import load_audio, resample, save_wav, wav_bytes
from elocute.errors import InputError, RunError


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_every_format(sound, kind, rate, channels):
    wave = tone(rate=rate, channels=channels)
    loaded, loaded_rate = load_audio(sound(f"a.{kind}", wave, rate))
    assert loaded_rate == rate and loaded.dtype == np.float32 and loaded.ndim == 1
    assert len(loaded) / rate == pytest.approx(0.5, abs=0.1)  # MP3 pads
    assert np.abs(loaded).max() == pytest.approx(0.5, abs=0.1)
    spectrum = np.abs(np.fft.rfft(loaded))
    assert spectrum.argmax() * rate / len(loaded) == pytest.approx(220, abs=5)


def test_channels_are_averaged(sound):
    left, right = tone(), tone(hertz=330)
    loaded, _ = load_audio(sound(wave=np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(loaded, (left + right) / 2, atol=1e-7)


def test_the_content_counts_and_not_the_suffix(sound):
    path = sound("a.flac")
    assert load_audio(path.rename(path.with_suffix(".wav")))[1] == 16000


def bad_files(tmp_path):
    nan = tone()
    nan[7] = np.nan
    yield "missing.wav", None, "not found"
    yield "folder.wav", "folder", "not found"
    yield "text.wav", b"this is no sound", "not a readable audio file"
    yield "nothing.wav", b"", "not a readable audio file"
    yield "headerless.raw", b"\1\2" * 999, "not a readable audio file"
    yield "empty.wav", np.zeros(0, np.float32), "empty"
    yield "silent.wav", tone(peak=5e-5), "silent"
    yield "cancelled.wav", np.stack([tone(), -tone()], axis=1), "silent"
    yield "nan.wav", nan, "NaN"
    yield "infinite.wav", np.full(800, np.inf, np.float32), "infinite"
    yield "long.wav", tone(seconds=2.5), "2.5 s, at most 2 s"


@pytest.mark.parametrize("i", range(11))
def test_unusable_audio_is_one_clear_error(tmp_path, i):
    name, content, expected = list(bad_files(tmp_path))[i]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.mkdir()
    elif content is not None:
        soundfile.write(path, content, 16000, subtype="FLOAT")
    with pytest.raises(InputError) as caught:
        load_audio(path, max_seconds=2)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message


def test_a_cut_off_file_is_an_error(sound):
    path = sound("a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 16000))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="cut off|not a readable"):
        load_audio(path)


def test_the_length_limit_itself_is_allowed(sound):
    assert len(load_audio(sound(wave=tone(seconds=2)), max_seconds=2)[0]) == 32000


@given(st.integers(1, 4000), st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]), st.sampled_from([8000, 24000]))
def test_resampling_keeps_the_duration(n, from_rate, to_rate):
    wave = resample(np.ones(n), from_rate, to_rate)
    assert wave.dtype == np.float32 and abs(len(wave) - n * to_rate / from_rate) <= 1


def test_resampling_keeps_the_tone():
    loaded = resample(tone(rate=44100), 44100, 16000)
    np.testing.assert_allclose(loaded[500:-500], tone(rate=16000)[500 : len(loaded) - 500], atol=1e-3)


def test_resampling_nothing():
    assert resample(np.zeros(0), 8000, 16000).shape == (0,)


@given(st.lists(st.floats(-1, 1, width=32), max_size=50), st.sampled_from([8000, 22050, 24000]))
def test_wav_bytes_hold_the_waveform_at_its_true_rate(samples, rate):
    wave = np.array(samples, dtype=np.float32)
    with soundfile.SoundFile(io.BytesIO(wav_bytes(wave, rate))) as file:
        assert (file.samplerate, file.channels, file.subtype) == (rate, 1, "PCM_16")
        np.testing.assert_allclose(file.read(), wave, atol=1.01 / 32768)


def test_too_loud_is_clipped_and_not_wrapped():
    read, _ = soundfile.read(io.BytesIO(wav_bytes(np.array([2.0, -2.0, 0.5]), 8000)))
    np.testing.assert_allclose(read, [1, -1, 0.5], atol=1e-4)


def test_saved_wav_is_read_back_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.wav"
    save_wav(path, tone(), 22050)
    save_wav(path, tone(hertz=300), 22050)
    loaded, rate = load_audio(path)
    np.testing.assert_allclose(loaded, tone(hertz=300), atol=1e-4)
    assert rate == 22050 and list(path.parent.iterdir()) == [path]


def test_broken_waveforms_are_not_written(tmp_path):
    with pytest.raises(RunError, match="NaN"):
        save_wav(tmp_path / "a.wav", np.array([0.0, np.nan]), 16000)
    with pytest.raises(TypeError, match="int16"):
        wav_bytes(np.zeros(4, np.int16), 16000)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        save_wav(tmp_path / "file" / "a.wav", tone(), 16000)
