"""Any OpenAI-compatible chat endpoint, asked many questions at once within a deadline.

Retried: what may pass by itself – network faults, time-outs and HTTP 408, 409, 429, 5xx – with exponential back-off,
jitter and the server's Retry-After. Everything else, and whatever is left at the deadline, is Unavailable.
The key comes only from the environment and appears in no message.
"""

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from elocute.errors import InputError
from elocute.rewards.outcome import Unavailable

_PUBLIC_URL = "https://api.openai.com/v1"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_jitter = random.Random()  # its own generator: waiting must not move the run's seeds


@dataclass(frozen=True)
class Credentials:
    """Where the endpoint is and how to enter."""

    url: str
    model: str
    key: str = field(repr=False)

    def __reduce__(self):
        """A copy for another process takes the key from the environment there: it does not travel."""
        return credentials, (self.model,)


def credentials(
    model: str | None = None, environment: Mapping[str, str] = os.environ, who: str = "the judge"
) -> Credentials:
    """From WAVALIGN_REWARD_API_KEY, _API_BASE, _MODEL if its key or base is set, else OPENAI_API_KEY, OPENAI_BASE_URL
    and OPENAI_MODEL.

    The two families are never mixed, so that a key is not sent to the other's host; `model` given here wins.
    Raises InputError naming the variable that is missing, and `who` needs it.
    """
    key_name, url_name, model_name = "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"
    if environment.get("WAVALIGN_REWARD_API_KEY") or environment.get("WAVALIGN_REWARD_API_BASE"):
        key_name, url_name, model_name = (f"WAVALIGN_REWARD_{n}" for n in ("API_KEY", "API_BASE", "MODEL"))
    key = environment.get(key_name, "").strip()
    if not key:
        raise InputError(f"{who} needs a key: set {key_name} (any text for a server that asks for none)")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{key_name}: a key is printable ASCII text")
    model = model or environment.get(model_name) or environment.get("WAVALIGN_REWARD_MODEL")
    if not model:
        raise InputError(f"{who} needs a model: set {model_name}, or give `model`")
    url = environment.get(url_name, "").strip() or _PUBLIC_URL
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise InputError(f"{url_name}: expected an http(s) address without a password in it")
    return Credentials(url, model, key)


class ChatEndpoint:
    """concurrency: requests in flight at most. timeout: seconds for one try, from first to last byte.
    attempts: tries a request at most. deadline: seconds for a whole batch.
    """

    def __init__(self, entry: Credentials, *, concurrency: int, timeout: float, attempts: int, deadline: float):
        self.entry = entry
        self.concurrency, self.timeout, self.attempts, self.deadline = concurrency, timeout, attempts, deadline

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[str | Unavailable]:
        """The reply's text for each chat-completions request (its JSON body), or why there is none; same order."""
        return asyncio.run(self._ask_all(requests))

    async def _ask_all(self, requests: Sequence[Mapping[str, Any]]) -> list[str | Unavailable]:
        from openai import AsyncOpenAI

        slots = asyncio.Semaphore(self.concurrency)
        end = asyncio.get_running_loop().time() + self.deadline
        async with AsyncOpenAI(
            api_key=self.entry.key, base_url=self.entry.url, max_retries=0, timeout=self.timeout
        ) as client:
            return await asyncio.gather(*(self._ask_by(end, client, slots, r) for r in requests))

    async def _ask_by(self, end: float, client: Any, slots: asyncio.Semaphore, request: Mapping[str, Any]):
        try:
            async with asyncio.timeout_at(end):
                return await self._ask_with_retries(end, client, slots, request)
        except TimeoutError:
            return Unavailable(f"no reply within the batch's deadline of {self.deadline:g} s")

    async def _ask_with_retries(self, end: float, client: Any, slots: asyncio.Semaphore, request: Mapping[str, Any]):
        fault = _Fault("never asked", retry=False)
        for attempt in range(self.attempts):
            async with slots:  # released while waiting, so that one slow answer does not hold the others up
                reply = await self._try_once(client, request)
            if isinstance(reply, str):
                return reply
            fault = reply
            if not fault.retry or attempt == self.attempts - 1:
                break
            backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * _jitter.uniform(0.5, 1.0)
            pause = max(backoff, fault.retry_after)
            if asyncio.get_running_loop().time() + pause >= end:
                return Unavailable(f"{fault.reason}; the next try would come after the batch's deadline")
            await asyncio.sleep(pause)
        return Unavailable(fault.reason)

    async def _try_once(self, client: Any, request: Mapping[str, Any]) -> "str | _Fault":
        import openai

        try:
            async with asyncio.timeout(self.timeout):  # the client's own limit counts from the last byte received
                completion = await client.chat.completions.create(**request)
        except (TimeoutError, openai.APITimeoutError):
            return _Fault(f"no reply within {self.timeout:g} s", retry=True)
        except openai.APIStatusError as error:
            code = error.status_code
            return _Fault(
                f"HTTP {code}{self._server_says(error)}",
                retry=code in (408, 409, 429) or code >= 500,
                retry_after=retry_after_seconds(error.response.headers.get("retry-after")),
            )
        except openai.APIConnectionError as error:
            return _Fault(f"no connection ({type(error.__cause__ or error).__name__})", retry=True)
        except (openai.OpenAIError, ValueError) as error:  # a body that is not the JSON it claims to be
            return _Fault(f"malformed reply ({type(error).__name__})", retry=False)
        try:
            text = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            return _Fault("malformed reply (no choices[0].message.content)", retry=False)
        return text if isinstance(text, str) and text else _Fault("empty reply", retry=False)

    def _server_says(self, error: Any) -> str:
        # A server that refuses a key likes to quote it, masked or not: its words are not repeated then.
        message = error.body.get("message") if isinstance(error.body, dict) else None
        if error.status_code in (401, 403) or not isinstance(message, str) or self.entry.key in message:
            return ""
        return f" ({' '.join(message.split())[:200]})"


@dataclass(frozen=True)
class _Fault:
    reason: str
    retry: bool
    retry_after: float = 0.0


def retry_after_seconds(header: str | None) -> float:
    """Retry-After (RFC 9110 §10.2.3) is a number of seconds or a date; 0 when absent, past or unreadable."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return seconds if 0.0 < seconds < float("inf") else 0.0
