import math

import jiwer
import numpy as np
import pytest
import tiny_models
import torch
from answers import answer, tone
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.rewards.asr import AsrReward, TransformersEar, hear, word_error_rate
from elocute.rewards.outcome import Invalid, Scored


class Says:
    """An ear that hears the number of samples and the rate."""

    def transcribe(self, waveforms, sample_rate):
        return [f"{len(w)} {sample_rate}" for w in waveforms]

    def close(self):
        self.closed = True


class Repeats(Says):
    def __init__(self, text):
        self.text = text

    def transcribe(self, waveforms, sample_rate):
        return [self.text] * len(waveforms)


def noise(seconds, rate=16_000, seed=0):
    return np.random.default_rng(seed).standard_normal(int(seconds * rate)).astype(np.float32) * 0.1


@pytest.mark.parametrize(
    ("written", "heard", "wer"),
    [("Twenty-one!", "21", 0), ("thirty seven", "thirty", 0.5), ("cold", "", 1), ("cold", "it is so cold", 3)],
)
def test_faithfulness_falls_with_the_word_error_rate(written, heard, wer):
    (outcome,) = AsrReward("asr", Repeats(heard))([answer(written)])
    assert outcome == Scored(math.exp(-2.5 * wer), {"heard": heard, "wer": wer})
    assert 0 < outcome.value <= 1


@pytest.mark.parametrize(
    ("form", "naive"),
    [
        ("exp", lambda w: math.e ** (-2.5 * w)),
        ("linear", lambda w: max(0, 1 - w)),
        ("tanh", lambda w: 1 - math.tanh(3 * w)),
    ],
)
@pytest.mark.parametrize(
    ("heard", "wer"), [("one two three four", 0), ("one two tree four", 0.25), ("a b c d e", 1.25)]
)
def test_forms_of_the_word_error_rate(form, naive, heard, wer):
    (outcome,) = AsrReward("asr", Repeats(heard), form)([answer("one two three four")])
    assert outcome.detail["wer"] == wer and outcome.value == pytest.approx(naive(wer), abs=1e-12)


def test_the_text_to_speak_is_the_reference_of_a_model_that_does_not_write():
    reward = AsrReward("asr", Repeats("say it"), reference="prompt")
    (outcome,) = reward([answer("", question="Say it!")])
    assert (outcome.value, outcome.detail["wer"]) == (1.0, 0.0)
    reward.check([answer("", question="say it").example])
    with pytest.raises(
        InputError, match=r"rows.jsonl:7: messages: expected words to say in the last turn, found '\?!'"
    ):
        reward.check([answer("", question="?!").example])


def test_defect_rlaif_7_numbers_in_figures_are_those_in_words():
    (outcome,) = AsrReward("asr", Repeats("one two three"), reference="prompt")([answer("", question="1, 2, 3")])
    assert outcome == Scored(1.0, {"heard": "one two three", "wer": 0.0})
    assert word_error_rate("one two three", "1, 2, 3") == word_error_rate("1,2,3", "One, two: three.") == 0


def test_answers_that_cannot_be_heard_are_invalid():
    silent = answer("cold", waveform=np.zeros(0, np.float32))
    outcomes = AsrReward("asr", Repeats("cold"))([answer("cold", broken="no end"), answer(" "), answer("?!"), silent])
    reasons = ["no end", "empty text", "no words in the text", "empty audio"]
    assert outcomes == [Invalid(reason) for reason in reasons]


def test_answers_of_several_rates_keep_their_order():
    sounds = ((0.01, 8_000), (0.02, 16_000), (0.03, 8_000))
    answers = [answer("a", waveform=tone(seconds, rate), rate=rate) for seconds, rate in sounds]
    assert hear(Says(), answers) == ["80 8000", "320 16000", "240 8000"]


def test_close_reaches_the_ear():
    ear = Says()
    AsrReward("asr", ear).close()
    assert ear.closed


words = st.lists(st.sampled_from(["one", "two", "cold"]), max_size=6).map(" ".join)


@given(words.filter(bool), words)
def test_word_error_rate_equals_its_naive_twin(written, heard):
    a, b = written.split(), heard.split()
    table = [[max(i, j) if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    assert word_error_rate(written, heard) == table[-1][-1] / len(a) == jiwer.wer(written, heard)


def test_no_words_have_no_error_rate():
    with pytest.raises(ValueError):
        word_error_rate("?", "one")


@pytest.fixture(scope="module", params=["ctc", "whisper"])
def folder(request, tmp_path_factory):
    return getattr(tiny_models, request.param)(tmp_path_factory.mktemp("ears") / request.param)


def test_a_transformers_ear_hears_alike_in_any_batch(folder):
    waveforms = [noise(s, seed=n) for n, s in enumerate((0.5, 1.1, 0.02, 0.8))] + [np.zeros(0, np.float32)]
    together = TransformersEar(folder, batch_size=4, device="cpu").transcribe(waveforms, 16_000)
    one = TransformersEar(folder, batch_size=1, device="cpu")
    assert together == [one.transcribe([w], 16_000)[0] for w in waveforms]
    assert together[0] and together[0] != together[1] and together[2] == together[4] == ""


def test_a_transformers_ear_resamples(folder):
    ear = TransformersEar(folder, device="cpu")
    seen = []
    ear._hear = lambda batch: seen.extend(batch) or ["x"] * len(batch)
    assert ear.transcribe([tone(1.0, 8_000), np.zeros(0, np.float32)], 8_000) == ["x", ""]
    assert [len(w) for w in seen] == [16_000]


def test_whisper_is_told_english_and_hears_long_audio_window_by_window(tmp_path):
    ear = TransformersEar(tiny_models.whisper(tmp_path / "whisper"), device="cpu")
    calls = []
    generate = ear.model.generate
    ear.model.generate = lambda **inputs: calls.append(inputs) or generate(**inputs)
    ear.transcribe([noise(65), noise(1)], 16_000)
    assert [(c["language"], c["task"]) for c in calls] == [("en", "transcribe")]
    assert len(calls[0]["input_features"]) == 4  # 30 + 30 + 5 seconds, and 1
    assert not torch.is_grad_enabled() or not ear.model.training


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing: not a model folder"):
        TransformersEar(tmp_path / "nothing")
