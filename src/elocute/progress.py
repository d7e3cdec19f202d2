"""Progress people see: a live bar with rates in a terminal, a line now and then in a log."""

import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich import progress
from rich.console import Console

Progress = Callable[[str, int, int, dict], None]
"""Called with (stage, done, of, values)."""

SECONDS_BETWEEN_LINES = 10


class RunProgress:
    """A `Progress` that shows."""

    def __init__(self, *, quiet: bool = False):
        self.live = sys.stderr.isatty() and not quiet
        self.quiet = quiet
        self.bars = progress.Progress(
            progress.TextColumn("{task.description:>16}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not self.live,
        )
        self.tasks: dict = {}
        self.started: dict[str, tuple[float, int]] = {}
        self.printed: dict[str, float] = {}

    def __enter__(self) -> "RunProgress":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, of: int, values: dict) -> None:
        if self.quiet:
            return
        now = time.perf_counter()
        since, first = self.started.setdefault(stage, (now, done))
        rate = (done - first) / (now - since) if done > first else 0.0
        note = f"{rate:.2f}/s  {_note(values)}".rstrip() if rate else _note(values)
        if self.live:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=of, note="")
            self.bars.update(self.tasks[stage], completed=done, note=note)
            return
        if done == of or now - self.printed.get(stage, -math.inf) >= SECONDS_BETWEEN_LINES:
            self.printed[stage] = now
            left = f"  ETA {timedelta(seconds=round((of - done) / rate))}" if rate and done < of else ""
            print(f"{stage} {done}/{of} {note}{left}".rstrip(), file=sys.stderr, flush=True)


def _note(values: dict) -> str:
    shown = []
    for key, label, form in (
        ("reward/mean", "reward", "{:.2f}"),
        ("lambda", "λ", "{:.2f}"),
        ("loss/sft", "sft", "{:.3f}"),
        ("dpo/accuracy", "accuracy", "{:.2f}"),
        ("dpo/margin", "margin", "{:.3f}"),
        ("outcomes/invalid", "invalid", "{:.0f}"),
        ("outcomes/unavailable", "unavailable", "{:.0f}"),
        ("seconds/total", "", "{:.1f} s/step"),
        ("tokens_per_s", "", "{:.0f} tokens/s"),
        ("answers_per_s", "", "{:.2f} answers/s"),
    ):
        if values.get(key) is not None:
            shown.append(f"{label} {form.format(values[key])}".strip())
    return "  ".join(shown)
