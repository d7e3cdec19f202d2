"""A vLLM server as a source of tokens: token ids go in, token ids and their log-probs come out, and it changes weights.

Of vLLM 0.32: `/inference/v1/generate` for answers, each with the version of the weights that made it; `/pause`,
`/collective_rpc` (`reload_weights`), `/reset_prefix_cache`, `/update_weight_version` and `/resume` to put others in.
The key that a server may ask for comes from VLLM_API_KEY.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from elocute.errors import InputError, RunError

log = logging.getLogger(__name__)
T = TypeVar("T")

AT_ONCE = 256
"""Requests under way at most; the server makes its own batches of them."""
LOSSES = 3
"""Of the server over the same request, after which the run stops."""
PROBE_SECONDS = 10.0
"""In which a healthy server says so."""
TURN_SECONDS = 60.0
"""After which the next process gives its weights to a server that came back, if none before it has."""
Drawn = list[tuple[int, float]]
"""Tokens and the log-probs with which they were drawn."""


class Lost(Exception):
    """The server did not answer, or let go of a request: it may be back soon."""


class Stale(RunError):
    """Other weights answered than must."""


class VllmServer:
    """The server at `url`. timeout: seconds in which an answer must come, and in which a lost server must be back."""

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url, timeout
        self.version = ""
        self.folder: Path | None = None
        self.turn = 0

    def settings(self) -> Mapping[str, Any]:
        """Its model's configuration, once it is up. RunError when it does not come up in time."""

        async def ask() -> Mapping[str, Any]:
            async with self.connected() as connection:
                return await connection.settings()

        return asyncio.run(ask())

    def expect(self, folder: Path, version: str, turn: int = 0) -> None:
        """It must sample with the weights in `folder`, and call them `version` in each answer; see `load`.

        turn: whose turn it is, this process's among several, to give them to a server that has come back.
        """
        self.folder, self.version, self.turn = folder, version, turn

    def load(self) -> None:
        """Put in the weights that are expected. Whoever else samples with others is interrupted."""

        async def ask() -> None:
            async with self.connected() as connection:
                await connection.load()

        asyncio.run(ask())

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["_Connection"]:
        from openai import AsyncOpenAI

        async with AsyncOpenAI(
            base_url=self.url, api_key=os.environ.get("VLLM_API_KEY") or "none", max_retries=0, timeout=self.timeout
        ) as client:
            yield _Connection(self, client)


