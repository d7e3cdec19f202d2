"""Asking an endpoint for outcomes: the same request is made once, and a valid reply is kept on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from elocute.rewards.chat import ChatEndpoint
from elocute.rewards.judge_cache import JudgeCache, address
from elocute.rewards.outcome import Unavailable

T = TypeVar("T")


def ask_once(
    endpoint: ChatEndpoint,
    cache: JudgeCache | None,
    requests: Sequence[Mapping[str, Any]],
    read: Callable[[str], T | Unavailable],
) -> list[T | Unavailable]:
    """What `read` finds in the reply to each request, in the same order; Unavailable where it finds nothing."""
    keys = [address(request) for request in requests]
    found = {key: read(reply) for key in set(keys) if cache and (reply := cache.get(key)) is not None}
    to_ask = {k: r for k, r in zip(keys, requests, strict=True) if isinstance(found.get(k), Unavailable | None)}
    replies = endpoint.ask(list(to_ask.values())) if to_ask else []
    for key, reply in zip(to_ask, replies, strict=True):
        found[key] = reply if isinstance(reply, Unavailable) else read(reply)
        if cache and not isinstance(found[key], Unavailable):
            cache.put(key, reply, endpoint.entry.model)
    return [found[key] for key in keys]
