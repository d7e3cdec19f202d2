import multiprocessing
import os
import time

import numpy as np
import pytest
from sounds import CountingCodec, tone

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio, default_folder
from elocute.data.types import AudioRef
from elocute.data.units import write_units
from elocute.errors import InputError


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_defect_12_every_audio_file_is_encoded_once(sound, tmp_path):
    refs = [AudioRef(sound(f"{i}.wav", tone(hertz=200 + 50 * i, peak=0.2 + 0.1 * i))) for i in range(3)]
    codec = CountingCodec()
    audio = EncodedAudio(codec, tmp_path / "cache")
    for _step in range(5):
        for ref in refs:
            np.testing.assert_array_equal(audio.units(ref), CountingCodec().encode(*load_audio(ref.path)))
    assert codec.calls == 3 and (audio.counts.encoded, audio.counts.hits) == (3, 12)

    later = EncodedAudio(codec, tmp_path / "cache")
    for ref in refs:
        np.testing.assert_array_equal(later.units(ref), audio.units(ref))
    assert codec.calls == 3 and (later.counts.encoded, later.counts.hits) == (0, 3)


def test_the_content_counts_and_not_the_name(sound, tmp_path):
    audio = EncodedAudio(codec := CountingCodec(), tmp_path / "cache")
    audio.units(AudioRef(sound("a.wav")))
    audio.units(AudioRef(sound("b.wav")))
    assert codec.calls == 1


def test_a_changed_file_is_encoded_again(sound, tmp_path):
    audio = EncodedAudio(codec := CountingCodec(), tmp_path / "cache")
    quiet = audio.units(AudioRef(sound(wave=tone(peak=0.2))))
    path = sound(wave=tone(peak=0.8))
    os.utime(path, ns=(1, 1))
    assert audio.units(AudioRef(path)).mean() > 2 * quiet.mean() and codec.calls == 2


def test_every_codec_has_its_own_entries(sound, tmp_path):
    ref = AudioRef(sound())
    for digest in ("d1", "d2"):
        audio = EncodedAudio(codec := CountingCodec(digest), tmp_path / "cache")
        audio.units(ref)
        assert codec.calls == 1
    assert len(entries(tmp_path / "cache")) == 2


def test_the_caller_may_change_what_it_gets(sound, tmp_path):
    audio = EncodedAudio(CountingCodec(), tmp_path / "cache")
    ref = AudioRef(sound())
    first = audio.units(ref)
    expected = first.copy()
    first[:] = 0
    assert first.dtype == np.int64
    np.testing.assert_array_equal(audio.units(ref), expected)


@pytest.mark.parametrize("position", [0, 3, 100, -40, -1])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_again(sound, tmp_path, damage, position):
    ref = AudioRef(sound())
    expected = EncodedAudio(CountingCodec(), tmp_path / "cache").units(ref)
    [entry] = entries(tmp_path / "cache")
    whole = bytearray(entry.read_bytes())
    damaged = bytearray(whole)
    damaged[position] ^= 0x55
    entry.write_bytes({"cut": whole[:position], "flip": damaged, "empty": b""}[damage])
    audio = EncodedAudio(codec := CountingCodec(), tmp_path / "cache")
    np.testing.assert_array_equal(audio.units(ref), expected)
    assert codec.calls == 1 and entry.read_bytes() == whole


def test_a_store_is_read_and_nothing_encoded(tmp_path):
    write_units(tmp_path / "u.safetensors", {"k": np.arange(5)}, "d1", codec="starter")
    ref = AudioRef(tmp_path / "u.safetensors", "k")
    audio = EncodedAudio(codec := CountingCodec("d1"), tmp_path / "cache")
    np.testing.assert_array_equal(audio.units(ref), np.arange(5))
    assert codec.calls == 0 and not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="starter d1.*in use is d2"):
        EncodedAudio(CountingCodec("d2"), tmp_path / "cache").units(ref)


def test_unusable_audio_leaves_no_entry(sound, tmp_path):
    audio = EncodedAudio(CountingCodec(), tmp_path / "cache")
    with pytest.raises(InputError, match="missing.wav: audio file not found"):
        audio.units(AudioRef(tmp_path / "missing.wav"))
    with pytest.raises(InputError, match="silent"):
        audio.units(AudioRef(sound("silent.wav", tone(peak=0.0))))
    with pytest.raises(InputError, match="short.wav: audio is too short"):
        audio.units(AudioRef(sound("short.wav", tone(seconds=0.01))))
    assert not entries(tmp_path)[2:] and audio.counts.encoded == 0


class SlowCodec(CountingCodec):
    def encode(self, waveform, rate):
        time.sleep(0.02)  # so that processes meet at a file
        return super().encode(waveform, rate)


