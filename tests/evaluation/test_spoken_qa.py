"""Judging answers: what is right as written, as heard, how many words differ, what counts where."""

import json

import numpy as np
import pytest
import soundfile

from elocute.data.audio import load_audio
from elocute.data.cache import EncodedAudio
from elocute.data.types import AudioRef, Example, Message, Utterance
from elocute.errors import InputError
from elocute.evaluation.listening import write_answers
from elocute.evaluation.spoken_qa import by_column, judge_all, summarise, word_errors
from elocute.evaluation.statistics import bootstrap_ratio, wilson

RATE = 16_000


def example(answer, **columns) -> Example:
    columns = columns if answer is None else {"answer": answer} | columns
    return Example("q", (Message("user", "what?"),), columns=columns, file="rows.jsonl", line=7)


def utterance(text: str, broken: str | None = None) -> Utterance:
    return Utterance(text, np.zeros(0 if broken else 160, np.float32), RATE, broken)


def judge(*cases):
    """cases: (accepted answers, text, heard, broken). The ear gets proper answers only, in order."""
    heard = [case[2] for case in cases if not case[3]]

    def transcribe(waveforms, rate):
        assert rate == RATE and [len(waveform) for waveform in waveforms] == [160] * len(heard)
        return heard

    return judge_all([example(c[0]) for c in cases], [utterance(c[1], c[3]) for c in cases], transcribe)


@pytest.mark.parametrize(
    ("answer", "text", "heard", "broken", "correct_text", "correct_speech", "errors", "words"),
    [
        ("twenty one", "Twenty-one.", "twenty one", None, True, True, 0, 2),
        ("21", "twenty one", "twenty one", None, True, True, 0, 2),
        (21, "21", "twenty one", None, True, True, 0, 2),
        (["no", "21"], "No!", "twenty one", None, True, True, 2, 1),  # both accepted, yet not what was written
        ("four", "four", "five", None, True, False, 1, 1),
        ("four", "five", "four", None, False, True, 1, 1),
        ("four", "it is four", "it is four", None, False, False, 0, 3),
        ("four", "four", "", None, True, False, 1, 1),  # nothing heard: all words deleted
        ("four", "four", "four four four", None, True, False, 2, 1),
        ("four", "", "four", None, False, True, 0, 0),  # speech without text has no WER
        ("four", "?!", "", None, False, False, 0, 0),
        ("four", "four", None, "no end", True, False, 0, 0),  # broken: written, not said
        ("four", "", None, "empty audio", False, False, 0, 0),
    ],
)
def test_one_answer(answer, text, heard, broken, correct_text, correct_speech, errors, words):
    [row] = judge((answer, text, heard, broken))
    found = (row.correct_text, row.correct_speech, row.errors, row.words)
    assert found == (correct_text, correct_speech, errors, words)
    assert row.heard == (heard or "") and row.utterance.text == text


def test_what_was_heard_stays_with_its_answer():
    rows = judge(
        ("one", "one", None, "no end"),
        ("two", "two", "two", None),
        ("three", "three", None, "no end"),
        ("four", "four", "five", None),
    )
    assert [row.heard for row in rows] == ["", "two", "", "five"]
    assert [row.correct_speech for row in rows] == [False, True, False, False]


