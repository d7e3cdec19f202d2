"""`elocute label` by a language model: what it is told, replies that are none, failures, and work that goes on."""

import json
import re
import threading
from collections import Counter

import pytest

from elocute.errors import InputError, RunError
from elocute.pipelines.label.run import Labeller
from elocute.pipelines.label.summary import summary_lines
from elocute.rewards import chat
from elocute.rewards.labels import read_labels
from elocute.rewards.outcome import Unavailable
from tests.pipelines.label_files import ALL, SCHEMA, asked, labelling, labels, read, reader


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


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
    found = read_labels(reply if isinstance(reply, str) else json.dumps(reply), SCHEMA)
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


def test_an_output_that_cannot_be_written_costs_no_reply(tmp_path, texts):
    out = tmp_path / "out.jsonl"

    def obstruct(stage, done, of, values):
        if done == of:
            out.mkdir()

    with labelling() as server:
        job = Labeller(texts("a", "b"), out, SCHEMA, ["llm"], reader=reader(server))
        with pytest.raises(RunError, match="out.jsonl: cannot be written"):
            job.run(progress=obstruct)
        out.rmdir()
        summary = job.run(resume=True)
        assert len(server.bodies) == 2 and summary["rows"]["written"] == 2
        (tmp_path / "out.jsonl.journal.origin.json").write_text("{}")  # killed at its very end
        assert job.run(resume=True) == summary and len(server.bodies) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out.jsonl", "out.summary.json"]


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