def _use(folder, paths, results):
    audio = EncodedAudio(codec := SlowCodec(), folder)
    results.put(([audio.units(AudioRef(path)).tolist() for path in paths], codec.calls))


def test_processes_may_share_the_folder_and_the_work(sound, tmp_path):
    paths = [sound(f"{i}.wav", tone(peak=0.1 + 0.02 * i)) for i in range(20)]
    spawn = multiprocessing.get_context("fork")
    results = spawn.Queue()
    workers = [spawn.Process(target=_use, args=(tmp_path / "cache", paths, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    answers, calls = zip(*(results.get(timeout=60) for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    assert sum(calls) == 20
    assert list(answers) == [[CountingCodec().encode(*load_audio(path)).tolist() for path in paths]] * 4
    assert len(entries(tmp_path / "cache")) == 20


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("ELOCUTE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "units"
    monkeypatch.delenv("ELOCUTE_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(default_folder()) == "/home/someone/.cache/elocute/units"


def test_the_first_seconds_are_cut_off_before_they_are_encoded(sound, tmp_path):
    """The same units as of a file that ends there, and never those of the whole file."""
    wave = np.concatenate([tone(peak=0.2), tone(peak=0.8)])
    whole, cut = sound("whole.wav", wave), sound("cut.wav", wave[:4000])
    for audio in (EncodedAudio(CountingCodec(), tmp_path / "cache"), EncodedAudio(CountingCodec(), tmp_path / "cache")):
        first = audio.units(AudioRef(whole, seconds=0.25))
        np.testing.assert_array_equal(first, audio.units(AudioRef(cut)))
        assert len(audio.units(AudioRef(whole))) == 50 and len(first) == 12
        np.testing.assert_array_equal(audio.units(AudioRef(whole, seconds=9)), audio.units(AudioRef(whole)))
    assert len(entries(tmp_path / "cache")) == 4


def test_a_long_recording_may_have_a_short_beginning(sound, tmp_path):
    audio = EncodedAudio(CountingCodec(), tmp_path / "cache")
    long = sound(wave=tone(seconds=61))
    assert len(audio.units(AudioRef(long, seconds=3))) == 150
    with pytest.raises(InputError, match="audio lasts 61.0 s, at most 60 s"):
        audio.units(AudioRef(long))
    with pytest.raises(InputError, match="audio is silent"):
        audio.units(AudioRef(sound("s.wav", np.concatenate([0 * tone(), tone()])), seconds=0.3))


def test_given_units_are_returned_as_they_are(tmp_path):
    audio = EncodedAudio(codec := CountingCodec("d1"), tmp_path / "cache")
    ref = AudioRef(tmp_path / "gone.wav", units=(5, 5, 0, 255), codec="d1")
    units = audio.units(ref)
    assert units.dtype == np.int64 and units.tolist() == [5, 5, 0, 255]
    units[:] = 0
    assert audio.units(ref).tolist() == [5, 5, 0, 255] and codec.calls == 0
    with pytest.raises(InputError, match="gone.wav: its units are of codec d1, the codec in use is d2"):
        EncodedAudio(CountingCodec("d2"), tmp_path / "cache").units(ref)
    with pytest.raises(InputError, match=r"gone.wav: its units: expected 0 … 255, got 256"):
        audio.units(AudioRef(tmp_path / "gone.wav", units=(256,), codec="d1"))
    with pytest.raises(InputError, match=r"gone.wav: its units: expected integers, got \[1, 2\]"):
        audio.units(AudioRef(tmp_path / "gone.wav", units=((1, 2),), codec="d1"))


def test_given_frames_are_of_the_codec_s_width(tmp_path):
    codec = CountingCodec("d1")
    codec.codebooks = 2
    audio = EncodedAudio(codec, tmp_path / "cache")
    units = audio.units(AudioRef(tmp_path / "gone.wav", units=((5, 0), (255, 1), (0, 0)), codec="d1"))
    assert units.dtype == np.int64 and units.tolist() == [[5, 0], [255, 1], [0, 0]]
    for wrong in ((5, 0), ((5, 0, 1),), ((5,),)):
        with pytest.raises(InputError, match="gone.wav: its units: expected frames of 2 codes, got"):
            audio.units(AudioRef(tmp_path / "gone.wav", units=wrong, codec="d1"))
    with pytest.raises(InputError, match=r"expected 0 … 255, got 256"):
        audio.units(AudioRef(tmp_path / "gone.wav", units=((5, 256),), codec="d1"))


def test_what_is_forgotten_is_on_disk(sound, tmp_path):
    audio = EncodedAudio(codec := CountingCodec(), tmp_path / "cache")
    ref = AudioRef(sound())
    expected = audio.units(ref)
    audio.forget()
    np.testing.assert_array_equal(audio.units(ref), expected)
    assert codec.calls == 1