class _Connection:
    """Requests under way to a server. When it is lost, all wait for it together, and it gets its weights again."""

    def __init__(self, server: VllmServer, client: Any):
        self.server, self.client = server, client
        self._slots, self._waiting, self._returns = asyncio.Semaphore(AT_ONCE), asyncio.Lock(), 0
        self._gone: RunError | None = None
        self._empty: float | None = None  # since when it is up again, without its weights

    async def draw(self, prompt: list[int], parameters: Mapping[str, Any]) -> Drawn:
        """What follows `prompt`. parameters: vLLM's sampling parameters."""

        async def once() -> Drawn:
            said = await self._send("/inference/v1/generate", {"token_ids": prompt, "sampling_params": parameters})
            return self._read(said, parameters)

        async with self._slots:
            return await self._kept(once)

    async def settings(self) -> Mapping[str, Any]:
        """The configuration of the server's model."""
        said = await self._kept(lambda: self._send("/server_info?config_format=json"))
        try:
            return {name: said["vllm_config"]["model_config"][name] for name in ("logprobs_mode", "max_model_len")}
        except (KeyError, TypeError):
            raise InputError(f"{self.server.url}: expected a vLLM server (0.32), it is none") from None

    async def load(self) -> None:
        """Put the weights in that the server must have."""
        await self._kept(self._load)

    async def _kept(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` gives, waiting where the server is lost. RunError when that is for too long or too often."""
        for _ in range(LOSSES):
            async with self._waiting:  # nothing is asked of a server that has come back without its weights
                seen = self._returns
            try:
                return await once()
            except Lost as loss:
                why = loss
                await self._wait(seen, loss)
            except Stale as stale:
                if self._returns == seen and not self._waiting.locked():
                    raise
                why = stale  # it has been lost meanwhile
        raise RunError(f"{self.server.url}: lost the vLLM server {LOSSES} times over one request: {why}")

    async def _load(self) -> None:
        server = self.server
        await self._send("/pause", {})  # lets go of whatever is under way
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(server.folder)}}
        await self._send("/collective_rpc", reload)
        cleared = await self._send("/reset_prefix_cache", {})  # keys and values of the old weights
        if not (isinstance(cleared, dict) and cleared.get("success")):
            raise RunError(f"{server.url}: the vLLM server did not forget the old weights' keys and values")
        await self._send("/update_weight_version", {"new_version": server.version})
        await self._send("/resume", {})

    async def _send(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        import openai

        try:
            if body is None:
                return await self.client.get(path, cast_to=object)
            return await self.client.post(path, body=body, cast_to=object)
        except openai.APITimeoutError:
            raise Lost(f"no reply to {path} within {self.server.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Lost(f"no connection ({type(error.__cause__ or error).__name__})") from None
        except openai.APIStatusError as error:
            reason = f"{path}: HTTP {error.status_code}{_words(error)}"
            if error.status_code in (403, 404):
                reason += ": it must be started as docs/vllm.md says"
            if error.status_code >= 500 and path != "/collective_rpc":
                raise Lost(reason) from None
            raise RunError(f"{self.server.url}{reason}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise RunError(f"{self.server.url}{path}: malformed reply ({type(error).__name__})") from None

    async def _wait(self, seen: int, why: Lost) -> None:
        """Until the server is back, with its weights. seen: how often it had come back when it was lost."""
        async with self._waiting:
            if self._gone is not None:
                raise self._gone
            if self._returns != seen:
                return
            server, clock = self.server, asyncio.get_running_loop().time
            end = clock() + server.timeout
            log.warning("%s: %s; waiting for the vLLM server, %g s at most", server.url, why, server.timeout)
            while not await self._back():
                if clock() >= end:
                    reason = f"the vLLM server is gone ({why}) and was not back within {server.timeout:g} s"
                    self._gone = RunError(f"{server.url}: {reason}")
                    raise self._gone
                await asyncio.sleep(min(1.0, server.timeout))
            self._returns += 1

    async def _back(self) -> bool:
        import openai

        try:
            await self.client.get("/health", cast_to=object, options={"timeout": PROBE_SECONDS})
            if self.server.folder is not None and not await self._has_weights():
                return False
        except (openai.OpenAIError, Lost):
            self._empty = None
            return False
        return True

    async def _has_weights(self) -> bool:
        """Whether a server that is up has its weights; when it is this process's turn it gives them."""
        server, now = self.server, asyncio.get_running_loop().time()
        if await self._served() == server.version:
            await self._send("/resume", {})  # whoever gave them may have been cut off before saying so
            return True
        self._empty = self._empty or now
        if now < self._empty + server.turn * TURN_SECONDS:
            return False
        await self._load()
        return True

    async def _served(self) -> str | None:
        said = await self._send("/weight_info")
        return said.get("weight_version") if isinstance(said, dict) else None

    def _read(self, said: Any, parameters: Mapping[str, Any]) -> Drawn:
        """The tokens of a reply, if the right weights made all of them."""
        server = self.server
        try:
            [choice] = said["choices"]
            ids, ended = choice["token_ids"], choice["finish_reason"]
            values = [one["logprob"] for one in choice["logprobs"]["content"]] if ids else []
            versions = {span["version"] for span in choice["weight_versions"] or ()}
            drawn = list(zip(map(int, ids), map(float, values), strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{server.url}: malformed reply ({type(error).__name__}: {error})") from None
        if ended not in ("stop", "length"):
            raise Lost(f"it let go of a request ({ended})")
        if versions != {server.version}:
            raise Stale(
                f"{server.url}: stale weights: {' and '.join(sorted(versions)) or 'unnamed ones'} answered, not "
                f"{server.version}: has another run loaded its own, or was the server started anew?"
            )
        if ended == "length" and len(drawn) < parameters["max_tokens"]:
            raise InputError(f"{server.url}: the server's context is too short: give it a larger --max-model-len")
        return drawn


def _words(error: Any) -> str:
    """What a server says about its refusal, if that is not about a key."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message") or body.get("detail")
    if error.status_code in (401, 403) and "key" in str(message).lower() or not isinstance(message, str):
        return ""
    return f" ({' '.join(message.split())[:300]})"
