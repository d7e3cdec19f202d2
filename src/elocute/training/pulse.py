"""Processes that train together say that they live, and end when another has not for a while.

A collective waits for a process that is gone as long as the longest evaluation may take. torchrun and accelerate end
the processes of a machine when one of them dies; this ends all, whatever became of it: killed, stopped, cut off. The
first process hears every other, the others hear the first, over the store by which they met: within `BEAT * PATIENCE`
seconds the first has ended, within twice that the last.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from elocute.errors import RunError

BEAT = 5.0
"""Seconds between two signs of life."""
PATIENCE = 24
"""Beats of one's own without any of another: it is gone. Beats, not seconds: who was stopped himself accuses nobody."""
_GONE = (
    "Connection closed by peer",
    "Connection was likely closed",  # as the store by which processes met has it
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)


class Pulse:
    """This process's signs of life, until it ends or `leave`s."""

    def __init__(self, rank: int, processes: int):
        self.rank, self._left = rank, threading.Event()
        self.others = range(1, processes) if rank == 0 else range(1)
        if processes > 1:
            # A connection of its own: the process group's is taken while it waits.
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            patience = timedelta(seconds=BEAT * PATIENCE)
            self._store = dist.PrefixStore("pulse", dist.TCPStore(*where, wait_for_workers=False, timeout=patience))
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        else:
            self._left.set()

    def leave(self) -> None:
        """All is done, no more signs will come. The first waits for the others: the store may be its own."""
        if self._left.is_set():
            return
        self._left.set()
        self._thread.join()
        with contextlib.suppress(dist.DistError):  # nobody is needed any more
            self._store.set(f"left {self.rank}", "")
            if self.rank == 0:
                self._store.wait([f"left {other}" for other in self.others])

    def _beat(self) -> None:
        heard, missed = dict.fromkeys(self.others, 0), dict.fromkeys(self.others, 0)
        while not self._left.wait(BEAT):
            try:
                self._store.add(str(self.rank), 1)
                for other in self.others:
                    count = self._store.add(str(other), 0)
                    missed[other], heard[other] = (missed[other] + 1) * (count == heard[other]), count
                    if missed[other] >= PATIENCE and not self._store.check([f"left {other}"]):
                        _end(f"process {other} of the run has given no sign of life for {BEAT * PATIENCE:.0f} s")
            except dist.DistError as error:
                if not self._left.is_set():
                    _end(f"the first process of the run cannot be reached: {str(error).splitlines()[0]}")


def _end(reason: str) -> None:
    """End at once: the main thread may wait for another process, where no signal reaches it."""
    rank = os.environ.get("RANK", "")
    with contextlib.suppress(OSError):  # whoever read it may be gone as well
        sys.stderr.write(f"{reason}; process {rank} ends too, the same command with --resume goes on\n")
        sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def reporting_loss() -> Iterator[None]:
    """RunError, one line, where a collective inside finds that another process has ended: that one says why."""
    try:
        yield
    except RuntimeError as error:
        if not _ended(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(
            f"another process of the run has ended ({reason}); the same command with --resume goes on"
        ) from error


def _ended(error: RuntimeError) -> bool:
    """Whether an error is what a collective says when another process has ended."""
    collective = isinstance(error, dist.DistError) or "/gloo/" in str(error)
    return collective and any(words in str(error) for words in _GONE)
