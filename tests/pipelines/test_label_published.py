"""RLAIF-SPA's JSON, in the two forms in which it is published, and what is wrong with it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.rows import read_rows
from elocute.errors import InputError
from elocute.pipelines.label.published import published_rows
from elocute.pipelines.label.run import Labeller
from elocute.prosody.schema import load_schema

SCHEMA = load_schema("rlaif_spa")
LABELS = (
    "1. Structure: Problem Statement \n2. Emotion: Desperate \n3. Speech Speed: Extremely Fast \n4. Tone: Exclamation"
)
READ = {
    "structure": "Problem Statement",
    "emotion": "Desperate",
    "speed": "Extremely Fast",
    "tone": "Exclamation",
}


def record(**changes):
    return {"id": "a", "text_number": 1, "text": "I NEVER HAD ANY FAMILY", "labels": LABELS} | changes


def of_sentence(number: int, sentence: str, labels=LABELS):
    return {"id": "a", "sentence_labels": {"sentence_number": number, "sentence": sentence, "labels": labels}}


@pytest.fixture
def read(tmp_path):
    def run(content, schema=SCHEMA):
        path = tmp_path / "published.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))
        return list(published_rows(path, schema))

    return run


def test_defect_rlaif_8_the_published_texts_become_rows(read):
    [(where, row)] = read([record()])
    assert where.endswith("published.json: [0]")
    assert row == {
        "id": "a",
        "messages": [{"role": "user", "content": "I NEVER HAD ANY FAMILY"}],
        "labels": READ,
        "text_number": 1,
    }


def test_the_objects_that_its_labeller_writes_one_after_the_other(read):
    objects = [of_sentence(1, "Some text"), of_sentence(2, "Another")]
    rows = [row for _, row in read("\n".join(json.dumps(one, indent=4) for one in objects) + "\n")]
    assert [row["id"] for row in rows] == ["a-1", "a-2"]
    assert [row["messages"][0]["content"] for row in rows] == ["Some text", "Another"]
    assert all(row["labels"] == READ for row in rows)


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("3. Speech Speed: Medium slow", {"speed": "Medium Slow"}),
        ("Speed:   extremely   FAST", {"speed": "Extremely Fast"}),
        ("1. Structure: Greeting/Introduction\n\n4. Tone: command", {"structure": "Greeting", "tone": "Command"}),
        ("2. Emotion Label: Angry", {"emotion": "Angry"}),
        ({"structure": "data_analysis", "speech_speed": "slow"}, {"structure": "Data Analysis", "speed": "Slow"}),
        ("", {}),
        (None, {}),
        ("2. Emotion: Humble", {"emotion": "Humble"}),
        ("5. Volume: Loud", {"volume": "Loud"}),
    ],
)  # fmt: skip
def test_what_is_tolerated(read, written, labels):
    assert read([record(labels=written)])[0][1]["labels"] == labels


@given(st.data())
def test_any_labels_come_back_from_any_spelling(data):
    from elocute.pipelines.label.published import _labels

    labels = {name: data.draw(st.sampled_from(list(one.labels))) for name, one in SCHEMA.dimensions.items()}
    spell = st.sampled_from([str.upper, str.lower, str.title, lambda s: s, lambda s: s.replace(" ", "_")])
    names = {name: "Speech Speed" if name == "speed" else name for name in labels}
    lines = [f"{i}. {data.draw(spell)(names[n])}: {data.draw(spell)(v)}  " for i, (n, v) in enumerate(labels.items())]
    assert _labels("\n".join(lines), SCHEMA) == labels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "published.json: expected at least one record, the file holds none"),
        ("", "published.json: expected at least one record, the file holds none"),
        ('[{"id": 1},\n{"id"]', "published.json:2: expected JSON: Expecting ':' delimiter"),
        ('{"id": 1}\n{"id": ', "published.json:2: expected JSON: Expecting value"),
        ([3], "[0]: expected an object with id, text and labels"),
        ([record(), record()], "[1]: id: 'a-1' is already the id of [0]"),
        ([record(text_number=None)] * 2, "id: 'a' comes several times, without the numbers of its sentences"),
        ([record(id=None)], "[0]: id: expected text or an integer, got None"),
        ([record(text=" ")], "[0]: text: expected the words to speak, got ' '"),
        ([record(labels=["Happy"])], "[0]: labels: expected lines such as '2. Emotion: Neutral', got ['Happy']"),
        ([record(labels="Sorry!")], "[0]: labels: expected lines such as '2. Emotion: Neutral', got 'Sorry!'"),
        ([record(labels="2. Emotion: Angry\n3. emotion: Angry")], "[0]: labels: emotion comes twice"),
        ([record(labels="2. Emotion:")], "[0]: labels.emotion: expected a label, got ''"),
    ],
)  # fmt: skip
def test_what_is_not(read, content, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read(content)


def test_labels_outside_the_vocabulary_are_errors_or_counted(tmp_path, read):
    """As they are in the published file: Humble, Urgent, Command as a structure …"""
    read([record(id=1), record(id=2, labels="1. Structure: Command\n2. Emotion: Urgent\n4. Tone: Imperative")])
    source, out = tmp_path / "published.json", tmp_path / "rows.jsonl"
    with pytest.raises(InputError) as caught:
        Labeller(source, out, SCHEMA, ["rlaif-spa"]).run()
    assert re.fullmatch(
        r".*\[1\]: labels.structure: no such label: 'Command'; nearest: .*; labels.emotion: no such label: 'Urgent'.*",
        str(caught.value),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["published.json"]
    summary = Labeller(source, out, SCHEMA, ["rlaif-spa"], drop_unknown=True).run()
    assert summary["unknown"] == {"structure: Command": 1, "emotion: Urgent": 1}
    assert summary["rows"] == {"read": 2, "written": 2}
    rows = read_rows(out)
    assert [row.columns["labels"] for row in rows] == [READ, {"tone": "Imperative"}]
    assert rows[0].messages[0].content == "I NEVER HAD ANY FAMILY" and rows[0].columns["text_number"] == 1


def test_the_papers_vocabulary_is_another_one(tmp_path, read):
    read([record()])
    with pytest.raises(InputError, match="'Desperate'; nearest: .*'Extremely Fast'; nearest: "):
        Labeller(tmp_path / "published.json", tmp_path / "rows.jsonl", load_schema(), ["rlaif-spa"]).run()
