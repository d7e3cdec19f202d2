"""Which words were heard, and when."""

import math

import jiwer
import numpy as np
import pytest
import tiny_models
from answers import answer
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.normalise import normalise
from elocute.data.units import UnitStore
from elocute.errors import InputError
from elocute.recipe.rewards import AsrSpec
from elocute.rewards.asr import AsrReward, PocketSphinxEar, TransformersEar
from elocute.rewards.build import build_reward
from elocute.rewards.outcome import Invalid
from elocute.rewards.words import Word, mark_words, normalised_words
from elocute.speech.codec import StarterCodec

SPOKEN = st.lists(st.sampled_from("one two hundred and five a 21 cold 3.5 -".split()), max_size=7)


def timed(texts, length=0.5):
    return [Word(text, length * n, length * (n + 1)) for n, text in enumerate(texts)]


@given(SPOKEN)
def test_normalised_words_are_the_normalised_text_in_time(texts):
    heard = timed(texts)
    words = normalised_words(heard)
    assert " ".join(word.text for word in words) == normalise(" ".join(texts))
    edges = {edge for word in heard for edge in (word.start, word.end)}
    for word in words:
        assert word.start < word.end and {word.start, word.end} <= edges
    assert [word.start for word in words] == sorted(word.start for word in words)


def test_a_word_has_the_time_of_what_it_was_made_of():
    assert normalised_words(timed(["21"])) == [Word("twenty", 0, 0.5), Word("one", 0, 0.5)]
    one, hundred, five = normalised_words(timed(["One", "hundred", "and", "five."]))
    assert (one.text, hundred.text, five.text) == ("one", "hundred", "five")
    assert (five.start, five.end) == (1.0, 2.0)  # "and five"


WORDS = st.lists(st.sampled_from(["one", "two", "cold"]), max_size=6)


@given(WORDS.filter(bool), WORDS)
def test_marks_are_the_alignment(written, heard):
    seconds = 0.5 * len(heard) + 0.3
    marks = mark_words(" ".join(written), timed(heard), seconds)
    assert [mark["expected"] for mark in marks if mark["expected"]] == written
    assert [mark["heard"] for mark in marks if mark["heard"]] == heard
    assert [mark["place"] for mark in marks if mark["expected"]] == list(range(len(written)))
    wrong = sum(mark["expected"] != mark["heard"] for mark in marks)
    assert wrong == round(jiwer.wer(" ".join(written), " ".join(heard)) * len(written))
    for mark in marks:
        assert 0 <= mark["start"] <= mark["end"] <= seconds and 0 <= mark["place"] <= len(written)
        if mark["heard"]:
            assert mark["end"] - mark["start"] == 0.5
    assert [mark["start"] for mark in marks] == sorted(mark["start"] for mark in marks)


def test_a_word_left_out_has_the_time_between_its_neighbours():
    heard = [Word("one", 0.2, 0.4), Word("three", 0.9, 1.2)]
    two, four = (mark for mark in mark_words("one two three four", heard, 2.0) if mark["heard"] is None)
    assert (two["start"], two["end"], four["start"], four["end"]) == (0.4, 0.9, 1.2, 2.0)
    [first] = [mark for mark in mark_words("zero one three", heard, 2.0) if mark["heard"] is None]
    assert (first["start"], first["end"]) == (0.0, 0.2)
    with pytest.raises(ValueError, match="no words were written"):
        mark_words("?", heard, 2.0)


# ears


@pytest.fixture(scope="module")
def spoken():
    """Answers of the starter, as its codec says them."""
    codec, store = StarterCodec.load("starter/codec"), UnitStore("starter/data/answers.safetensors")
    return {text: codec.decode(store.get(text.replace(" ", "_"))) for text in ("fifty two", "fifty three", "ninety")}


