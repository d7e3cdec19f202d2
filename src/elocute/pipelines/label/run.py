"""`elocute label`: rows of text → the same rows with labels, and a summary beside them.

Rows are labelled a portion at a time; a journal beside the output says what is decided. Killed at any moment, the work
goes on and ends with the same bytes. Only then does the output appear, whole. A row that a model gave no proper label
is no row of it: it is counted, and asked for again when the work goes on.
"""

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.digest import digest_file
from elocute.data.files import write_atomically
from elocute.data.rows import check_rows
from elocute.errors import InputError, RunError
from elocute.pipelines.candidates import moved
from elocute.pipelines.hire import hired
from elocute.pipelines.journal import Journal
from elocute.pipelines.label.decide import Decider, Line, by_measure
from elocute.pipelines.label.rows import LabelRow, label_rows
from elocute.pipelines.label.sources import Reader
from elocute.pipelines.label.summary import LabelTally, Summary, summary_path
from elocute.progress import Progress
from elocute.prosody.schema import Schema

ROUNDS = 4
"""Rows labelled together for each request in flight: few slots idle at the end, little to lose when it is stopped."""

PORTION = 100
"""Rows together where no model is asked."""

CHECKED_TOGETHER = 1000

SOURCES = ("rule", "audio", "llm", "rlaif-spa")


