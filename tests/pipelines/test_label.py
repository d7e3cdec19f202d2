"""`elocute label` by rule and by measuring: what is decided, what is written, what is counted."""

import json
import math
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.pipelines.label.run import Labeller
from elocute.pipelines.label.sources import by_rule
from elocute.pipelines.label.summary import entropy, summary_lines
from elocute.prosody.schema import load_schema
from tests.pipelines.label_files import SCHEMA, labels, read, reader


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The train leaves at nine.", {"tone": "Declarative"}),
        ("Where is the station?", {"structure": "Question", "tone": "Interrogative"}),
        ("“Where is it?”", {"structure": "Question", "tone": "Interrogative"}),
        ("Please sit down.", {"structure": "Request", "tone": "Imperative"}),
        ("Don't go there.", {"tone": "Imperative"}),
        ("Would you sit down?", {"tone": "Interrogative"}),  # a request and a question: open
        ("How dare you!", {"structure": "Exclamation", "emotion": "Angry", "tone": "Exclamation"}),
        ("Good morning, everyone.", {"structure": "Greeting", "tone": "Declarative"}),
        ("I’m so sorry.", {"structure": "Apology", "tone": "Declarative"}),
        ("We were happy and sad.", {"tone": "Declarative"}),  # two emotions: open
        ("She was not happy.", {"tone": "Declarative"}),  # a negation: open
        ("She wasn’t\nhappy at all.", {"tone": "Declarative"}),
        ("She was glad to come.", {"emotion": "Happy", "tone": "Declarative"}),
        ("She was saddled with debts.", {"tone": "Declarative"}),  # whole words only
        ("I NEVER HAD ANY FAMILY", {}),  # no punctuation, as in LibriSpeech
    ],
)
def test_rules_decide_what_can_be_decided_and_nothing_else(text, found):
    decided = {name: by_rule(text, one) for name, one in SCHEMA.dimensions.items()}
    assert {name: label for name, label in decided.items() if label} == found


def test_a_users_rules_are_the_rules(tmp_path, texts):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        'prompt: "{labels} {text}"\ndimensions:\n  pace:\n    description: Pace.\n'
        "    labels: {Calm: '', Hurried: ''}\n    rules: {Hurried: 'quick', Calm: 'slow'}\n"
    )
    out = tmp_path / "out.jsonl"
    Labeller(texts("Be quick!", "A slow walk.", "Slow or quick?"), out, load_schema(mine), ["rule"]).run()
    assert labels(out) == [{"pace": "Hurried"}, {"pace": "Calm"}]


def test_rows_without_any_label_are_counted_and_not_written(tmp_path, texts):
    out = tmp_path / "out.jsonl"
    summary = Labeller(texts("No end", "An end.", "no end either"), out, SCHEMA, ["rule"]).run()
    assert summary["rows"] == {"read": 3, "written": 1} and summary["left_out"] == {"no label could be decided": 2}
    assert labels(out) == [{"tone": "Declarative"}]
    with pytest.raises(InputError, match=r"texts.jsonl: no row of 1 got a label: no label could be decided: 1$"):
        Labeller(texts("No end"), tmp_path / "none.jsonl", SCHEMA, ["rule"]).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out.jsonl", "out.summary.json"]


# Rows in, rows out


def test_rows_keep_what_they_have_and_are_data_rows_again(tmp_path, texts):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 9).astype(np.float32) / 2, 16_000)
    messages = [{"role": "user", "content": "Where is it?"}]
    given = texts(
        {"text": "It is here.", "audio": "../a.wav", "mine": [1], "id": "one"},
        {"messages": messages, "labels": {"speed": "Slow", "tone": "Rhetorical Question"}},
    )
    out = tmp_path / "out.jsonl"
    summary = Labeller(given, out, SCHEMA, ["rule"]).run()
    first, second = read_rows(out)
    assert first.id == "one" and first.columns == {"mine": [1], "labels": {"tone": "Declarative"}}
    assert first.messages[0].content == "It is here." and first.target_audio.path == tmp_path / "a.wav"
    assert second.columns["labels"] == {"structure": "Question", "speed": "Slow", "tone": "Rhetorical Question"}
    assert list(second.columns["labels"]) == ["structure", "speed", "tone"]  # the schema's order
    assert summary["dimensions"]["tone"]["by"] == {"rule": 1, "given": 1}


