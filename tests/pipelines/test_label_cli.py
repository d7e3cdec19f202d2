"""`elocute label` as it is typed, stopped and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from elocute.prosody.schema import load_schema
from tests.rewards.chat_server import serving

TEXTS = "".join(json.dumps({"id": i, "text": f"text {i}."}) + "\n" for i in range(60))
SECRETS = ("OPENAI_", "WAVALIGN_REWARD_")


@pytest.fixture
def typed(tmp_path, monkeypatch, type_command):
    """Type `elocute label …` in a folder with texts: (exit status, stdout, stderr)."""
    for name in os.environ:
        if name.startswith(SECRETS):
            monkeypatch.delenv(name)
    (tmp_path / "t.jsonl").write_text('{"text": "It is here."}\n{"text": "Where is it?"}\n')
    return partial(type_command, "label")


def test_labels_by_rule(typed, tmp_path):
    status, out, err = typed("--input", "t.jsonl", "--output", "o.jsonl", "--from", "rule")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "o.jsonl: 2 of 2 rows have labels"
    assert lines[-2] == "tone: Declarative 1, Interrogative 1 (1.00 of 2.58 bits; 4 never)"
    assert lines[-1] == "summary: o.summary.json"
    assert "rows 2/2" in err
    status, out, _ = typed("--input", "t.jsonl", "--output", "p.jsonl", "--from", "rule", "--json")
    assert status == 0 and json.loads(out) == json.loads((tmp_path / "p.summary.json").read_text())


def test_a_dry_run_checks_and_writes_nothing(typed, tmp_path):
    words = ["--input", "t.jsonl", "--output", "o.jsonl", "--from", "rule", "--dry-run"]
    assert typed(*words)[1] == "# checked: 2 rows of t.jsonl; structure, emotion, speed, tone\n"
    status, out, _ = typed(*words, "--json", "--schema", "rlaif_spa")
    assert status == 0 and json.loads(out)["dimensions"]["speed"][0] == "Extremely Slow"
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "rules"], "--from rules: expected rule, audio, llm, rlaif-spa"),
        (["--from", "llm"], "--from llm needs a key: set OPENAI_API_KEY"),
        (["--from", "rule", "--model", "m"], "--model, --cache, --own-temperature: only used with --from llm"),
        (["--from", "rule", "--input", "u.jsonl"], "u.jsonl: cannot be read (No such file or directory)"),
        (["--from", "rule", "--schema", "papers"], "papers: cannot read the prosody schema: No such file"),
        (["--from", "rule", "--schema", "t.jsonl"], "t.jsonl"),
        (["--from", "rule", "--output", "./t.jsonl"], "--output t.jsonl: expected another file than --input"),
        (["--from", "rlaif-spa"], "t.jsonl: [0]: id: expected text or an integer, got None"),
        (["--from", "audio"], "t.jsonl:1: sft_target_audio: expected a recording to measure"),
    ],
)
def test_what_cannot_be_is_status_2(typed, tmp_path, words, said):
    status, out, err = typed("--input", "t.jsonl", "--output", "o.jsonl", *words)
    assert status == 2 and said in err.splitlines()[0] and "Traceback" not in err and out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_disk_that_cannot_be_written_is_status_1(typed, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = typed("--input", "t.jsonl", "--output", "file/o.jsonl", "--from", "rule")
    assert status == 1 and "cannot be written" in err and len(err.splitlines()) == 1


def slowly(server, handler, body, n):
    time.sleep(0.05)
    names = body["response_format"]["json_schema"]["schema"]["required"]
    dimensions, number = load_schema().dimensions, int(body["messages"][1]["content"][5:-1])
    found = {name: list(dimensions[name].labels)[number % len(dimensions[name].labels)] for name in names}
    server.say(handler, json.dumps(found))


@pytest.fixture
def command(tmp_path):
    """The words of a command that asks a model, and the processes' environment."""
    (tmp_path / "texts.jsonl").write_text(TEXTS)

    def make(url: str, out: str, *more: str) -> tuple[list[str], dict[str, str]]:
        words = [sys.executable, "-m", "elocute.cli", "label", "--from", "llm", "--model", "m", "--concurrency", "2"]
        words += ["--input", str(tmp_path / "texts.jsonl"), "--output", str(tmp_path / out), *more]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(SECRETS) and not k.lower().endswith("_proxy")}
        return words, kept | {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": url, "OMP_NUM_THREADS": "1"}

    return make


def stopped_after_some(words, environment, journal, how: signal.Signals) -> subprocess.CompletedProcess:
    """The command, stopped once something is in its journal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def listens():  # tests in the background inherit Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(words, **pipes, env=environment, preexec_fn=listens) as process:
        deadline = time.monotonic() + 300
        while not (journal.exists() and journal.stat().st_size > 0):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def test_killed_by_the_system_it_goes_on_to_the_same_bytes(command, tmp_path):
    with serving(slowly) as server:
        words, environment = command(server.url, "killed.jsonl")
        journal = tmp_path / "killed.jsonl.journal"
        assert stopped_after_some(words, environment, journal, signal.SIGKILL).returncode == -signal.SIGKILL
        final = journal.read_bytes().count(b"\n")
        assert 0 < final < 60 and not (tmp_path / "killed.jsonl").exists()
        refused = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert refused.returncode == 2 and "--resume goes on with it" in refused.stderr
        asked = len(server.bodies)
        done = subprocess.run([*words, "--resume", "--json"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"] == {"read": 60, "written": 60}
        assert len(server.bodies) - asked == 60 - final
        words, _ = command(server.url, "whole.jsonl")
        assert subprocess.run(words, capture_output=True, env=environment).returncode == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(command, tmp_path):
    with serving(slowly) as server:
        words, environment = command(server.url, "out.jsonl")
        stopped = stopped_after_some(words, environment, tmp_path / "out.jsonl.journal", signal.SIGINT)
        assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
        assert stopped.stderr.splitlines()[-1].startswith("stopped; what is done is kept. Go on with: elocute label ")
        assert stopped.stderr.splitlines()[-1].endswith(" --resume")
        done = subprocess.run([*words, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "60 of 60 rows have labels" in done.stdout
