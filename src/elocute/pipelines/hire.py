"""Who does the work of `sample`, `score`, `label` and `encode`: this process, or workers on Ray, here or on a cluster.

Portions of rows go out in order, and what is made of them comes back in that order, whoever made it. A worker opens its
models once. When it dies, another is hired and the portions that it had are given out again. This process alone reads
rows and writes the journal, and holds no more than the portions that are under way.

Not Ray Data: there, portions of a machine that is gone wait for room on another one, while here the workers that are
left get them. And only arguments that Ray 2.64 drops say how often rows that kill their worker are tried again.
"""

import contextlib
import heapq
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from math import ceil
from typing import Any

from elocute.errors import InputError, RunError

log = logging.getLogger(__name__)
Crew = Callable[[str, Iterable[Any]], Iterator[Any]]
"""Called with a method's name and portions: what the method makes of each, in order. One call ends before the next."""

HELD = 2
"""Portions that a worker has: the one it works on and the next, so that it waits for nobody."""

AHEAD = 4
"""Portions for each worker that are under way, or made and waiting for a slower one before them."""

MOST_DEATHS = 3
"""Of workers over the same portion, after which the work stops."""

OBJECT_STORE = 200_000_000
"""Bytes of shared memory on this machine's own cluster: portions and lines are small."""

STARTS = 3
"""Of this machine's own cluster, tried: Ray gives its processes 15 s and 30 s, which a busy machine may exceed."""

PATIENCE = 60.0
"""Seconds without any worker, after which people are told: on a cluster others' work may have all there is."""

LOSSES = ("RayActorError", "ObjectLostError", "OutOfMemoryError")
"""What Ray raises when a worker, its machine or what it made is gone."""


@contextlib.contextmanager
def hired(make: Callable[..., Any], args: tuple, workers: int) -> Iterator[Crew]:
    """A crew that does what the methods of `make(*args)` do. workers: how many on Ray; 0: this process, without Ray.

    Ray is the cluster at RAY_ADDRESS, or else this machine's own, which ends with the work. What a method raises comes
    out of the crew. InputError without Ray; RunError when there is no cluster or workers keep dying.
    """
    if not workers:
        made = make(*args)
        try:
            yield lambda what, portions: map(getattr(made, what), portions)
        finally:
            getattr(made, "close", lambda: None)()
        return
    ray = _ray(workers)
    try:
        yield _Workers(ray, make, args, workers)
    finally:
        ray.shutdown()


def _ray(workers: int):
    """Ray, with a cluster behind it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for news to be sent home
    try:
        ray = import_module("ray")
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'elocute[ray]'") from None
    address = os.environ.get("RAY_ADDRESS")
    own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    for _ in range(1 if address else STARTS):
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
            return ray
        except Exception as error:  # a plain Exception when a cluster of one's own does not start
            why = _last_line(error)
            ray.shutdown()
    raise RunError(f"Ray: no cluster{f' at {address}' if address else ''}: {why}")


class Worker:
    """A worker's life, on its machine. What the user is to read comes back as a value: Ray would wrap it otherwise.

    folder: the first process's working folder, so that relative paths lead to the same files.
    """

    def __init__(self, folder: str, make: Callable[..., Any], args: tuple):
        self.folder, self.make = folder, partial(make, *args)

    def open(self) -> Exception | None:
        try:
            os.chdir(self.folder)
            self.made = self.make()
        except OSError as error:
            return InputError(f"{self.folder}: not on every machine of the cluster ({error.strerror or error})")
        except (InputError, RunError) as error:
            return error

    def do(self, what: str, portion: Any) -> Any:
        try:
            return getattr(self.made, what)(portion)
        except (InputError, RunError) as error:
            return error


class _Workers:
    """A crew on Ray."""

    def __init__(self, ray, make: Callable[..., Any], args: tuple, count: int):
        self.ray, self.count = ray, count
        gpus = ray.cluster_resources().get("GPU", 0)
        self._gpu = 1 / ceil(count / gpus) if gpus >= 1 else 0  # each worker's share: a whole number of them to a GPU
        self._new = partial(ray.remote(num_cpus=1, num_gpus=self._gpu)(Worker).remote, os.getcwd(), make, args)
        self._losses = tuple(getattr(ray.exceptions, name) for name in LOSSES)
        self._awaited: dict[Any, tuple[Any, int | None]] = {}  # answer → worker and portion; None: whether it is open
        self._held: dict[Any, deque[int]] = {}  # the portions of each open worker
        self._deaths = 0  # since anything was done
        for _ in range(count):
            self._hire()

    def __call__(self, what: str, portions: Iterable[Any]) -> Iterator[Any]:
        numbered, first = enumerate(portions), 0
        under_way: dict[int, Any] = {}
        waiting: list[int] = []  # a heap of those of them that nobody has
        made: dict[int, Any] = {}
        died_over: Counter[int] = Counter()
        while True:
            while len(under_way) + len(made) < AHEAD * self.count and (found := next(numbered, None)):
                under_way[found[0]] = found[1]
                heapq.heappush(waiting, found[0])
            for worker in self._idle():
                if waiting:
                    number = heapq.heappop(waiting)
                    self._held[worker].append(number)
                    self._awaited[worker.do.remote(what, under_way[number])] = worker, number
            if not under_way:
                return
            number, result, lost = self._next_answer()
            for one in lost:
                heapq.heappush(waiting, one)
            if lost:  # it was at work on the first of them
                died_over[lost[0]] += 1
                if died_over[lost[0]] == MOST_DEATHS:
                    raise RunError(f"{MOST_DEATHS} workers died over the same rows: {result}")
            if number is not None:
                del under_way[number]
                made[number] = result
            while first in made:
                yield _raised(made.pop(first))
                first += 1

    def _idle(self) -> Iterator[Any]:
        """Open workers with a free hand, first those that have nothing at all."""
        for many in range(HELD):
            yield from [worker for worker, held in self._held.items() if len(held) == many]

    def _next_answer(self) -> tuple[int | None, Any, list[int]]:
        """Wait for one: a portion's number and what was made of it, or None, why, and the portions that a dead worker
        had."""
        while not (answers := self.ray.wait(list(self._awaited), timeout=PATIENCE)[0]):
            if not self._held:
                log.warning("Ray: still no worker; each waits for a CPU%s", " and a GPU" if self._gpu else "")
        [answer] = answers
        worker, number = self._awaited.pop(answer)
        try:
            result = self.ray.get(answer)
        except self._losses as error:
            return None, (why := _last_line(error)), self._bury(worker, why)
        self._deaths = 0
        if number is None:
            _raised(result)
            self._held[worker] = deque()
        else:
            self._held[worker].remove(number)
        return number, result, []

    def _bury(self, worker: Any, why: str) -> list[int]:
        """Hire another in a worker's place; the portions it had."""
        self._deaths += 1
        if self._deaths == MOST_DEATHS + self.count:
            raise RunError(f"{self._deaths} workers died one after the other: {why}")
        self._awaited = {answer: of for answer, of in self._awaited.items() if of[0] is not worker}
        self.ray.kill(worker)
        self._hire()
        return list(self._held.pop(worker, ()))

    def _hire(self) -> None:
        worker = self._new()
        self._awaited[worker.open.remote()] = worker, None


def _raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