def test_a_label_of_null_is_open(tmp_path, texts):
    given = texts({"text": "It is here.", "labels": {"speed": "Slow", "tone": None, "emotion": "", "structure": None}})
    Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["rule"]).run()
    assert labels(tmp_path / "out.jsonl") == [{"speed": "Slow", "tone": "Declarative"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": ""}, "1: text: expected the words to speak, got ''"),
        ({"text": 3}, "1: text: expected the words to speak, got 3"),
        ({"txt": "a"}, "1: messages: expected a user's turn before the answer, got none"),
        ({"text": "a", "audio": "b.wav"}, "1: sft_target_audio: audio file not found: "),
        ({"text": "a", "labels": ["x"]}, "1: labels: expected an object of dimensions and their labels, got ['x']"),
        ({"text": "a", "labels": {"tone": "Loud"}}, "1: labels.tone: no such label: 'Loud'; nearest: "),
        ({"text": "a", "labels": {"tune": "Command"}}, "1: labels.tune: no such dimension; nearest: tone, "),
    ],
)
def test_bad_rows_are_named_before_anything_is_done(tmp_path, texts, row, said):
    given = texts(row, "fine.")
    with pytest.raises(InputError, match="^" + re.escape(f"{given}:{said}")):
        Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["rule"]).run()
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_unknown_labels_can_be_dropped_and_are_counted(tmp_path, texts):
    given = texts(
        {"text": "a.", "labels": {"tone": "Loud", "speed": "Fast"}}, {"text": "b.", "labels": {"tone": "Loud"}}
    )
    summary = Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["rule"], drop_unknown=True).run()
    assert summary["unknown"] == {"tone: Loud": 2}
    assert labels(tmp_path / "out.jsonl") == [{"speed": "Fast", "tone": "Declarative"}, {"tone": "Declarative"}]
    assert "dropped, not in the schema: tone: Loud: 2" in summary_lines(summary)


# By measuring


def test_speed_is_measured_in_the_recording(tmp_path, recorded):
    out = tmp_path / "out.jsonl"
    summary = Labeller(recorded, out, SCHEMA, ["audio"]).run()
    assert labels(out) == [{"speed": "Fast"}, {"speed": "Medium"}, {"speed": "Slow"}]
    rates = [row["measured"]["syllables_per_second"] for row in read(out)]
    assert rates == pytest.approx([6 / 0.8, 6 / 1.3, 6 / 3], rel=0.05)
    assert summary["dimensions"]["speed"]["by"] == {"audio": 3}
    assert summary["dimensions"]["speed"]["bounds"] == [3.3, 5.9] and summary["dimensions"]["emotion"]["open"] == 3


