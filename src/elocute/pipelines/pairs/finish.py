"""The second pass of `elocute pairs`, which knows all pairs: what is too many, weights, the output and its card."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elocute.data.files import write_atomically
from elocute.errors import InputError, RunError
from elocute.pipelines.pairs.card import Card, card_path, example, markdown, reasons, to_json
from elocute.pipelines.pairs.choose import Best, drawn, draws, read_records, weighted, widest
from elocute.pipelines.pairs.numbers import Place, columns, exact_mean, examples, histogram, summary
from elocute.pipelines.pairs.options import PairOptions
from elocute.pipelines.pairs.parts import FIRST_DROPPED, MOST_BAD, Made
from elocute.pipelines.pairs.split import Source, Span


class Finish:
    """The parts in `folder`, `made` from `spans`, become the output."""

    def __init__(self, options: PairOptions, source: Source, folder: Path, spans: list[Span], made: list[Made]):
        self.options, self.source, self.folder = options, source, folder
        self.spans, self.made = spans, made
        self.masks: list[np.ndarray] | None = None

    def run(self, origin: dict[str, Any]) -> Card:
        """The card. InputError when no pair is left or an id comes twice."""
        total = _total(self.made)
        if not total.pairs:
            raise InputError(f"{self.options.input}: {_nothing_left(total)}")
        self._check_ids()
        too_many = self._limit()
        mean_margin = exact_mean(columns(self._kept(), "margin"))
        wanted = examples(self._kept(), (draws(records, self.options.seed) for records in self._kept()))
        shown = self._write(mean_margin, wanted)
        card = self._card(origin, total, too_many, mean_margin, shown)
        write_atomically(card_path(self.options.output, "md"), markdown(card).encode())
        write_atomically(card_path(self.options.output, "json"), to_json(card))
        os.replace(self.folder / "output", self.options.output)
        return card

    def _records(self) -> Iterator[np.ndarray]:
        return read_records(self.folder, len(self.spans))

    def _kept(self) -> Iterator[np.ndarray]:
        if self.masks is None:
            return self._records()
        return (records[mask] for records, mask in zip(self._records(), self.masks, strict=True))

    def _check_ids(self) -> None:
        """Training reads a row by its id: two rows of one id are a mistake in the candidates."""
        ids = np.concatenate([records["identity"][records["named"]] for records in self._records()])
        ids.sort()
        twice = set(ids[1:][ids[1:] == ids[:-1]].tolist())
        if not twice:
            return
        first: dict[int, tuple[Span, int, int]] = {}
        said: list[str] = []
        before = 0
        for span, made, records in zip(self.spans, self.made, self._records(), strict=True):
            for place in np.flatnonzero(np.isin(records["identity"], list(twice)) & records["named"]).tolist():
                identity, here = int(records["identity"][place]), (span, before, int(records["row"][place]))
                if first.setdefault(identity, here) != here and len(said) < MOST_BAD:
                    (where, raw), (other, _) = self.source.row(*here), self.source.row(*first[identity])
                    said.append(f"{where}: id: {json.loads(raw)['id']!r} is already the id at {other}")
            before += made.rows
        raise InputError("\n".join(said))

    def _limit(self) -> dict[str, int]:
        """Keep the widest `top_k`, then of these `max_samples` at random; how many were dropped for either."""
        dropped = {}
        for name, limit, keys in (
            ("beyond --top-k", self.options.top_k, widest),
            ("not drawn for --max-samples", self.options.max_samples, drawn),
        ):
            if limit is None:
                continue
            best = Best(limit)
            for records in self._kept():
                if name == "beyond --top-k" and np.isnan(records["margin"]).any():
                    raise InputError("--top-k: expected a chosen_score in every row: without, targets have no gap")
                best.look(keys(records, self.options.seed))
            best.close()
            before = sum(len(records) for records in self._kept())
            self.masks = [
                self._narrowed(part, best.keeps(keys(records, self.options.seed)))
                for part, records in enumerate(self._kept())
            ]
            if less := before - sum(int(mask.sum()) for mask in self.masks):
                dropped[name] = less
        return dropped

    def _narrowed(self, part: int, kept: np.ndarray) -> np.ndarray:
        """What is kept of a part, bool [pairs], when `kept` says it of those that were kept so far."""
        if self.masks is None:
            return kept
        mask = self.masks[part].copy()
        mask[mask] = kept
        return mask

    def _write(self, mean_margin: float, wanted: dict[Place, str]) -> list[dict[str, Any]]:
        """All kept lines, weighted, into one file; returns the wanted ones as the card shows them."""
        found = {}
        try:
            with open(self.folder / "output", "wb") as file:
                for part, records in enumerate(self._records()):
                    lines = np.fromfile(self.folder / f"{part:06d}.jsonl", dtype=np.uint8)
                    mask = None if self.masks is None else self.masks[part]
                    lines = weighted(lines, records, mask, mean_margin)
                    file.write(lines)
                    ends = np.cumsum(records["bytes"] if mask is None else records["bytes"][mask])
                    for place in [place for place in wanted if place[0] == part]:
                        start = ends[place[1] - 1] if place[1] else 0
                        found[place] = lines[start : ends[place[1]]].tobytes()
        except OSError as error:
            raise RunError(f"{self.options.output}: cannot be written ({error.strerror or error})") from None
        return [example(why, found[place]) for place, why in wanted.items()]

    def _card(
        self,
        origin: dict[str, Any],
        total: Made,
        too_many: dict[str, int],
        mean_margin: float,
        shown: list[dict[str, Any]],
    ) -> Card:
        written = sum(len(records) for records in self._kept())
        gaps = summary(columns(self._kept(), "gap"))
        weights = summary(np.nan_to_num(margins / mean_margin, nan=1.0) for margins in columns(self._kept(), "margin"))
        unusable = {why: count for why, count in total.candidates.items() if why != "read"}
        return {
            "made_by": "elocute pairs",
            "origin": origin,
            "output": {"path": self.options.output, "bytes": (self.folder / "output").stat().st_size},
            "rows": {
                "read": total.rows,
                "with_pairs": total.with_pairs,
                "dropped": {why: {"rows": n, "first": first} for why, (n, first) in sorted(total.dropped.items())},
            },
            "candidates": {"read": total.candidates["read"], "unusable": dict(sorted(unusable.items()))},
            "pairs": {"found": total.pairs, "dropped": too_many, "written": written},
            "chosen_score": summary(columns(self._kept(), "chosen_score")),
            "rejected_score": summary(columns(self._kept(), "rejected_score")),
            "score_gap": gaps,
            "weight": weights,
            "histogram": histogram(columns(self._kept(), "gap"), gaps["min"], gaps["max"]) if gaps else [],
            "examples": shown,
        }


def _total(parts: list[Made]) -> Made:
    """All parts' counts; rows of drops are numbered from 1 in the whole file."""
    total = Made()
    candidates: Counter[str] = Counter()
    for made in parts:
        for why, (count, first) in made.dropped.items():
            before, known = total.dropped.get(why, (0, []))
            known = (known + [total.rows + row + 1 for row in first])[:FIRST_DROPPED]
            total.dropped[why] = (before + count, known)
        candidates.update(made.candidates)
        total.rows += made.rows
        total.with_pairs += made.with_pairs
        total.pairs += made.pairs
    total.candidates = dict(candidates)
    return total


def _nothing_left(total: Made) -> str:
    said = f"no pair is left of {total.rows:,} rows: " + reasons({why: n for why, (n, _) in total.dropped.items()})
    unusable = {why: count for why, count in total.candidates.items() if why != "read"}
    return said + (f" (of {total.candidates['read']:,} candidates, {reasons(unusable)})" if unusable else "")
