"""The chat endpoint against a real server that misbehaves in each way."""

import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import serving

from elocute.errors import InputError
from elocute.rewards import chat
from elocute.rewards.chat import ChatEndpoint, Credentials, credentials, retry_after_seconds
from elocute.rewards.outcome import Unavailable

KEY = "sk-very-secret-0123456789"
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def quick_and_direct(monkeypatch):
    monkeypatch.setattr(chat, "_FIRST_WAIT", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url, *, concurrency=8, timeout=5.0, attempts=3, deadline=20.0):
    return ChatEndpoint(
        Credentials(url, "m", KEY), concurrency=concurrency, timeout=timeout, attempts=attempts, deadline=deadline
    )


def ask_one(behave, **options):
    with serving(behave) as server:
        (reply,) = endpoint(server.url, **options).ask([REQUEST])
    return reply, server


def first_fails(how):
    """Misbehaves on the first request only."""
    return lambda server, handler, body, n: how(server, handler) if n == 0 else server.say(handler, "fine")


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(code):
    reply, server = ask_one(first_fails(lambda s, h: s.fail(h, code)))
    assert reply == "fine" and len(server.bodies) == 2
    assert server.bodies == [REQUEST] * 2 and server.keys[0] == f"Bearer {KEY}"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_what_is_wrong_for_good_is_asked_once(code):
    reply, server = ask_one(lambda s, h, b, n: s.fail(h, code, "wrong for good"))
    assert isinstance(reply, Unavailable) and f"HTTP {code}" in reply.reason and len(server.bodies) == 1
    assert ("wrong for good" in reply.reason) == (code not in (401, 403))


def test_it_gives_up_after_the_last_attempt():
    reply, server = ask_one(lambda s, h, b, n: s.fail(h, 500), attempts=3)
    assert reply == Unavailable("HTTP 500 (no)") and len(server.bodies) == 3


