"""A server that labels, and what the tests of `elocute label` read."""

import json

from elocute.pipelines.label.sources import Reader
from elocute.prosody.schema import load_schema
from elocute.rewards.chat import ChatEndpoint, Credentials
from tests.rewards.chat_server import serving

SCHEMA = load_schema()
ALL = {"structure": "Statement", "emotion": "Happy", "speed": "Fast", "tone": "Declarative"}


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
