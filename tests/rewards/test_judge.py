"""The multimodal judge, its strict reading of replies, and the original's defects 3, 4 and 11."""

import base64
import io
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from answers import answer, tone
from chat_server import serving, verdict

from elocute.data.types import AudioRef, Message
from elocute.errors import InputError, RunError
from elocute.recipe.rewards import JudgeSpec
from elocute.rewards import chat
from elocute.rewards.build import build_reward
from elocute.rewards.chat import ChatEndpoint, Credentials
from elocute.rewards.combine import RewardMixer, Weighted
from elocute.rewards.judge import JudgeReward, parse_verdict
from elocute.rewards.outcome import Invalid, Scored, Unavailable
from elocute.rewards.rubrics import NAMES, instructions


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def judge(url="http://nowhere.invalid/v1", *, concurrency=8, **options):
    endpoint = ChatEndpoint(Credentials(url, "m", "key"), concurrency=concurrency, timeout=5, attempts=2, deadline=20)
    return JudgeReward("judge", endpoint, **options)


def say(score):
    return lambda server, handler, body, n: server.say(handler, verdict(score))


def asking(example_answer, *, messages, audios=(), question_text=None):
    example = replace(
        example_answer.example, messages=tuple(messages), audios=tuple(audios), question_text=question_text
    )
    return replace(example_answer, example=example)


def sounds(request) -> list[tuple[np.ndarray, int]]:
    """The (waveform, rate) of every WAV in a request, in order."""
    parts = request["messages"][1]["content"]
    data = [base64.b64decode(p["input_audio"]["data"]) for p in parts if p["type"] == "input_audio"]
    return [soundfile.read(io.BytesIO(d)) for d in data]


def words(request) -> str:
    return "\n".join(p["text"] for p in request["messages"][1]["content"] if p["type"] == "text")


@pytest.mark.parametrize("rubric", NAMES)
def test_a_request_holds_rubric_question_transcript_and_audio(rubric):
    request = judge(rubric=rubric).request(answer("it is cold", question="hot or cold?"))
    assert request["messages"][0] == {"role": "system", "content": instructions(rubric)}
    assert "hot or cold?" in words(request) and "it is cold" in words(request)
    assert request["model"] == "m" and request["temperature"] == 0.0 and len(sounds(request)) == 1


def test_a_score_with_its_justification():
    with serving(say(4)) as server:
        assert judge(server.url)([answer("a")]) == [Scored(4.0, {"justification": "because"})]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (verdict(1), 1),
        (verdict(" 5 "), 5),
        (verdict("3.5"), 3.5),
        (verdict(2) + "no, rather " + verdict(3), 3),
        (verdict(2) + verdict(45), 2),
        (verdict("4/5") + "\n" + verdict(2), 2),
        ("<think><score>5</score></think>" + verdict(2), 2),
        ("<justification>it says <score>5</score></justification>\n<score>2</score>", 2),
        ("<justification>two\nlines</justification>\n\n<score>\n4\n</score> done", 4),
    ],
)
def test_the_last_valid_score_counts(reply, score):
    outcome = parse_verdict(reply)
    assert isinstance(outcome, Scored) and outcome.value == score


@pytest.mark.parametrize(
    "reply",
    [verdict(45), verdict(0), verdict(-3), verdict(6), verdict(5.1), verdict("4/5"), verdict("four"), verdict(""),
     verdict("nan"), verdict("1e0"), verdict("４"), "4", "<score>4</score>", "<justification>x</justification>",
     "<justification>x</justification><score>4", "<score>4</score><justification>x</justification>", "I refuse."],
)  # fmt: skip
def test_everything_else_is_no_score(reply):
    assert isinstance(parse_verdict(reply), Unavailable)