def drop(server, handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_a_dropped_connection_is_tried_again():
    reply, server = ask_one(first_fails(drop))
    assert reply == "fine" and len(server.bodies) == 2


def test_a_slow_server_is_tried_again():
    reply, server = ask_one(first_fails(lambda s, h: time.sleep(1)), timeout=0.2)
    assert reply == "fine" and len(server.bodies) == 2


def test_a_server_that_drips_bytes_does_not_outlive_the_timeout():
    def drip(server, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    reply, server = ask_one(first_fails(drip), timeout=0.3)
    assert reply == "fine" and server.times[1] - server.times[0] < 0.9


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (reply,) = endpoint(url, attempts=2).ask([REQUEST])
    assert isinstance(reply, Unavailable) and "no connection" in reply.reason


def test_retry_after_is_honoured():
    reply, server = ask_one(first_fails(lambda s, h: s.fail(h, 429, Retry_After="0.6")))
    assert reply == "fine" and 0.6 <= server.times[1] - server.times[0] < 1.5


def test_a_retry_after_beyond_the_deadline_is_not_waited_for():
    start = time.monotonic()
    reply, server = ask_one(lambda s, h, b, n: s.fail(h, 429, Retry_After="60"), deadline=2)
    assert isinstance(reply, Unavailable) and "HTTP 429" in reply.reason and "deadline" in reply.reason
    assert time.monotonic() - start < 1.5 and len(server.bodies) == 1


def test_retry_after_header():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after_seconds("2") == 2.0
    assert 28 <= retry_after_seconds(soon) <= 30
    for header in (None, "soon", "-3", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert retry_after_seconds(header) == 0.0


def test_the_deadline_ends_the_batch_and_keeps_what_is_there():
    def behave(server, handler, body, n):
        if body["messages"][0]["content"] == "slow":
            time.sleep(1.5)
        server.say(handler, "fine")

    slow = {"model": "m", "messages": [{"role": "user", "content": "slow"}]}
    with serving(behave) as server:
        start = time.monotonic()
        replies = endpoint(server.url, deadline=0.5).ask([REQUEST, slow, REQUEST])
        assert time.monotonic() - start < 1.3
    assert replies == ["fine", Unavailable("no reply within the batch's deadline of 0.5 s"), "fine"]


def test_concurrency_is_used_and_limited():
    def behave(server, handler, body, n):
        time.sleep(0.1)
        server.say(handler, "fine")

    with serving(behave) as server:
        start = time.monotonic()
        assert endpoint(server.url, concurrency=4).ask([REQUEST] * 12) == ["fine"] * 12
        assert server.most == 4 and time.monotonic() - start < 1.1  # one by one: 1.2 s


def test_replies_keep_the_order_of_requests():
    def behave(server, handler, body, n):
        text = body["messages"][0]["content"]
        time.sleep(0.05 * (5 - int(text)))
        server.say(handler, text)

    requests = [{"model": "m", "messages": [{"role": "user", "content": str(i)}]} for i in range(5)]
    with serving(behave) as server:
        assert endpoint(server.url).ask(requests) == list("01234")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", "{not json"),
        ("text/html", "<html>hello</html>"),
        ("application/json", "[]"),
        ("application/json", "{}"),
        ("application/json", '{"choices": []}'),
        ("application/json", '{"choices": [{"message": {"content": null}}]}'),
        ("application/json", '{"choices": [{"message": {"content": ""}}]}'),
        ("application/json", ""),
    ],
)
def test_garbage_is_unavailable_and_not_asked_again(kind, body):
    reply, server = ask_one(lambda s, h, b, n: s.send(h, 200, body, kind=kind))
    assert isinstance(reply, Unavailable) and len(server.bodies) == 1, reply


def test_the_key_is_in_no_log_and_no_message(caplog, monkeypatch, capfd):
    caplog.set_level("DEBUG")
    for how in (
        lambda s, h, b, n: s.fail(h, 401, f"Incorrect API key provided: {KEY}"),
        lambda s, h, b, n: s.fail(h, 401, f"Incorrect API key provided: {KEY[:8]}***"),
        lambda s, h, b, n: s.fail(h, 400, f"you sent {KEY}"),
        lambda s, h, b, n: s.fail(h, 500, f"you sent {KEY}"),
        lambda s, h, b, n: drop(s, h),
        lambda s, h, b, n: s.say(h, "fine"),
    ):
        reply, server = ask_one(how, attempts=2)
        assert server.keys[0] == f"Bearer {KEY}"  # so that the test can fail
        assert KEY[:8] not in repr(reply)
    assert caplog.records and KEY[:8] not in caplog.text
    written = capfd.readouterr()
    assert KEY[:8] not in written.out + written.err + repr(Credentials("http://h", "m", KEY))


def test_credentials_come_from_one_family():
    values = {"API_KEY": "w", "API_BASE": "http://w/v1", "MODEL": "wm"}
    wavalign = {f"WAVALIGN_REWARD_{name}": value for name, value in values.items()}
    openai = {"OPENAI_API_KEY": "o", "OPENAI_BASE_URL": "http://o/v1", "OPENAI_MODEL": "om"}
    assert credentials(None, wavalign | openai) == Credentials("http://w/v1", "wm", "w")
    assert credentials(None, openai) == Credentials("http://o/v1", "om", "o")
    assert credentials("mine", openai).model == "mine"
    assert credentials("m", {"OPENAI_API_KEY": "o"}).url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "set OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "o", "WAVALIGN_REWARD_API_BASE": "http://w"}, "set WAVALIGN_REWARD_API_KEY"),
        ({"OPENAI_API_KEY": KEY}, "needs a model: set OPENAI_MODEL"),
        ({"OPENAI_API_KEY": KEY + "\nX", "OPENAI_MODEL": "m"}, "OPENAI_API_KEY: a key is printable"),
        ({"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "m", "OPENAI_BASE_URL": "host/v1"}, "OPENAI_BASE_URL: expected"),
        ({"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "m", "OPENAI_BASE_URL": "http://u:p@h"}, "without a password"),
    ],
)
def test_what_the_environment_lacks_is_named(environment, message):
    with pytest.raises(InputError, match=message) as error:
        credentials(None, environment)
    assert KEY not in str(error.value)