@pytest.mark.parametrize("workers", [1, 2])
def test_pocketsphinx_says_when(spoken, workers):
    ear = PocketSphinxEar(["fifty two", "fifty three", "ninety", "read"], workers)
    waveforms = [*spoken.values(), np.zeros(0, np.float32)]
    heard = ear.words(waveforms, 16_000)
    assert [" ".join(word.text for word in words) for words in heard] == ear.transcribe(waveforms, 16_000)
    assert [[word.text for word in words] for words in heard] == [*(text.split() for text in spoken), []]
    for words, waveform in zip(heard, waveforms, strict=True):
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= len(waveform) / 16_000 + 0.02 for time in times)
    fifty, two = heard[0]
    half = len(waveforms[0]) / 32_000
    assert fifty.start < half < two.end and 0.1 < fifty.end < 2 * half - 0.1
    ear.close()


def test_the_reward_marks_each_word(spoken):
    reward = AsrReward("asr", PocketSphinxEar(["fifty two", "fifty three"]), timed=True)
    right, wrong, silent = reward(
        [
            answer("Fifty-two.", waveform=spoken["fifty two"]),
            answer("52", waveform=spoken["fifty three"]),
            answer("52", broken="no end"),
        ]
    )
    assert (right.value, right.detail["wer"], right.detail["heard"]) == (1, 0, "fifty two")
    assert [mark["heard"] == mark["expected"] for mark in right.detail["words"]] == [True, True]
    assert wrong.value == math.exp(-2.5 * 0.5)
    assert [(mark["expected"], mark["heard"]) for mark in wrong.detail["words"]] == [("fifty",) * 2, ("two", "three")]
    assert silent == Invalid("no end")


@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_a_transformers_ear_says_when(kind, tmp_path):
    """Random weights hear nonsense, but the words of the transcript, in any batch, each in its time."""
    folder = getattr(tiny_models, kind)(tmp_path / kind)
    ear = TransformersEar(folder, batch_size=2, device="cpu")
    if kind == "whisper":
        with pytest.raises(InputError, match="no times of words: its generation_config.json has no alignment_heads"):
            ear.words([], 16_000)
        ear.model.generation_config.alignment_heads = [[0, 0], [0, 1]]
    draw = np.random.default_rng(0)
    waveforms = [draw.standard_normal(n).astype(np.float32) * 0.1 for n in (16_000, 30_000, 100)]
    heard, texts = ear.words(waveforms, 16_000), ear.transcribe(waveforms, 16_000)
    assert [" ".join(word.text for word in words) for words in heard] == [" ".join(text.split()) for text in texts]
    assert heard[0] and heard[1] and not heard[2]
    one = TransformersEar(folder, batch_size=1, device="cpu")
    if kind == "whisper":
        one.model.generation_config.alignment_heads = [[0, 0], [0, 1]]
    assert one.words(waveforms, 16_000) == heard
    for words, waveform in zip(heard, waveforms, strict=True):
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= len(waveform) / 16_000 + 0.02 for time in times)


def test_whispers_tokens_become_words(tmp_path):
    class Tokens:
        all_special_ids = [0]

        def decode(self, ids):
            return ["<|end|>", " the", " tr", "ain", "."][ids[0]]

    ear = TransformersEar(tiny_models.whisper(tmp_path / "whisper"), device="cpu")
    ear.processor.tokenizer = Tokens()
    joined = ear._joined(np.array([1, 2, 3, 4, 0]), np.array([0.1, 0.4, 0.6, 0.9, 1.5]), 1.2)
    assert joined == [Word("the", 0.1, 0.4), Word("train.", 0.4, 1.2)]


def test_the_recipe_asks_for_times(tmp_path):
    assert not build_reward(AsrSpec(kind="asr")).timed
    assert build_reward(AsrSpec(kind="asr", word_credit=0.5)).timed
    ear = {"kind": "transformers", "path": tiny_models.whisper(tmp_path / "whisper"), "device": "cpu"}
    with pytest.raises(InputError, match="no times of words"):
        build_reward(AsrSpec(kind="asr", word_credit=0.5, ear=ear))