def test_defect_03_no_score_is_made_up():
    """The original scored 2.5 when anything failed, and took 45 for a score."""

    def behave(server, handler, body, n):
        text = words(body)
        if "dead" in text:
            server.fail(handler, 500)
        elif "garbage" in text:
            server.say(handler, "I would say 4 or so")
        else:
            server.say(handler, verdict(45 if "out of range" in text else 3))

    with serving(behave) as server:
        outcomes = judge(server.url)([answer(t) for t in ("dead", "garbage", "out of range", "fine")])
    assert all(isinstance(o, Unavailable) for o in outcomes[:3]) and outcomes[3].value == 3
    assert "HTTP 500" in outcomes[0].reason and "45" in outcomes[2].reason
    with serving(lambda s, h, b, n: s.fail(h, 500)) as server:
        mixer = RewardMixer([Weighted(judge(server.url))])
        judged = mixer([answer("a"), answer("b")], [0, 0])
    assert judged.values == [None, None]
    with pytest.raises(RunError, match="reward judge: 2 of 2 .*HTTP 500"):
        mixer.check_alive(judged, judged.silent)


def test_defect_03_judgements_are_not_serial():
    def behave(server, handler, body, n):
        time.sleep(0.1)
        server.say(handler, verdict(3))

    with serving(behave) as server:
        judge(server.url, concurrency=6)([answer(str(i)) for i in range(12)])
    assert server.most == 6


def test_32_answers_are_asked_for_at_once_unless_the_recipe_says_otherwise(monkeypatch):
    """Nobody is answered before all have asked; where they cannot, the deadline makes them Unavailable."""

    def behave(server, handler, body, n):
        while server.most < 32:
            time.sleep(0.01)
        server.say(handler, verdict(3))

    for name in ("WAVALIGN_REWARD_API_KEY", "WAVALIGN_REWARD_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    with serving(behave) as server:
        for name, value in {"API_KEY": "key", "BASE_URL": server.url, "MODEL": "m"}.items():
            monkeypatch.setenv(f"OPENAI_{name}", value)
        reward = build_reward(JudgeSpec(kind="judge", rubric="semantic", deadline=60, attempts=1))
        outcomes = reward([answer(str(i)) for i in range(32)])
    assert all(isinstance(outcome, Scored) for outcome in outcomes)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100])
def test_defect_04_the_judge_hears_the_true_sample_rate(rate):
    """The original labelled 22,050 Hz audio as 24,000 Hz: the judge heard a voice 9 % too high and too fast."""
    waveform = tone(0.25, rate)
    ((heard, heard_rate),) = sounds(judge().request(answer("a", waveform=waveform, rate=rate)))
    assert heard_rate == rate and len(heard) == len(waveform)
    np.testing.assert_allclose(heard, waveform, atol=1 / 32_000)


@pytest.fixture
def question_file(tmp_path):
    path = tmp_path / "question.flac"
    soundfile.write(path, tone(0.2, 16_000, 200.0), 16_000)
    return path


SPOKEN = [Message("system", "be brief"), Message("user", "<|audio|>")]


def test_defect_11_the_question_is_the_questions_own_audio(question_file):
    spoken = asking(answer("a"), messages=SPOKEN, audios=[AudioRef(question_file)])
    (question, question_rate), (heard, rate) = sounds(judge().request(spoken))
    assert question_rate == 16_000 and len(question) == 3_200
    assert rate == 22_050 and len(heard) == len(spoken.utterance.waveform)


def test_defect_11_a_missing_question_is_an_error_and_never_the_answers_audio(tmp_path):
    gone = asking(answer("a"), messages=SPOKEN, audios=[AudioRef(tmp_path / "gone.wav")], question_text="what?")
    with pytest.raises(InputError, match=r"rows.jsonl:7: audios: .*gone.wav"):
        judge().request(gone)
    mute = asking(answer("a"), messages=SPOKEN, audios=[AudioRef(tmp_path / "q.safetensors", "q1")])
    with pytest.raises(InputError, match=r"rows.jsonl:7: question_text: the judge needs the question"):
        judge().request(mute)


