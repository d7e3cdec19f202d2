"""Rewards on candidates: typed outcomes, a judge that fails, and work that goes on where it was killed."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from elocute.errors import InputError, RunError
from elocute.evaluation.continuation import auto_bleu_slamkit
from elocute.pipelines.score import CandidateScorer
from elocute.recipe import load_recipe
from elocute.rewards import chat
from tests.rewards.chat_server import serving, verdict

RECIPE = "recipes/starter/wavalign.yaml"
RULE = "{kind: rule, name: right, column: answer, match: number}"
JUDGE = "{kind: judge, name: judge, rubric: semantic, model: m, attempts: 1, concurrency: 4, timeout: 20}"
SMALL = ["model=src", "rollout.prompts_per_step=2", "rollout.group_size=2"]
UNITS = [7, 8, 7, 8, 9]


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def candidates(tmp_path):
    """Writes prompts of candidates: "3: 3, 4" asks for 3 and has the candidates "3" and "4", spoken, in order."""

    def write(*prompts: str, name: str = "given/candidates.jsonl") -> Path:
        file = tmp_path / name
        (file.parent / "audio").mkdir(parents=True, exist_ok=True)
        lines = []
        for i, prompt in enumerate(prompts):
            wanted, said = prompt.split(": ")
            output = {}
            for k, text in enumerate(said.split(", ")):
                audio = f"audio/q{i}-{k}.wav"
                tone = (0.3 * np.sin(np.arange(2000) * (0.1 + i / 50 + k / 9))).astype(np.float32)
                soundfile.write(file.parent / audio, tone, 16_000)
                broken = "no end" if text == "broken" else None
                output[str(k)] = {"output-text": text, "output-audio": audio, "output-units": UNITS, "broken": broken}
            ask = {"messages": [{"role": "user", "content": f"say {wanted}"}], "answer": wanted, "mine": [i]}
            lines.append(json.dumps({"id": f"q{i}", **ask, "output": output}) + "\n")
        file.write_text("".join(lines))
        return file

    return write


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    opened = []

    def make(candidates: Path, rewards: str, *overrides: str, out="scored.jsonl", url="http://nowhere.invalid/v1"):
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        recipe = load_recipe(RECIPE, [*SMALL, f"rewards=[{rewards}]", *overrides])
        opened.append(CandidateScorer(recipe, candidates, tmp_path / out))
        return opened[-1]

    yield make
    for job in opened:
        job.__exit__()


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def column(file: Path, name: str) -> list[list]:
    return [[candidate[name] for candidate in line["output"].values()] for line in read(file)]


def transcript(body: dict) -> str:
    return re.search(r"transcript:\n(.*)", json.dumps(body).encode().decode("unicode_escape"))[1].split('"')[0]


def judging(behave):
    """A server whose answer depends on the transcript alone: `behave(text)` gives a score, or a code to fail with."""

    def serve(server, handler, body, n):
        score = behave(transcript(body))
        if score > 99:
            server.fail(handler, score)
        else:
            server.say(handler, verdict(score))

    return serving(serve)


def test_every_candidate_gets_its_scores_and_keeps_what_it_had(candidates, scorer, tmp_path):
    file = candidates("3: three, 4, broken", "5: 5")
    summary = scorer(file, RULE).run()
    given, scored = read(file), read(tmp_path / "scored.jsonl")
    for before, after in zip(given, scored, strict=True):
        assert {**after, "output": None, "audio": None} == {**before, "output": None, "audio": None}
        for key, candidate in after["output"].items():
            assert {**candidate, **before["output"][key], "output-audio": None} == {**candidate, "output-audio": None}
            assert candidate["output-audio"] == f"given/{before['output'][key]['output-audio']}"
            assert candidate["measures"] == {"auto_bleu": 0.0, "auto_bleu_units": auto_bleu_slamkit(UNITS)}
            assert "gemini_score" not in candidate
    assert column(tmp_path / "scored.jsonl", "score") == [[1.0, 0.0, 0.0], [1.0]]  # an invalid answer has its penalty
    assert column(tmp_path / "scored.jsonl", "scores")[0] == [{"right": 1.0}, {"right": 0.0}, {"right": None}]
    good, bad = {"kind": "scored"}, {"kind": "invalid", "reason": "no end"}
    assert column(tmp_path / "scored.jsonl", "outcome") == [[good, good, bad], [good]]
    assert summary["outcomes"] == {"scored": 3, "invalid": 1, "unavailable": 0}
    assert summary["values"]["scores.right"] == {"n": 3, "mean": pytest.approx(2 / 3), "std": pytest.approx(2**0.5 / 3)}
    assert summary["prompts"] == 2 and summary["answers"] == 4 and summary["answers_per_s"] > 0


def test_a_group_scale_works_within_each_prompt(candidates, scorer, tmp_path):
    file = candidates("3: 3, 4", "5: 5, 5", "7: 7, 8, 9")
    scorer(
        file, RULE, "objective.mixing={kind: fixed, value: 1}", "reward_mix={scale: group, invalid_penalty: -3}"
    ).run()
    first, second, third = column(tmp_path / "scored.jsonl", "score")
    assert first == pytest.approx([1, -1], abs=1e-3) and second == [0.0, 0.0]
    values = np.array([1.0, 0.0, 0.0])
    assert third == pytest.approx((values - values.mean()) / (values.std() + 1e-4))


def test_the_judge_hears_the_wav_and_names_its_scores_as_published(candidates, scorer, tmp_path):
    file = candidates("3: three")
    heard = []

    def behave(server, handler, body, n):
        part = next(p for p in body["messages"][1]["content"] if p["type"] == "input_audio")
        heard.append(soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))))
        server.say(handler, verdict(4 if "content of spoken answers" in body["messages"][0]["content"] else 2))

    acoustic = JUDGE.replace("semantic", "acoustic").replace("name: judge", "name: voice")
    with serving(behave) as server:
        scorer(file, f"{JUDGE}, {acoustic}", url=server.url).run()
    [[candidate]] = [list(line["output"].values()) for line in read(tmp_path / "scored.jsonl")]
    assert candidate["gemini_score"] == {"semantic_score": 4, "paralinguistic_score": 2} and candidate["score"] == 6
    assert candidate["outcomes"]["voice"] == {"kind": "scored", "detail": {"justification": "because"}}
    for waveform, rate in heard:
        assert rate == 16_000
        np.testing.assert_array_equal(waveform, soundfile.read(file.parent / "audio/q0-0.wav")[0])


def test_silence_and_no_sound_are_the_samples_fault(candidates, scorer, tmp_path):
    file = candidates("3: three, 4, 5")
    line = json.loads(file.read_text())
    soundfile.write(file.parent / "audio/q0-0.wav", np.zeros(400), 16_000)
    soundfile.write(file.parent / "audio/q0-1.wav", np.zeros(0), 16_000)
    line["output"]["2"] |= {"output-audio": None}
    file.write_text(json.dumps(line))
    with judging(lambda text: 3) as server:
        scorer(file, JUDGE, "reward_mix.max_unavailable=1", url=server.url).run()
    empty = {"kind": "invalid", "reason": "empty audio"}
    assert column(tmp_path / "scored.jsonl", "outcome") == [[{"kind": "scored"}, empty, empty]]  # silence: it is heard


def test_unavailable_is_no_number_and_is_tried_again_alone(candidates, scorer, tmp_path):
    """A judge that fails at every other answer, then not; what it has said is not asked again."""
    file = candidates("3: three, 4", "5: five, 6", "7: seven, eight, broken", "9: nine")
    healthy = False
    rewards = f"{JUDGE}, {RULE}"
    overrides = ["objective.mixing={kind: fixed, value: 1}", "reward_mix={scale: group, invalid_penalty: -3}"]
    with judging(lambda text: 500 if text in ("4", "five", "eight") and not healthy else len(text)) as server:
        job = scorer(file, rewards, *overrides, url=server.url)
        summary = job.run()
        assert summary["outcomes"] == {"scored": 4, "invalid": 1, "unavailable": 3}
        assert [[score is None for score in scores] for scores in column(job.out, "score")] == [
            [False, True], [True, False], [False, True, False], [False],
        ]  # fmt: skip
        lost = read(job.out)[0]["output"]["1"]
        assert lost["outcome"]["kind"] == "unavailable" and "HTTP 500" in lost["outcome"]["reason"]
        assert lost["scores"] == {"judge": None, "right": 0.0} and "gemini_score" not in lost
        before = job.out.read_bytes()
        assert job.run(retry=True)["outcomes"]["unavailable"] == 3 and job.out.read_bytes() == before
        healthy, asked = True, len(server.bodies)
        summary = job.run(retry=True)
        assert sorted(map(transcript, server.bodies[asked:])) == ["4", "eight", "five"]
        assert summary["outcomes"] == {"scored": 7, "invalid": 1, "unavailable": 0}
        whole = scorer(file, rewards, *overrides, out="whole.jsonl", url=server.url)
        whole.run()
    assert job.out.read_bytes() == whole.out.read_bytes()  # combined anew within the group
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "given", "scored.jsonl", "scored.jsonl.origin.json", "whole.jsonl", "whole.jsonl.origin.json",
    ]  # fmt: skip


def test_a_retry_that_was_killed_goes_on(candidates, scorer, tmp_path, monkeypatch):
    file = candidates(*(f"{i}: a{i}, b{i}" for i in range(20)))
    healthy = False
    with judging(lambda text: 500 if text.startswith("b") and not healthy else 3) as server:
        job = scorer(file, JUDGE, "reward_mix.max_unavailable=0.6", url=server.url)
        job.budget = 4
        job.run()
        healthy, asked = True, len(server.bodies)

        def killed(stage, done, of, values):
            if stage == "retry" and done >= 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job.run(retry=True, progress=killed)
        assert "unavailable" in job.out.read_text()  # not replaced before all is there
        assert len(server.bodies) == asked + 8
        job.run(retry=True)
        assert len(server.bodies) == asked + 20
    assert "unavailable" not in job.out.read_text() and len(read(job.out)) == 20


def test_a_dead_judge_stops_the_work_and_what_is_done_is_kept(candidates, scorer, tmp_path):
    file = candidates(*(f"{i}: a{i}, b{i}" for i in range(12)))
    alive = 32  # answers, of a budget of 8 slots' rounds of 4
    with judging(lambda text: 3) as server:
        whole = scorer(file, JUDGE, out="whole.jsonl", url=server.url)
        whole.budget = 8
        whole.run()
    with serving(lambda s, h, b, n: s.say(h, verdict(3)) if n < 16 else s.fail(h, 503)) as server:
        job = scorer(file, JUDGE, url=server.url)
        assert job.budget == alive
        job.budget = 8
        with pytest.raises(RunError) as caught:
            job.run()
    assert "reward judge: 8 of 8 judgements are unavailable" in str(caught.value) and "HTTP 503" in str(caught.value)
    assert str(caught.value).endswith(f"8 prompts are in {job.out}, --resume goes on")
    with judging(lambda text: 3) as server:
        job = scorer(file, JUDGE, "reward_mix.max_unavailable=0.2", "rewards.0.concurrency=2", url=server.url)
        job.run(resume=True)
        assert len(server.bodies) == 8
    assert job.out.read_bytes() == whole.out.read_bytes()


def test_a_slow_judge_is_asked_about_many_prompts_at_once(candidates, scorer):
    file = candidates(*(f"{i}: a{i}" for i in range(20)))

    def slow(server, handler, body, n):
        patience = time.monotonic() + 20  # answers none before ten have asked
        while server.most < 10 and time.monotonic() < patience:
            time.sleep(0.01)
        server.say(handler, verdict(3))

    with serving(slow) as server:
        scorer(file, JUDGE.replace("concurrency: 4", "concurrency: 10"), url=server.url).run()
    assert server.most == 10


@pytest.mark.parametrize("part", [0.0, 0.2, 0.55, 0.999, 1.0])
def test_a_whole_line_is_final(candidates, scorer, tmp_path, part):
    file = candidates(*(f"{i}: a{i}, b{i}" for i in range(10)))
    with judging(lambda text: 1 + int(text[1:]) % 5) as server:
        job = scorer(file, JUDGE, url=server.url)
        summary = job.run()
        content = job.out.read_bytes()
        left = content[: int(len(content) * part)]
        job.out.write_bytes(left)
        asked = len(server.bodies)
        again = scorer(file, JUDGE, url=server.url).run(resume=True)
        assert len(server.bodies) - asked == 20 - 2 * left.count(b"\n")
    assert job.out.read_bytes() == content
    assert {**again, "answers_per_s": 0} == {**summary, "answers_per_s": 0}


def test_scores_from_another_recipe_are_not_taken_over(candidates, scorer, tmp_path):
    scorer(candidates("3: 3, 4"), RULE).run()
    other = scorer(tmp_path / "scored.jsonl", RULE.replace("number", "exact"), out="again.jsonl")
    other.run()
    assert column(other.out, "scores") == [[{"right": 1.0}, {"right": 0.0}]]
    line = json.loads((tmp_path / "scored.jsonl").read_text())
    line["output"]["1"]["output-text"] = "three"
    (tmp_path / "scored.jsonl").write_text(json.dumps(line))
    again = scorer(tmp_path / "scored.jsonl", RULE, out="third.jsonl")
    again.run()
    assert column(again.out, "scores") == [[{"right": 1.0}, {"right": 1.0}]]


def test_published_candidates_are_read_as_they_are(candidates, scorer, tmp_path):
    """WavAlign's own form: no id, no units, nothing about what is broken."""
    file = candidates("3: 3, 4")
    line = json.loads(file.read_text())
    del line["id"]
    said = {"semantic_score": 5, "paralinguistic_score": 4}
    line["output"] = {
        name: {"output-text": text, "output-audio": "audio/q0-0.wav", "gemini_score": said}
        for name, text in (("sample_a", "3"), ("sample_b", "5"))
    }
    file.write_text(json.dumps(line))
    job = scorer(file, RULE)
    job.run()
    [scored] = read(job.out)
    assert list(scored["output"]) == ["sample_a", "sample_b"] and column(job.out, "score") == [[1.0, 0.0]]
    assert scored["output"]["sample_a"]["gemini_score"] == said
    assert scored["output"]["sample_a"]["measures"] == {"auto_bleu": 0.0}  # of its words; there are no units
    assert len(scored["id"]) == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line.pop("output"), "1: output: expected an object of candidates"),
        (lambda line: line.update(output={}), "1: output: expected an object of candidates"),
        (lambda line: line.update(output={"a": 3}), "1: output.a: expected an object with output-text"),
        (lambda line: line["output"]["0"].update({"output-text": 3}), "1: output.0.output-text: expected a string"),
        (lambda line: line["output"]["0"].update({"output-units": [-1]}), "1: output.0.output-units: expected a list"),
        (lambda line: line["output"]["0"].update({"output-units": [True]}), "1: output.0.output-units: expected"),
        (lambda line: line["output"]["0"].update({"output-units": [[1], [2, 3]]}), "1: output.0.output-units: expec"),
        (lambda line: line["output"]["0"].update({"output-tokens": [-1]}), "1: output.0.output-tokens: expected"),
        (lambda line: line["output"].update({"x": {}}), "1: output.x: expected output-text or output-audio"),
        (
            lambda line: line["output"]["0"].update({"output-audio": "a.wav"}),
            "1: output.0.output-audio: audio file not",
        ),
        (lambda line: line.update(messages=[]), "1: messages: expected a user's turn"),
        (lambda line: line.pop("answer"), "1: answer: expected"),
    ],
)
def test_bad_candidates_are_named_before_anything_is_judged(candidates, scorer, tmp_path, change, said):
    file = candidates("3: 3")
    line = json.loads(file.read_text())
    change(line)
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError) as caught:
        scorer(file, RULE).run()
    assert str(caught.value).startswith(f"{file}:{said}") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_a_damaged_wav_is_named(candidates, scorer):
    file = candidates("3: 3")
    (file.parent / "audio/q0-0.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="jsonl:1: output.0.output-audio: .*not a readable audio file"):
        scorer(file, RULE).run()


def test_another_judge_recipe_or_file_is_other_work(candidates, scorer, tmp_path):
    file = candidates("3: 3")
    with judging(lambda text: 3) as server:
        job = scorer(file, JUDGE, url=server.url)
        job.run()
        with pytest.raises(InputError, match="scored.jsonl: there already; --resume goes on"):
            job.check(resume=False)
        for change, said in [
            (lambda: scorer(file, JUDGE.replace("model: m", "model: n")), "judges: .* started with .*'m'"),
            (lambda: scorer(file, JUDGE, "reward_mix.invalid_penalty=1"), "reward_mix"),
            (lambda: scorer(candidates("3: 3, 4"), JUDGE), "candidates"),
        ]:
            with pytest.raises(InputError, match=f"scored.jsonl.origin.json: {said}"):
                change().check(resume=True)
    with pytest.raises(InputError, match="expected another file than --candidates"):
        scorer(file, RULE, out="given/../given/candidates.jsonl")
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(InputError, match="mine.jsonl: not made by elocute score"):
        scorer(file, RULE, out="mine.jsonl").run(resume=True)
    with pytest.raises(InputError, match="rewards: expected at least one"):
        scorer(file, "", "objective.mixing={kind: fixed, value: 0}", "objective.kl={}")


def test_killed_by_the_system_at_the_command_line(candidates, tmp_path):
    file = candidates(*(f"{i}: a{i}, b{i}" for i in range(80)))
    words = [sys.executable, "-m", "elocute.cli", "score", RECIPE, *SMALL, f"rewards=[{JUDGE}]", "--candidates", file]

    def command(out: str, *more: str) -> list[str]:
        return [str(word) for word in (*words, "-o", tmp_path / out, *more)]

    def slow(server, handler, body, n):
        time.sleep(0.05)
        server.say(handler, verdict(1 + int(transcript(body)[1:]) % 5))

    with serving(slow) as server:
        environment = os.environ | {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": server.url, "OMP_NUM_THREADS": "1"}
        options = {"capture_output": True, "text": True, "env": environment}
        process = subprocess.Popen(command("killed.jsonl"), stderr=subprocess.DEVNULL, env=environment)
        out, deadline = tmp_path / "killed.jsonl", time.monotonic() + 300
        while not (out.exists() and out.stat().st_size > 0):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        final = out.read_bytes().count(b"\n")
        assert final < 80
        dry = subprocess.run(command("killed.jsonl", "--dry-run"), **options)
        assert dry.returncode == 2 and len(dry.stderr.strip().splitlines()) == 1
        asked = len(server.bodies)
        done = subprocess.run(command("killed.jsonl", "--resume", "--json"), **options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outcomes"]["scored"] == 160
        assert len(server.bodies) - asked == 160 - 2 * final
        whole = subprocess.run(command("whole.jsonl"), **options)
    assert whole.returncode == 0 and "80 prompts, 160 answers: 160 scored, 0 invalid" in whole.stdout
    assert "score 80/80" in whole.stderr
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
