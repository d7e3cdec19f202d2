"""`elocute label`: who decides, what is written, what is counted, and work that is stopped and goes on."""

import json
import math
import re
import threading
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from elocute.data.rows import read_rows
from elocute.errors import InputError, RunError
from elocute.pipelines.label.run import Labeller
from elocute.pipelines.label.sources import Reader, by_rule, read_reply
from elocute.pipelines.label.summary import entropy, summary_lines
from elocute.prosody.schema import load_schema
from elocute.rewards import chat
from elocute.rewards.chat import ChatEndpoint, Credentials
from elocute.rewards.outcome import Unavailable
from tests.rewards.chat_server import serving

SCHEMA = load_schema()
ALL = {"structure": "Statement", "emotion": "Happy", "speed": "Fast", "tone": "Declarative"}


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def texts(tmp_path):
    """Writes rows: a text alone, or a whole row."""

    def write(*rows, name="given/texts.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": row} if isinstance(row, str) else row) + "\n" for row in rows))
        return path

    return write


def reader(server, *, concurrency=2, **options) -> Reader:
    url = server if isinstance(server, str) else server.url
    endpoint = ChatEndpoint(Credentials(url, "m", "key"), concurrency=concurrency, timeout=20, attempts=1, deadline=60)
    return Reader(endpoint, **options)


def asked(body: dict) -> tuple[str, list[str]]:
    """What a request is about: the text, and the dimensions it asks for."""
    form = body["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"]) and schema["additionalProperties"] is False
    return body["messages"][1]["content"], schema["required"]


def labelling(behave=lambda text: ALL):
    """A server that labels: `behave(text)` gives labels, any other JSON, text that is none, or a code to fail with."""

    def serve(server, handler, body, n):
        text, names = asked(body)
        found = behave(text)
        if isinstance(found, int):
            server.fail(handler, found)
        elif isinstance(found, dict) and found.keys() == ALL.keys():
            server.say(handler, json.dumps({name: found[name] for name in names}))
        else:
            server.say(handler, found if isinstance(found, str) else json.dumps(found))

    return serving(serve)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels(path) -> list[dict]:
    return [row["labels"] for row in read(path)]


# By rule


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
        {"messages": messages, "sft_target_audio": "../a.wav", "labels": {"speed": "Slow", "tone": "Rhetorical Question"}},
    )  # fmt: skip
    out = tmp_path / "out.jsonl"
    summary = Labeller(given, out, SCHEMA, ["rule"]).run()
    first, second = read_rows(out)
    assert first.id == "one" and first.columns == {"mine": [1], "labels": {"tone": "Declarative"}}
    assert first.messages[0].content == "It is here." and first.target_audio.path == tmp_path / "a.wav"
    assert second.columns["labels"] == {"structure": "Question", "speed": "Slow", "tone": "Rhetorical Question"}
    assert list(second.columns["labels"]) == ["structure", "speed", "tone"]  # the schema's order
    assert summary["dimensions"]["tone"]["by"] == {"rule": 1, "given": 1}


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


