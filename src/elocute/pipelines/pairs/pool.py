"""Parts made by this process, or by some workers, with the answers in the order of the parts."""

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from elocute.errors import InputError, RunError
from elocute.pipelines.pairs.parts import Made
from elocute.pipelines.pairs.split import Span
from elocute.pipelines.pairs.worker import Answer, Job

MOST_WORKERS = 4
AHEAD = 2  # tasks that wait in front of each worker


class Workers:
    """Some processes, or for one worker none at all; a context."""

    def __init__(self, job: Job, count: int):
        self._job, self._count = job, count
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Workers":
        if self._count == 1:
            self._maker = self._job.maker()
            return self
        command = [sys.executable, "-P", "-m", "elocute.pipelines.pairs.worker"]
        try:
            for _ in range(self._count):
                # A group of its own: Ctrl-C reaches the first process alone, which decides.
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
                self._processes.append(process)
                _send(process, msgspec.json.encode(self._job))
        except OSError as error:
            raise RunError(f"no worker can be started ({error.strerror or error})") from None
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.kill()  # all it was asked has been answered, or does not matter any more
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def make(self, spans: Iterable[Span]) -> Iterator[tuple[Span, Made]]:
        """Each part with what it gave, in order. Raises what a worker says."""
        if not self._processes:
            for span in spans:
                yield span, self._maker.make(span)
            return
        waiting: deque[tuple[Span, subprocess.Popen]] = deque()
        for number, span in enumerate(spans):
            process = self._processes[number % self._count]
            _send(process, msgspec.json.encode(span))
            waiting.append((span, process))
            if len(waiting) == AHEAD * self._count:
                yield _received(*waiting.popleft())
        while waiting:
            yield _received(*waiting.popleft())


def worker_count(size: int) -> int:
    """For `size` bytes of input: small work is done before a process has started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if size < 8 << 20 else min(MOST_WORKERS, cores)


def _send(process: subprocess.Popen, line: bytes) -> None:
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise RunError("a worker process ended early") from None


def _received(span: Span, process: subprocess.Popen) -> tuple[Span, Made]:
    line = process.stdout.readline()
    if not line:
        raise RunError("a worker process ended early")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.made is None:
        raise (InputError if answer.is_input else RunError)(answer.said)
    return span, answer.made
