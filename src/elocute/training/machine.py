"""What a process runs on, and how much memory there is for it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from elocute.training.share import sharing

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """bytes: those that a process may still take, None: unknown. processes: of the run, over all machines; shared: how
    they share the network (training/share.py)."""

    bytes: int | None
    gpu: bool = False
    processes: int = 1
    shared: str = "copies"

    @classmethod
    def here(cls) -> "Machine":
        """Of its GPU what is free, else its share of what is left of main memory."""
        here, everywhere = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))
            return cls(free, True, everywhere, sharing())
        free = main_memory()
        return cls(None if free is None else free // here, False, everywhere, sharing())

    def __str__(self) -> str:
        return f"{self.bytes / GIB:.3g} GiB of {'the GPU' if self.gpu else 'main memory'}"


def main_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of main memory that may still be taken: the machine's, or what a control group leaves. None: unknown."""
    return min([*_available(proc / "meminfo"), *_left(proc / "self/cgroup", groups)], default=None)


def _available(meminfo: Path) -> Iterator[int]:
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        yield 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # not Linux
        pass


def _left(own: Path, root: Path) -> Iterator[int]:
    """What this process's control group (version 2) leaves, and what those leave in which it lies.

    Cached files count as free, those in use lately too, as in MemAvailable: they make room.
    """
    try:
        place = next(line[3:].strip("/") for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    for folder in (root / place, *(root / place).parents):
        if not folder.is_relative_to(root):
            return
        try:
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, limit - used + int(lines["active_file"]) + int(lines["inactive_file"]))
        except (OSError, ValueError, KeyError):  # the root has none; "max": no limit
            pass