@pytest.mark.parametrize("answer", [None, "", "  ", "?!", [], ["four", ""], ["four", "…"], [None], {"is": "four"}])
def test_a_row_without_a_right_answer_is_named(answer):
    with pytest.raises(InputError, match=r"^rows.jsonl:7: answer: expected") as caught:
        judge((answer, "", "", None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b", "a x b y", 2), ("a b", "", 2)],
)
def test_word_errors_are_substitutions_deletions_and_insertions(reference, heard, errors):
    assert word_errors(reference, heard) == errors


MIXED = [
    ("four", "four", "four", None),
    ("thirty seven", "thirty seven", "thirty eleven two", None),
    ("four", "five", "five", None),
    ("four", "four", None, "no end"),
    ("four", "", "four", None),
]


def test_the_four_metrics_are_counted_with_their_intervals():
    found = summarise(judge(*MIXED))
    assert set(found) == {"answer_accuracy_text", "answer_accuracy_speech", "speech_wer", "broken_audio"}
    for name, hits in [("answer_accuracy_text", 3), ("answer_accuracy_speech", 2), ("broken_audio", 1)]:
        assert (found[name].value, found[name].n, found[name].ci95) == (hits / 5, 5, wilson(hits, 5)), name
    value, *interval = bootstrap_ratio([0, 2, 0], [1, 2, 1], 0)
    assert value == 2 / 4  # of all words, not the mean of the answers' rates
    assert (found["speech_wer"].value, found["speech_wer"].n) == (value, 3)
    assert found["speech_wer"].ci95 == tuple(interval)


def test_without_a_proper_answer_there_is_no_wer():
    found = summarise(judge(("four", "four", None, "no end"), ("four", "", "four", None)))
    assert found["speech_wer"].to_json() == {"value": None, "n": 0, "ci95": None}
    assert found["broken_audio"].value == 0.5


def test_metrics_by_a_column():
    rows = judge(*MIXED)
    named = ["easy", "hard", "easy", 3, None]
    for row, value in zip(rows, named, strict=True):
        row.example.columns["difficulty"] = value
    parts = by_column(rows, "difficulty")
    assert list(parts) == ["3", "None", "easy", "hard"]
    assert parts["easy"] == summarise([rows[0], rows[2]])
    assert parts["3"]["broken_audio"].value == 1
    assert sum(part["answer_accuracy_text"].n for part in parts.values()) == len(rows)


def test_each_row_is_looked_at_once_however_many_values_there_are():
    class Columns(dict):
        looks = 0

        def get(self, *key):
            Columns.looks += 1
            return super().get(*key)

    rows = judge(*MIXED * 4)
    for place, row in enumerate(rows):
        object.__setattr__(row.example, "columns", Columns(difficulty=place))
    assert len(by_column(rows, "difficulty")) == len(rows)
    assert Columns.looks == len(rows)


def test_answers_as_files(tiny_lm, tmp_path):
    wav = "starter/audio/heldout-comparison-0000.question.wav"
    spoken, stored, silent = example("four", note=1), example(["four", "4"]), example("four")
    object.__setattr__(spoken, "audios", (AudioRef(tmp_path / "none.wav"), AudioRef(wav)))  # the last is the question
    store = AudioRef("starter/data/questions.safetensors", "heldout-comparison-0000")
    object.__setattr__(stored, "audios", (store,))
    utterances = [utterance("four"), utterance("five"), utterance("four", "no end"), utterance("four")]
    rows = judge_all([spoken, stored, silent, spoken], utterances, lambda w, rate: ["four", "five", "two"])
    audio = EncodedAudio(tiny_lm.codec, tmp_path / "cache")
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions/0.wav").write_text("of an earlier file of rows")
    write_answers(tmp_path, "after", rows, audio, sounds=3)
    lines = [json.loads(line) for line in (tmp_path / "after.jsonl").read_text().splitlines()]
    assert [line["question_audio"] for line in lines] == ["questions/0.wav", "questions/1.wav", None, None]
    assert [line["audio"] for line in lines] == ["after/0.wav", "after/1.wav", None, None]
    assert lines[1] == {
        "id": "q", "question_text": None, "reference": ["four", "4"], "question_audio": "questions/1.wav",
        "text": "five", "audio": "after/1.wav", "heard": "five", "correct_text": False, "correct_speech": False,
        "broken": None,
    }  # fmt: skip
    assert (lines[2]["broken"], lines[2]["heard"], lines[2]["correct_text"]) == ("no end", "", True)
    assert sorted(path.name for path in (tmp_path / "after").iterdir()) == ["0.wav", "1.wav"]
    assert soundfile.info(tmp_path / "after/0.wav").samplerate == RATE
    heard, rate = load_audio(tmp_path / "questions/0.wav")
    was, was_rate = load_audio(wav)
    assert rate == was_rate and np.abs(heard - was).max() < 1e-4
    assert soundfile.info(tmp_path / "questions/1.wav").samplerate == tiny_lm.codec.sample_rate
