"""Textless answers get the words that an ear hears in them; so do prompts without words."""

import numpy as np
import pytest

from elocute.data.audio import save_wav
from elocute.data.types import Answer, AudioRef, Example, Message, Utterance
from elocute.errors import InputError
from elocute.rewards.combine import RewardMixer, Weighted
from elocute.rewards.rule import RuleReward
from elocute.rewards.transcript import Transcriber

RATE = 8_000


class Lengths:
    """An ear that hears how many hundredths of a second a sound lasts, and remembers how often it was asked."""

    def __init__(self):
        self.heard = []
        self.closed = False

    def transcribe(self, waveforms, sample_rate):
        self.heard += [len(waveform) * 100 // sample_rate for waveform in waveforms]
        return [f"{len(waveform) * 100 // sample_rate} hundredths" for waveform in waveforms]

    def close(self):
        self.closed = True


def noise(seconds):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def example(*audios, words="", **fields):
    content = words + "<|audio|>" * len(audios)
    return Example("q", (Message("user", content),), audios, file="rows.jsonl", line=3, **fields)


def said(seconds, text=""):
    return Utterance(text, noise(seconds), RATE)


def test_only_what_has_no_text_is_heard():
    ear = Lengths()
    asked = example(question_text="what")
    answers = [Answer(asked, said(0.2)), Answer(asked, said(0.3, "written")), Answer(asked, said(0))]
    filled = Transcriber(ear)(answers)
    assert [answer.utterance.text for answer in filled] == ["20 hundredths", "written", ""]
    assert ear.heard == [20]
    assert all(new.utterance.waveform is old.utterance.waveform for new, old in zip(filled, answers, strict=True))


def test_a_prompt_without_words_is_heard_once_and_only_its_first_seconds(tmp_path):
    save_wav(tmp_path / "a.wav", noise(0.5), RATE)
    ear = Lengths()
    transcriber = Transcriber(ear)
    cut, whole = (example(AudioRef(tmp_path / "a.wav", seconds=seconds)) for seconds in (0.2, None))
    for _ in range(2):
        filled = transcriber.prompts([cut, whole, example(words="hello ")])
        assert [row.question_text for row in filled] == ["20 hundredths", "50 hundredths", None]
    assert sorted(ear.heard) == [20, 50]
    known = example(AudioRef(tmp_path / "a.wav"), question_text="known")
    assert transcriber.prompts([known])[0].question_text == "known"


def test_a_prompt_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="^rows.jsonl:3: audios: .*not found"):
        Transcriber(Lengths()).prompts([example(AudioRef(tmp_path / "b.wav"))])


def test_checks_come_before_any_listening(tmp_path):
    transcriber = Transcriber(Lengths())
    heard_later = example(AudioRef(tmp_path / "not there.wav"))
    assert transcriber.assumed(heard_later).question_text
    units = example(AudioRef(tmp_path / "s.safetensors", key="k"))  # cannot be listened to
    assert transcriber.assumed(units).question_text is None
    assert transcriber.ear.heard == []


def test_the_mixer_reads_what_was_heard_and_closes_the_ear():
    ear = Lengths()
    mixer = RewardMixer([Weighted(RuleReward("right", "answer", "exact"))], transcriber=Transcriber(ear))
    asked = example(question_text="what", columns={"answer": "20 hundredths"})
    answers = mixer.read([Answer(asked, said(0.2)), Answer(asked, said(0.3))])
    assert mixer(answers, [0, 0]).values == [1, 0]
    mixer.close()
    assert ear.closed