def voice(pitch: float, seconds: float, gain: float = 0.3) -> np.ndarray:
    """A buzz with harmonics at `pitch` Hz, with a syllable's swell four times a second."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    buzz = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 12))
    return (gain * buzz / np.abs(buzz).max() * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


@pytest.fixture
def recorded(tmp_path, texts):
    """Six words, six syllables, in 0.8, 1.3 and 3 s (7.5, 4.6 and 2 syllables a second), ever higher and softer."""
    (tmp_path / "given").mkdir()
    rows = []
    for number, (seconds, pitch, gain) in enumerate([(0.8, 110, 0.5), (1.3, 160, 0.2), (3, 230, 0.05)]):
        soundfile.write(tmp_path / f"given/{number}.wav", voice(pitch, seconds, gain), 16_000)
        rows.append({"id": number, "text": "one two three four five six", "audio": f"{number}.wav"})
    return texts(*rows)


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


# By a language model


def test_a_model_labels_what_is_open_and_is_told_the_schema(tmp_path, texts):
    given = texts("It is here.", {"text": "Well", "labels": {"emotion": "Sad", "speed": "Slow"}})
    with labelling() as server:
        summary = Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["rule", "llm"], reader=reader(server)).run()
    assert labels(tmp_path / "out.jsonl") == [ALL, ALL | {"emotion": "Sad", "speed": "Slow"}]
    bodies = {text: (names, body) for body in server.bodies for text, names in [asked(body)]}
    assert bodies["It is here."][0] == ["structure", "emotion", "speed"] and bodies["Well"][0] == ["structure", "tone"]
    system = bodies["Well"][1]["messages"][0]["content"]
    assert "- Farewell: takes leave" in system and "emotion:" not in system
    assert bodies["Well"][1]["temperature"] == 0.0 and bodies["Well"][1]["model"] == "m"
    assert summary["dimensions"]["tone"]["by"] == {"rule": 1, "llm": 1}
    assert summary["dimensions"]["speed"]["by"] == {"llm": 1, "given": 1}


def test_what_is_measured_is_not_asked_for(tmp_path, recorded):
    with labelling() as server:
        Labeller(recorded, tmp_path / "out.jsonl", SCHEMA, ["audio", "llm"], reader=reader(server)).run()
    assert {tuple(asked(body)[1]) for body in server.bodies} == {("structure", "emotion", "tone")}
    assert [row["speed"] for row in labels(tmp_path / "out.jsonl")] == ["Fast", "Medium", "Slow"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Happy, I think", "the reply is not JSON"),
        ("[" * 10_000, "the reply is not JSON"),
        (["Happy"], "the reply is not an object of structure, emotion, speed, tone"),
        ({"emotion": "Happy"}, "the reply is not an object of"),
        (ALL | {"more": "x"}, "the reply is not an object of"),
        (ALL | {"emotion": "Joyful"}, "the reply has a label that the schema does not have"),
        (ALL | {"emotion": "happy"}, "the reply has a label"),
        (ALL | {"emotion": None}, "the reply has a label"),
        (ALL | {"emotion": ["Happy"]}, "the reply has a label"),
    ],
)
def test_a_reply_that_is_not_of_the_schema_is_unavailable(reply, reason):
    found = read_reply(reply if isinstance(reply, str) else json.dumps(reply), SCHEMA)
    assert isinstance(found, Unavailable) and found.reason.startswith(reason)


def test_failures_are_counted_left_out_and_asked_again(tmp_path, texts):
    given = texts(*(f"text {i}." for i in range(8)))
    out, healthy = tmp_path / "out.jsonl", False

    def behave(text):
        if healthy or text not in ("text 2.", "text 5.", "text 6."):
            return ALL
        return 500 if text == "text 2." else "nonsense"

    with labelling(behave) as server:
        job = Labeller(given, out, SCHEMA, ["llm"], reader=reader(server))
        summary = job.run()
        assert summary["rows"] == {"read": 8, "written": 5}
        assert summary["left_out"] == {"llm: the reply is not JSON": 2, "llm: HTTP 500 (no)": 1}
        assert [row["messages"][0]["content"] for row in read(out)] == [f"text {i}." for i in (0, 1, 3, 4, 7)]
        assert "left out: 1 rows: llm: HTTP 500 (no)" in summary_lines(summary)
        healthy, before = True, len(server.bodies)
        again = job.run(resume=True)
        assert sorted(asked(body)[0] for body in server.bodies[before:]) == ["text 2.", "text 5.", "text 6."]
        assert again["rows"] == {"read": 8, "written": 8} and again["left_out"] == {} and len(read(out)) == 8
        before, content = len(server.bodies), out.read_bytes()
        assert job.run(resume=True) == again and len(server.bodies) == before and out.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out.jsonl", "out.summary.json"]


def test_too_many_failures_stop_the_run_and_what_is_done_is_kept(tmp_path, texts):
    given = texts(*(f"text {i}." for i in range(24)))
    with labelling() as server:
        Labeller(given, tmp_path / "whole.jsonl", SCHEMA, ["llm"], reader=reader(server)).run()
    lock, seen = threading.Lock(), Counter()

    def dies(text):
        with lock:
            seen[text] += 1
            return ALL if len(seen) <= 12 else 503

    out = tmp_path / "out.jsonl"
    with labelling(dies) as server:
        job = Labeller(given, out, SCHEMA, ["llm"], reader=reader(server), max_unavailable=0.25)
        with pytest.raises(RunError) as caught:
            job.run()
    assert re.fullmatch(
        r"llm: 4 of 8 replies are unavailable \(more than 25%\), most often: HTTP 503 \(no\); what is done is in "
        r".*out.jsonl.journal, --resume goes on",
        str(caught.value),
    )
    assert not out.exists() and not (tmp_path / "out.summary.json").exists()
    with labelling() as server:
        Labeller(given, out, SCHEMA, ["llm"], reader=reader(server)).run(resume=True)
        assert len(server.bodies) == 12
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_replies_are_cached_and_the_same_text_is_asked_once(tmp_path, texts):
    given = texts("Yes", "No", "Yes")
    with labelling(lambda text: ALL if text == "Yes" else "nonsense") as server:
        for name in "ab":
            chosen = reader(server, cache=tmp_path / "replies")
            Labeller(given, tmp_path / f"{name}.jsonl", SCHEMA, ["llm"], reader=chosen).run()
    assert [asked(body)[0] for body in server.bodies].count("Yes") == 1
    assert [asked(body)[0] for body in server.bodies].count("No") == 2  # what was no proper reply is not kept
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    entry = next((tmp_path / "replies").rglob("*.json"))
    entry.write_text(json.dumps({"reply": json.dumps(ALL | {"emotion": "Gone"})}))  # of a schema that was changed
    with labelling() as server:
        chosen = reader(server, cache=tmp_path / "replies")
        Labeller(texts("Yes"), tmp_path / "c.jsonl", SCHEMA, ["llm"], reader=chosen).run()
    assert len(server.bodies) == 1


def test_requests_are_in_flight_together(tmp_path, texts):
    meeting = threading.Barrier(6)

    def behave(text):
        meeting.wait(timeout=20)  # nobody gets an answer before six have asked
        return ALL

    given = texts(*(f"text {i}." for i in range(12)))
    with labelling(behave) as server:
        Labeller(given, tmp_path / "out.jsonl", SCHEMA, ["llm"], reader=reader(server, concurrency=6)).run()
    assert server.most == 6


def test_the_temperature_can_be_left_to_the_endpoint():
    request = reader("http://nowhere.invalid/v1", temperature=None).request("a", SCHEMA)
    assert "temperature" not in request


# Stopped and gone on


def test_stopped_work_goes_on_to_the_same_bytes(tmp_path, texts):
    given = texts(*(f"text {i}." for i in range(30)))
    with labelling(lambda text: ALL | {"emotion": "Sad" if "7" in text else "Neutral"}) as server:
        whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
        Labeller(given, whole, SCHEMA, ["llm"], reader=reader(server)).run()
        job = Labeller(given, out, SCHEMA, ["llm"], reader=reader(server))

        def stop(stage, done, of, values):
            if done >= 16:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job.run(progress=stop)
        assert not out.exists()
        journal = tmp_path / "out.jsonl.journal"
        journal.write_bytes(journal.read_bytes()[:-5])  # torn, as a kill in the middle of a write leaves it
        with pytest.raises(InputError, match="out.jsonl.journal: there already; --resume goes on"):
            job.run()
        before = len(server.bodies)
        job.run(resume=True)
        assert len(server.bodies) - before == 15
    assert out.read_bytes() == whole.read_bytes()
    summaries = [json.loads((tmp_path / f"{name}.summary.json").read_text()) for name in ("out", "whole")]
    assert summaries[0] | {"output": ""} == summaries[1] | {"output": ""}


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
