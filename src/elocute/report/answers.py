"""What people read and play: the same questions answered before and after, and rollouts over time. HTML fragments."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from elocute.errors import InputError
from elocute.evaluation.statistics import mcnemar_exact
from elocute.report.charts import show_number

PAIRS, STEPS, PER_STEP = 12, 6, 4
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """One question's answers; either is None while there is none."""

    before: Row | None
    after: Row | None

    @property
    def both(self) -> bool:
        return self.before is not None and self.after is not None

    def gained(self) -> int:
        """Of written, heard and whole: how many became right, less how many became wrong."""
        return _rights(self.after) - _rights(self.before) if self.both else 0

    def plays(self) -> bool:
        return any(row is not None and row.get("audio") for row in (self.before, self.after))


def pair_up(before: Sequence[Row], after: Sequence[Row]) -> list[Pair]:
    """By id, in the order of the files."""
    olds, news = ({str(row["id"]): row for row in rows} for rows in (before, after))
    return [Pair(olds.get(id), news.get(id)) for id in dict.fromkeys([*olds, *news])]


def choose(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Those that can be played first; of these gained and lost ones in turn, then other changes, then the rest.

    In turn, so that a page of mostly gains still shows what was lost.
    """
    chosen: list[Pair] = []
    for playable in (True, False):
        some = [pair for pair in pairs if pair.plays() is playable]
        gained, lost = [p for p in some if p.gained() > 0], [p for p in some if p.gained() < 0]
        even = sorted((p for p in some if p.gained() == 0), key=lambda p: not _differs(p))
        chosen += [pair for pair in chain(*zip_longest(gained, lost)) if pair is not None] + even
    return chosen[:limit]


def before_and_after(folder: Path, before: Sequence[Row], after: Sequence[Row]) -> str:
    """`folder` is where the rows' audio paths start from."""
    pairs = pair_up(before, after)
    if not pairs:
        return "<p>No evaluated answers in this run folder yet.</p>"
    shown = choose(pairs, PAIRS)
    lead = (
        f"{len(shown)} of {len(pairs)} recorded answers: first those with sound, gained and lost ones in turn. "
        "What is asked and the seed are the same before and after."
    )
    cards = "".join(_pair_card(folder, pair) for pair in shown)
    return f'<p>{lead}</p>{_flips(pairs)}<div class="pairs">{cards}</div>'


def rollouts_over_time(folder: Path, rollouts: Mapping[int, Sequence[Row]]) -> str:
    """Up to STEPS evenly spaced steps, the first PER_STEP rows of each."""
    if not rollouts:
        return "<p>No rollouts were written in this run.</p>"
    steps = list(rollouts)
    picks = steps if len(steps) <= STEPS else [steps[i * (len(steps) - 1) // (STEPS - 1)] for i in range(STEPS)]
    parts = [f"<p>{len(picks)} of {len(steps)} recorded steps, the first {PER_STEP} answers of each.</p>"]
    for step in picks:
        rows = rollouts[step]
        cards = "".join(_rollout_card(folder, row) for row in rows[:PER_STEP])
        count = f"{min(PER_STEP, len(rows))} of {len(rows)} answers"
        parts.append(f'<h3>Step {step} <small>{count}</small></h3><div class="rollouts">{cards}</div>')
    return "".join(parts)


def player(folder: Path, path: str | None, label: str) -> str:
    """The WAV file inside the page. InputError when the file there is no WAV; a missing one is said on the page."""
    if not path:
        return '<p class="muted">no audio</p>'
    try:
        content = (folder / path).read_bytes()
    except OSError:
        return f'<p class="missing">audio not found: {escape(path)}</p>'
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise InputError(f"{folder / path}: expected a WAV file")
    data = base64.b64encode(content).decode("ascii")
    return f'<audio controls aria-label="{escape(label)}" src="data:audio/wav;base64,{data}"></audio>'


def marks(row: Row) -> dict[str, tuple[bool, str]]:
    """What was judged in an answer: name → (whether it is right, in words)."""
    if "labels_heard" in row:  # read aloud
        wrong = row["errors"]
        found = {"All words": (not wrong, f"{wrong} of {row['words']} words wrong" if wrong else "all words")}
        for name, heard in row["labels_heard"].items():
            right = heard == row["labels"].get(name)
            found[name] = right, f"{name}: {heard}" + ("" if right else " heard") if heard else f"{name}: nothing heard"
        return found
    found = {}
    for key, name, short in (("correct_text", "As written", "written"), ("correct_speech", "As heard", "heard")):
        if row.get(key) is not None:
            found[name] = bool(row[key]), f"{short}: {'right' if row[key] else 'wrong'}"
    return found


def marks_list(row: Row) -> str:
    """The same as items of a list, and why an answer is broken."""
    items = "".join(
        f'<li class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {escape(words)}</li>'
        for right, words in marks(row).values()
    )
    if row.get("broken"):
        reason = "" if row["broken"] is True else f": {row['broken']}"
        items += f'<li class="wrong">✗ broken{_text(reason)}</li>'
    for name, reason in (row.get("unjudged") or {}).items():
        items += f'<li class="muted">{_text(f"{name}: {reason}")}</li>'
    return items


def _rights(row: Row) -> int:
    return sum(right for right, _ in marks(row).values()) - bool(row.get("broken"))


def _differs(pair: Pair) -> bool:
    return pair.both and any(
        pair.before.get(key) != pair.after.get(key)
        for key in ("text", "heard", "labels_heard", "correct_text", "correct_speech", "broken")
    )


def _flips(pairs: Sequence[Pair]) -> str:
    """How many answers turned right and wrong, with McNemar's p, for each way of judging."""
    judged = [(marks(pair.before), marks(pair.after)) for pair in pairs if pair.both]
    items = []
    for name in dict.fromkeys(name for old, _ in judged for name in old):
        both = [(old[name][0], new[name][0]) for old, new in judged if name in old and name in new]
        if both:
            old, new = zip(*both, strict=True)
            items.append(
                f"<li>{escape(name)}: {both.count((False, True))} became right, {both.count((True, False))} became "
                f"wrong, of {len(both)} (McNemar, exact: p = {mcnemar_exact(old, new):.2g})</li>"
            )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _pair_card(folder: Path, pair: Pair) -> str:
    row = pair.after or pair.before
    question = _text(row.get("question_text") or row["id"])
    reference = row.get("reference")
    if isinstance(reference, list):
        reference = " / ".join(map(str, reference))
    asked = "".join(
        player(folder, path, f"Question: {row.get('question_text') or row['id']}")
        for path in [next(_question_audio(pair), None)]
        if path
    )
    expected = f'<p class="muted">expected: {_text(reference)}</p>' if reference is not None else ""
    if labels := row.get("labels"):
        expected = f'<p class="muted">{_text(", ".join(f"{name}: {label}" for name, label in labels.items()))}</p>'
    sides = "".join(_answer(folder, side, name) for side, name in ((pair.before, "before"), (pair.after, "after")))
    return f'<article class="card"><header><h3>{question}</h3>{expected}{asked}</header>{sides}</article>'


def _question_audio(pair: Pair) -> Iterator[str]:
    yield from (row["question_audio"] for row in (pair.after, pair.before) if row and row.get("question_audio"))


def _answer(folder: Path, row: Row | None, name: str) -> str:
    if row is None:
        return f'<section><h4>{name}</h4><p class="muted">not evaluated</p></section>'
    said = "" if "labels_heard" in row else f'<p class="said">{_text(row.get("text") or "(no text)")}</p>'
    sound = player(folder, row.get("audio"), f"Answer {name}: {row.get('text', '')}")
    heard = f'<p class="muted">heard: {_text(row["heard"])}</p>' if row.get("heard") else ""
    return f'<section><h4>{name}</h4>{said}{sound}{heard}<ul class="marks">{marks_list(row)}</ul></section>'


def _rollout_card(folder: Path, row: Row) -> str:
    rewards = "".join(
        f"<li>{_text(name)}: {_number_or_text(value)}</li>" for name, value in (row.get("rewards") or {}).items()
    )
    broken = f'<p class="missing">broken: {_text(row["broken"])}</p>' if row.get("broken") else ""
    sound = player(folder, row.get("audio"), f"Rollout: {row.get('text', '')}")
    return (
        f'<article class="card"><p class="muted">{_text(row.get("question_text") or row["id"])}</p>'
        f'<p class="said">{_text(row.get("text") or "(no text)")}</p>{sound}{broken}'
        f'<p>reward <b>{_number_or_text(row.get("reward"))}</b></p><ul class="plain">{rewards}</ul></article>'
    )


def _number_or_text(value: Any) -> str:
    return show_number(value) if type(value) in (int, float) or value is None else _text(value)


def _text(value: Any) -> str:
    """Escaped, and set in its own direction: answers may be in any script."""
    return f'<span dir="auto">{escape(str(value))}</span>'