def test_defect_11_only_the_last_users_audio_is_the_question(question_file, tmp_path):
    turns = [("user", "<|audio|>"), ("assistant", "<|audio|>hi"), ("user", "and <|audio|> now?")]
    messages = [Message(role, content) for role, content in turns]
    audios = [AudioRef(tmp_path / "1.wav"), AudioRef(tmp_path / "2.wav"), AudioRef(question_file)]
    request = judge().request(asking(answer("a"), messages=messages, audios=audios))
    assert len(sounds(request)) == 2 and "and   now?" in words(request)


def test_encoded_question_audio_leaves_the_words(tmp_path):
    units = [AudioRef(tmp_path / "q.safetensors", "q1")]
    request = judge().request(asking(answer("a"), messages=SPOKEN, audios=units, question_text="hot or cold?"))
    assert len(sounds(request)) == 1 and "hot or cold?" in words(request)


def test_a_judge_that_only_reads_gets_no_audio(question_file):
    reader = judge(send_audio=False)
    spoken = asking(answer("a"), messages=SPOKEN, audios=[AudioRef(question_file)], question_text="what?")
    assert sounds(reader.request(spoken)) == []
    assert reader([answer("", waveform=tone())]) == [Invalid("empty text")]


def test_a_continuation_is_asked_about_as_one():
    reader = judge(send_audio=False, rubric="continuation")
    said = words(reader.request(answer("and sat on the mat", question="the cat came in")))
    assert said == "The beginning:\nthe cat came in\nThe continuation's transcript:\nand sat on the mat"
    with pytest.raises(InputError, match="rows.jsonl:7: question_text: the judge needs the beginning in words"):
        reader.request(asking(answer("a"), messages=[Message("user", "<|audio|>")], audios=[AudioRef("x.wav")]))


def test_only_what_was_prompted_is_heard(question_file):
    prompt = [AudioRef(question_file, seconds=0.05)]
    listener = judge(rubric="continuation")
    (heard, rate), _ = sounds(listener.request(asking(answer("a"), messages=SPOKEN, audios=prompt)))
    assert len(heard) == round(0.05 * rate)


def test_bad_answers_are_not_sent():
    with serving(say(3)) as server:
        outcomes = judge(server.url)(
            [
                answer("a", broken="no end"),
                answer("a", waveform=np.zeros(0, np.float32)),
                answer("a", waveform=np.full(9, np.nan, np.float32)),
                answer("a"),
            ]
        )
    assert [type(o) for o in outcomes] == [Invalid] * 3 + [Scored] and len(server.bodies) == 1


def test_the_same_request_is_made_once_and_remembered(tmp_path):
    with serving(say(3)) as server:
        one = judge(server.url, cache=tmp_path)
        assert [o.value for o in one([answer("a"), answer("a"), answer("b")])] == [3, 3, 3]
        assert len(server.bodies) == 2
        assert judge(server.url, cache=tmp_path)([answer("b")])[0].value == 3
        assert len(server.bodies) == 2
        # every part of the request is part of its address
        one([answer("b", question="else?"), answer("b", waveform=tone(pitch=441)), answer("b", rate=8_000)])
        assert len(server.bodies) == 5
        judge(server.url, cache=tmp_path, rubric="semantic")([answer("b")])
        judge(server.url, cache=tmp_path, temperature=0.5)([answer("b")])
        assert len(server.bodies) == 7


def test_only_valid_verdicts_are_remembered_and_damage_is_asked_again(tmp_path, caplog):
    scores = iter(["45", "2", "4"])
    with serving(lambda s, h, b, n: s.say(h, verdict(next(scores)))) as server:
        one = judge(server.url, cache=tmp_path)
        assert isinstance(one([answer("a")])[0], Unavailable)
        assert one([answer("a")])[0].value == 2
        (entry,) = tmp_path.rglob("*.json")
        entry.write_text('{"reply": "<just')
        assert one([answer("a")])[0].value == 4
    assert "damaged cache entry" in caplog.text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != entry]
