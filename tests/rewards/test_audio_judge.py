"""The judge that listens: an audio LLM on disk by the likelihood of each label, or a chat model at an endpoint."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from answers import answer
from chat_server import serving
from voices import RATE, voice

from elocute.data.audio import resample
from elocute.errors import InputError
from elocute.prosody.schema import load_schema
from elocute.recipe.rewards import AudioJudgeSpec
from elocute.rewards import chat
from elocute.rewards.audio_judge import AudioJudgeReward, EndpointListener, LocalListener, question
from elocute.rewards.build import build_reward
from elocute.rewards.chat import ChatEndpoint, Credentials
from elocute.rewards.judge_cache import JudgeCache
from elocute.rewards.local_chat import LocalChat, Question
from elocute.rewards.outcome import Invalid, Scored, Unavailable
from tests.contracts import judges

SCHEMA = load_schema()
LABELS = {"structure": "Statement", "emotion": "Happy", "speed": "Slow", "tone": "Declarative"}
SOUNDS = [(voice(110, 0.4), RATE), (voice(240, 1.4, octaves=1), RATE), (np.repeat(voice(90, 1.1), 2), 2 * RATE)]


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.audio_llm(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture(scope="module")
def llm(folder):
    return LocalChat(folder, batch_size=3, device="cpu", dtype="float32")


def asks(question="?"):
    return [Question((sound, question)) for sound in SOUNDS]


def spoken(i=0, text="say it", **labels):
    return answer("", waveform=SOUNDS[i][0], rate=SOUNDS[i][1], question=text, labels=labels or LABELS)


def test_replies_are_scored_as_the_model_itself_does(llm):
    """Naive twin: one recording and one reply at a time, the whole sequence read anew, no padding and no cache."""
    replies = ["Slow", "Medium", "Fast", "a"]
    scores = np.array(llm.log_probs(asks("How fast?"), replies))
    tokenizer = llm.tokenizer
    naive = np.zeros_like(scores)
    for i, (waveform, rate) in enumerate(SOUNDS):
        sound = resample(waveform, rate, RATE)
        sound = sound if len(sound) >= RATE else np.resize(sound, RATE)
        for k, reply in enumerate(replies):
            inputs = llm.processor(
                text=[llm.prompt(asks("How fast?")[0]) + reply], audio=[sound], sampling_rate=RATE, return_tensors="pt"
            )
            with torch.inference_mode():
                log_p = llm.model(**inputs).logits[0].double().log_softmax(-1)
            ids = tokenizer(reply, add_special_tokens=False).input_ids
            assert inputs["input_ids"][0, -len(ids) :].tolist() == ids
            naive[i, k] = sum(log_p[-len(ids) - 1 + j, token] for j, token in enumerate(ids))
    np.testing.assert_allclose(scores, naive, atol=1e-4)
    assert np.ptp(scores[:, 0] - scores[:, 1]) > 1e-3  # the recording matters


def test_a_batch_is_heard_as_each_alone(folder, llm):
    alone = LocalChat(folder, batch_size=1, device="cpu", dtype="float32")
    replies = ["Slow", "Fast"]
    np.testing.assert_allclose(llm.log_probs(asks(), replies), alone.log_probs(asks(), replies), atol=1e-4)


def test_probabilities_are_of_the_labels(llm):
    (heard,) = LocalListener(llm)([spoken().utterance], SCHEMA.only(["speed", "emotion"]))
    assert {name: len(p) for name, p in heard.items()} == {"emotion": 5, "speed": 3}
    assert all(p.sum() == pytest.approx(1) and (p > 0).all() for p in heard.values())
    scores = llm.log_probs(asks(question(SCHEMA.dimensions["speed"]))[:1], ["Slow", "Medium", "Fast"])[0]
    assert heard["speed"] == pytest.approx(np.exp(scores) / np.exp(scores).sum())


def test_from_the_recipe(folder):
    spec = AudioJudgeSpec(
        kind="audio_judge", dimensions=["speed"], listener={"kind": "transformers", "path": folder, "device": "cpu"}
    )
    reward = build_reward(spec)
    (outcome,) = reward([spoken()])
    assert isinstance(outcome, Scored) and 0 < outcome.value < 1 and spec.concurrency == 1
    with pytest.raises(InputError, match="dimensions: 'pace' is not one of the schema's: structure, emotion"):
        build_reward(spec.model_copy(update={"dimensions": ["pace"]}))


def test_a_folder_without_a_voice_is_refused(tmp_path):
    mistral = judges.mistral(tmp_path / "text")
    with pytest.raises(InputError, match="text: expected a model that hears, found one that only reads"):
        LocalListener(LocalChat(mistral, device="cpu"))
    with pytest.raises(InputError, match="none: expected a chat model, found one without a chat template"):
        LocalChat(tiny_models.causal(tmp_path / "none"), device="cpu")


def endpoint_reward(url="http://nowhere.invalid/v1", credit="match", cache=None, **options):
    endpoint = ChatEndpoint(Credentials(url, "m", "key"), concurrency=4, timeout=5, attempts=2, deadline=20)
    return AudioJudgeReward("judge", EndpointListener(endpoint, cache=cache), SCHEMA, credit, **options)


def hears(**changes):
    return lambda server, handler, body, n: server.say(handler, json.dumps(LABELS | changes))


def test_matches_over_four():
    with serving(hears(speed="Medium")) as server:
        (outcome,) = endpoint_reward(server.url)([spoken()])
        assert outcome.value == 0.75 and outcome.detail["heard"]["speed"] == "Medium"
        assert endpoint_reward(server.url, "ordinal")([spoken()])[0].value == (3 + 0.5) / 4


def test_a_row_is_judged_by_the_labels_it_has():
    with serving(lambda server, handler, body, n: server.say(handler, '{"speed": "Slow"}')) as server:
        reward = endpoint_reward(server.url)
        assert reward([spoken(speed="Slow")])[0].value == 1
        asked = server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]
        assert list(asked) == ["speed"] and asked["speed"]["enum"] == ["Slow", "Medium", "Fast"]


def test_valid_replies_are_kept(tmp_path):
    with serving(hears()) as server:
        for _ in range(2):
            reward = endpoint_reward(server.url, cache=JudgeCache(tmp_path))
            assert [o.value for o in reward([spoken(0), spoken(1), spoken(0)])] == [1, 1, 1]
        assert len(server.bodies) == 2


def test_defect_rlaif_4_a_failed_judge_gives_no_score():
    def fails(server, handler, body, n):
        replies = ["HTTP", "no idea", "{}", json.dumps(LABELS | {"emotion": "Meh"})]
        server.fail(handler, 500) if n % 4 == 0 else server.say(handler, replies[n % 4])

    with serving(fails) as server:
        reward = endpoint_reward(server.url)
        reward.endpoint.attempts = 1
        outcomes = [reward([spoken()])[0] for _ in range(4)]
    assert [type(o) for o in outcomes] == [Unavailable] * 4
    assert "500" in outcomes[0].reason and outcomes[1].reason == "the reply is not JSON"


def test_defect_rlaif_6_the_judge_is_never_told_the_words():
    """A judge that knows the text can read the label off it. It gets the sound and the vocabulary, no more."""
    reward = endpoint_reward()
    said = "What a zephyr quokka!"
    request = reward.listener.request(spoken(text=said).utterance, SCHEMA)
    assert [part["type"] for part in request["messages"][1]["content"]] == ["input_audio"]
    assert not any(word in json.dumps(request) for word in ("zephyr", "quokka"))
    assert not any(word in question(SCHEMA.dimensions["emotion"]) for word in ("zephyr", "quokka"))


def test_answers_without_sound_are_the_answers_fault():
    mute = answer("", waveform=np.zeros(0, np.float32), question="say it", labels=LABELS)
    assert endpoint_reward()([mute]) == [Invalid("empty audio")]


def test_rows_must_have_a_label_that_is_judged():
    reward = endpoint_reward(dimensions=["emotion"])
    reward.check([spoken(**LABELS).example])  # labels of other dimensions are as welcome
    with pytest.raises(InputError, match="rows.jsonl:7: labels: expected one for emotion, found none"):
        reward.check([spoken(speed="Slow").example])
