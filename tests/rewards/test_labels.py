import numpy as np
import pytest
from answers import answer
from hypothesis import given
from hypothesis import strategies as st

from elocute.errors import InputError
from elocute.prosody.schema import load_schema
from elocute.rewards.labels import certain, credit, labels_of, read_labels
from elocute.rewards.outcome import Unavailable

SCHEMA = load_schema("rlaif_spa")
SPEED, TONE = SCHEMA.dimensions["speed"], SCHEMA.dimensions["tone"]


def test_a_near_speed_is_worth_something_and_a_near_tone_nothing():
    speeds = list(SPEED.labels)
    worth = [credit(SPEED, speeds[0], certain(SPEED, label), "ordinal") for label in speeds]
    assert worth == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert [credit(SPEED, speeds[0], certain(SPEED, label), "match") for label in speeds] == [1, 0, 0, 0, 0]
    tones = list(TONE.labels)
    assert [credit(TONE, tones[0], certain(TONE, label), "ordinal") for label in tones] == [1, 0, 0, 0, 0, 0]


def test_a_doubtful_judge_gives_a_share():
    p = np.array([0.5, 0.3, 0.2, 0, 0])
    assert credit(SPEED, list(SPEED.labels)[0], p, "probability") == pytest.approx(0.5 + 0.3 * 0.75 + 0.2 * 0.5)
    assert credit(TONE, list(TONE.labels)[1], np.array([0.6, 0.4, 0, 0, 0, 0]), "probability") == pytest.approx(0.4)
    assert credit(TONE, list(TONE.labels)[1], np.array([0.6, 0.4, 0, 0, 0, 0]), "match") == 0


@given(st.lists(st.floats(1e-3, 1), min_size=5, max_size=5), st.sampled_from(list(SPEED.labels)))
def test_credit_lies_between_none_and_all(weights, wanted):
    p = np.array(weights) / sum(weights)
    match, ordinal, probable = (credit(SPEED, wanted, p, kind) for kind in ("match", "ordinal", "probability"))
    assert 0 <= match <= ordinal <= 1 and 0 <= probable <= 1


def test_rows_must_have_labels_that_there_are():
    example = answer("", labels={"speed": "Slow", "tone": "Command"}).example
    assert labels_of(example, SCHEMA, ["speed"]) == {"speed": "Slow"}
    tabled = answer("", labels={"speed": "Slow", "tone": None, "emotion": ""}).example  # as tables are turned into rows
    assert labels_of(tabled, SCHEMA, ["speed", "tone"]) == {"speed": "Slow"}
    for labels, message in (
        ({"speed": None}, "rows.jsonl:7: labels: expected one for speed, found none"),
        ({"speed": "Slowly"}, "rows.jsonl:7: labels.speed: no such label: 'Slowly'; nearest: Slow"),
        ({"tone": "Command"}, "rows.jsonl:7: labels: expected one for speed, found none"),
        (None, "rows.jsonl:7: labels: expected one for speed, found none"),
        (["Slow"], "rows.jsonl:7: labels: expected an object"),
    ):
        with pytest.raises(InputError, match=message):
            labels_of(answer("", labels=labels).example, SCHEMA, ["speed"])


def test_a_reply_is_an_object_of_labels_or_no_judgement():
    schema = SCHEMA.only(["speed", "tone"])
    assert read_labels('{"tone": "Command", "speed": "Slow"}', schema) == {"speed": "Slow", "tone": "Command"}
    for reply in ("Slow", "[]", '{"speed": "Slow"}', '{"speed": "Slow", "tone": "Loud"}', '{"speed": 1, "tone": "x"}'):
        assert isinstance(read_labels(reply, schema), Unavailable)