class Labeller:
    """Labels the rows in the file `input` into the file `output`.

    sources: of "rule", "audio" and "llm" those that decide what is open, in this order; "rlaif-spa" for input in
    RLAIF-SPA's form (published.py). reader: who is asked with "llm". drop_unknown: given labels that the schema does
    not have are left out and counted, instead of an error. max_unavailable: a portion in which the reader fails for a
    larger share of the rows it is asked about stops the run. workers: on Ray; 0: this process (hire.py).
    """

    def __init__(
        self,
        input: Path,
        output: Path,
        schema: Schema,
        sources: Collection[str],
        *,
        reader: Reader | None = None,
        drop_unknown: bool = False,
        max_unavailable: float = 0.5,
        workers: int = 0,
    ):
        if unknown := [source for source in sources if source not in SOURCES]:
            raise InputError(f"--from {unknown[0]}: expected {', '.join(SOURCES)}")
        if os.path.realpath(input) == os.path.realpath(output):
            raise InputError(f"--output {output}: expected another file than --input")
        self.input, self.output, self.schema, self.sources = input, output, schema, sources
        self.reader, self.drop_unknown, self.max_unavailable = reader, drop_unknown, max_unavailable
        self.workers = workers
        self.summary_file = summary_path(output)

    def check(self, *, resume: bool) -> int:
        """The number of rows. InputError for bad rows and an output that is not free."""
        count, rows = 0, self._rows()
        while some := list(itertools.islice(rows, CHECKED_TOGETHER)):
            check_rows(some, self._check)
            count += len(some)
        self.journal = Journal(self.output.with_name(f"{self.output.name}.journal"), self._origin())
        self.finished = self._finished(resume)
        return count

    def run(self, *, resume: bool = False, progress: Progress = lambda *_: None) -> Summary:
        """Do the whole work, or what is left of it; returns the summary."""
        count = self.check(resume=resume)
        if self.finished:
            self._forget()
            return self.finished
        lines: dict[int, Line] = {}

        def take(line: Line) -> None:
            lines[line["row"]] = line

        crew = hired(Decider, (self.schema, self.sources, self.reader), self.workers)
        with self.journal.writing(take) as writer, crew as crew:
            waiting = [i for i in range(count) if "labels" not in lines.get(i, {})]
            done, failed = count - len(waiting), 0
            progress("rows", done, count, {})
            for made, asked in crew("decide", self._portions(waiting)):
                writer.append(made)
                for line in made:
                    take(line)
                done, reasons = done + len(made), Counter(line["unavailable"] for line in made if "unavailable" in line)
                failed += reasons.total()
                progress("rows", done, count, {"outcomes/unavailable": failed})
                self._check_alive(reasons, asked)
            summary = self._write(lines)
        if not failed:  # nothing is left to ask for
            self._forget()
        if not summary["rows"]["written"]:
            why = "; ".join(f"{reason}: {count}" for reason, count in summary["left_out"].items())
            raise InputError(f"{self.input}: no row of {count} got a label: {why}")
        return summary

    def _rows(self) -> Iterator[LabelRow]:
        return label_rows(self.input, self.schema, published="rlaif-spa" in self.sources)

    def _check(self, row: LabelRow) -> None:
        problems = [] if self.drop_unknown else list(row.unknown.values())
        if row.problem:
            problems.append(row.problem)
        if "audio" in self.sources and row.recording is None:
            problems.append("sft_target_audio: expected a recording to measure")
        if problems:
            raise InputError(f"{row.where}: {'; '.join(problems)}")

    def _origin(self) -> dict[str, Any]:
        reader = self.reader and {"model": self.reader.endpoint.entry.model, **self.reader.sampling}
        return {
            "made_by": "elocute label",
            "input": digest_file(self.input),
            "schema": self.schema.digest,
            "sources": sorted(set(self.sources)),
            "reader": reader,
            "drop_unknown": self.drop_unknown,
        }

    def _finished(self, resume: bool) -> Summary | None:
        """The summary if all is done already. InputError unless the place is free or holds this work."""
        try:
            summary = json.loads(self.summary_file.read_text()) if self.summary_file.exists() else {}
        except ValueError as error:
            raise InputError(f"{self.summary_file}: not JSON ({error}); choose another --output") from None
        ours = isinstance(summary, dict) and summary.get("origin") == json.loads(json.dumps(self.journal.origin))
        if resume and ours and self.output.exists() and not self.journal.path.exists():
            return summary
        if self.journal.check(resume=resume):
            return None
        for path in (self.output, self.summary_file):
            if path.exists():
                raise InputError(f"{path}: there already; choose another --output")
        return None

    def _forget(self) -> None:
        """End the journal. It goes first: without it the summary says that all is done."""
        self.journal.path.unlink(missing_ok=True)
        self.journal.origin_file.unlink(missing_ok=True)

    def _portions(self, waiting: Sequence[int]) -> Iterator[list[tuple[int, LabelRow]]]:
        """The rows of these numbers, some at a time, in portions of nearly one size: their shares say something."""
        most = PORTION if self.reader is None else ROUNDS * self.reader.endpoint.concurrency
        size = math.ceil(len(waiting) / math.ceil(len(waiting) / most)) if waiting else 1
        wanted = set(waiting)
        rows = ((i, row) for i, row in enumerate(self._rows()) if i in wanted)
        while portion := list(itertools.islice(rows, size)):
            yield portion

    def _check_alive(self, reasons: Counter[str], asked: int) -> None:
        """RunError for a dead reader."""
        if reasons.total() > self.max_unavailable * asked:
            raise RunError(
                f"llm: {reasons.total()} of {asked} replies are unavailable (more than "
                f"{self.max_unavailable:.0%}), most often: {reasons.most_common(1)[0][0]}; what is done is in "
                f"{self.journal.path}, --resume goes on"
            )

    def _bounds(self, lines: Sequence[Line]) -> dict[str, list[float]]:
        """Of each measured dimension: the schema's bounds, or those that give each label an equal share of the rows."""
        values: dict[str, list[float]] = {}
        for line in lines:
            for name, value in by_measure(self.schema, line).items():
                values.setdefault(name, []).append(value)
        bounds = {}
        for name, own in values.items():
            one = self.schema.dimensions[name]
            shares = np.arange(1, len(one.labels)) / len(one.labels)
            bounds[name] = list(one.bounds) or [float(bound) for bound in np.quantile(own, shares)]
        return bounds

    def _write(self, lines: dict[int, Line]) -> Summary:
        """Put output and summary in their place, unless there is no row with a label."""
        tally, written = LabelTally(self.schema), []
        bounds = self._bounds([line for line in lines.values() if "labels" in line])
        for number, row in enumerate(self._rows()):
            line = lines[number]
            tally.unknown.update(row.unknown.keys())
            if "unavailable" in line:
                tally.leave_out(f"llm: {line['unavailable']}")
                continue
            labels, by = self._labels(line, bounds)
            if not labels:
                tally.leave_out("no label could be decided")
                continue
            tally.add(labels, by)
            fields = moved(row.fields, self.input.parent, self.output.parent) | {"labels": labels}
            written.append(fields | ({"measured": line["measured"]} if "measured" in line else {}))
        summary = {"output": str(self.output)} | tally.summary() | {"origin": self.journal.origin}
        for name, own in bounds.items():
            summary["dimensions"][name] |= {"measure": self.schema.dimensions[name].measure, "bounds": own}
        if not written:
            return summary
        write_atomically(self.output, "".join(json.dumps(row) + "\n" for row in written).encode())
        write_atomically(self.summary_file, (json.dumps(summary, indent=2) + "\n").encode())
        return summary

    def _labels(self, line: Line, bounds: dict[str, list[float]]) -> tuple[dict[str, str], dict[str, str]]:
        """A row's labels in the schema's order, and who decided each."""
        values = by_measure(self.schema, line)
        heard = {name: self.schema.dimensions[name].label_of(v, bounds[name]) for name, v in values.items()}
        labels, by = line["labels"] | heard, line["by"] | dict.fromkeys(heard, "audio")
        return {name: labels[name] for name in self.schema.dimensions if name in labels}, by