def test_pitch_and_energy_are_dimensions_that_a_user_adds(tmp_path, recorded):
    """Without bounds each label gets an equal share, and the summary says the bounds, for the schema."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        'prompt: "{labels} {text}"\ndimensions:\n'
        "  pitch: {description: P, ordered: true, labels: {Low: '', Mid: '', High: ''}, measure: pitch_median}\n"
        "  energy: {description: E, ordered: true, labels: {Soft: '', Loud: ''}, measure: energy, bounds: [-25]}\n"
    )
    out = tmp_path / "out.jsonl"
    summary = Labeller(recorded, out, load_schema(mine), ["audio"]).run()
    assert labels(out) == [
        {"pitch": "Low", "energy": "Loud"},
        {"pitch": "Mid", "energy": "Loud"},
        {"pitch": "High", "energy": "Soft"},
    ]
    pitches = [row["measured"]["pitch_median"] for row in read(out)]
    assert pitches == pytest.approx([110, 160, 230], rel=0.03)
    low, high = summary["dimensions"]["pitch"]["bounds"]
    assert pitches[0] < low < pitches[1] < high < pitches[2]
    assert any(line.startswith("pitch: ") and f"bounds {low:.3g}, {high:.3g} pitch_median" in line
               for line in summary_lines(summary))  # fmt: skip


def test_what_cannot_be_measured_is_left_open_or_an_error(tmp_path, texts, recorded):
    soundfile.write(tmp_path / "given/0.wav", np.zeros(8000, np.float32), 16_000)
    summary = Labeller(recorded, tmp_path / "out.jsonl", SCHEMA, ["audio"]).run()
    assert summary["left_out"] == {"no label could be decided": 1} and summary["rows"]["written"] == 2
    (tmp_path / "given/0.wav").write_bytes(b"RIFF")
    (tmp_path / "given/2.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError) as caught:
        Labeller(recorded, tmp_path / "again.jsonl", SCHEMA, ["audio"]).run()
    assert [line.split(": ")[0][-1] for line in str(caught.value).splitlines()] == ["1", "3"]
    with pytest.raises(InputError, match="1: sft_target_audio: expected a recording to measure"):
        Labeller(texts("a.", name="given/b.jsonl"), tmp_path / "b.jsonl", SCHEMA, ["rule", "audio"]).run()


# Work of others


def test_other_work_is_not_gone_on_with(tmp_path, texts):
    given, out = texts("a.", "b."), tmp_path / "out.jsonl"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Labeller(given, out, SCHEMA, ["rule"]).run(progress=stop)
    with pytest.raises(
        InputError, match="out.jsonl.journal.origin.json: schema: the work was started with '[0-9a-f]{64}'"
    ):
        Labeller(given, out, load_schema("rlaif_spa"), ["rule"]).run(resume=True)
    with pytest.raises(
        InputError, match=r"journal.origin.json: reader: the work was started with None, .*'model': 'm'"
    ):
        Labeller(given, out, SCHEMA, ["rule", "llm"], reader=reader("http://nowhere.invalid/v1")).run(resume=True)
    texts("a.", "b.", "c.")
    with pytest.raises(InputError, match="journal.origin.json: input: "):
        Labeller(given, out, SCHEMA, ["rule"]).run(resume=True)


def test_a_source_named_twice_is_the_same_work(tmp_path, texts):
    given, out = texts("a.", "b."), tmp_path / "out.jsonl"
    first = Labeller(given, out, SCHEMA, ["rule", "rule"]).run()
    assert Labeller(given, out, SCHEMA, ["rule"]).run(resume=True) == first


@pytest.mark.parametrize("name", ["out.jsonl", "out.summary.json"])
def test_what_is_there_is_not_written_over(tmp_path, texts, name):
    (tmp_path / name).write_text("{}")
    for resume in (False, True):
        with pytest.raises(InputError, match=f"{name}: there already; choose another --output"):
            Labeller(texts("a."), tmp_path / "out.jsonl", SCHEMA, ["rule"]).run(resume=resume)
    assert (tmp_path / name).read_text() == "{}"
    with pytest.raises(InputError, match="expected another file than --input"):
        Labeller(texts("a."), tmp_path / "given/../given/texts.jsonl", SCHEMA, ["rule"])


# The summary


def test_the_summary_counts_labels_and_warns_of_what_is_constant(tmp_path, texts):
    given = texts("A.", "B.", "C.", "D?")
    summary = Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["rule"]).run()
    assert summary == json.loads((tmp_path / "out.summary.json").read_text())
    tone = summary["dimensions"]["tone"]
    assert tone["labels"] == dict.fromkeys(SCHEMA.dimensions["tone"].labels, 0) | {"Declarative": 3, "Interrogative": 1}
    assert tone["entropy"] == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert tone["highest"] == math.log2(6) and summary["warnings"] == []
    assert "tone: Declarative 3, Interrogative 1 (0.81 of 2.58 bits; 4 never)" in summary_lines(summary)
    summary = Labeller(texts("A.", "B."), tmp_path / "same.jsonl", SCHEMA, ["rule"]).run()
    [warning] = summary["warnings"]
    assert warning.startswith("tone is Declarative wherever it has a label") and f"warning: {warning}" in summary_lines(
        summary
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_entropy_is_that_of_drawing_a_row(counts):
    rows = [label for label, n in enumerate(counts) for _ in range(n)]
    naive = -sum(math.log2(rows.count(label) / len(rows)) for label in rows) / len(rows) if rows else 0.0
    assert entropy(dict(enumerate(counts))) == pytest.approx(naive, abs=1e-9)
