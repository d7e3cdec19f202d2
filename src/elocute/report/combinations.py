"""One sentence in every combination of labels, before and after: to be played, and seen as pitch and energy."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from elocute.data.audio import load_audio
from elocute.prosody.measure import Contours, contours
from elocute.report.answers import Pair, Row, marks_list, pair_up, player
from elocute.report.contours import Scales, drawing

COLUMNS = 3
"""Cards side by side at most; a dimension with more labels makes no columns if there is another."""
_COLOURS = {"before": "c7", "after": "c0"}


def every_combination(folder: Path, before: Sequence[Row], after: Sequence[Row]) -> str:
    """An HTML fragment; `folder` is where the rows' audio paths start from."""
    pairs = pair_up(before, after)
    sounds = {path: _contours(folder / path) for path in _paths(pairs)}
    drawn = {path: found for path, found in sounds.items() if found is not None}
    scales = Scales.of(drawn.values())
    lines = []
    for heading, cells in _grid(pairs):
        cards = "".join(_card(folder, name, pair, drawn, scales) for name, pair in cells)
        columns = max(2, min(len(cells), COLUMNS))
        title = f"<h3>{escape(heading)}</h3>" if heading else ""
        lines.append(f'{title}<div class="combinations" style="--columns:{columns}">{cards}</div>')
    sentence = next(row["question_text"] for pair in pairs for row in (pair.before, pair.after) if row)
    return (
        f'<p class="said" dir="auto">“{escape(str(sentence))}”</p><p class="muted">{_how(pairs)} The line is pitch in '
        "Hz on a logarithmic scale, with gaps where nothing is voiced; the area below it is energy. All drawings have "
        f"the same scales.</p>{''.join(lines)}"
    )


def _how(pairs: Sequence[Pair]) -> str:
    if _one_at_a_time(pairs):
        return "There are too many combinations: each label is spoken alone, the other dimensions left out."
    return f"The same sentence in all {len(pairs)} combinations of labels, with the same seeds before and after."


def _grid(pairs: Sequence[Pair]) -> list[tuple[str, list[tuple[str, Pair]]]]:
    """(heading, [(title, pair)]) line by line: a line for each label, or labels, that its cells have in common."""
    lines: dict[str, list[tuple[str, Pair]]] = {}
    alone, column = _one_at_a_time(pairs), _column(pairs)
    for pair in pairs:
        labels = _labels(pair)
        [own] = labels if alone else [column]
        heading = own if alone else _in_words({name: label for name, label in labels.items() if name != own})
        lines.setdefault(heading, []).append((f"{own}: {labels[own]}", pair))
    return list(lines.items())


def _column(pairs: Sequence[Pair]) -> str:
    """The dimension whose labels stand side by side: the last one with few labels, else the one with the fewest."""
    labels: dict[str, set] = {}
    for pair in pairs:
        for name, label in _labels(pair).items():
            labels.setdefault(name, set()).add(label)
    few = [name for name, own in labels.items() if len(own) <= COLUMNS]
    return few[-1] if few else min(labels, key=lambda name: len(labels[name]))


def _one_at_a_time(pairs: Sequence[Pair]) -> bool:
    return len({name for pair in pairs for name in _labels(pair)}) > 1 and all(len(_labels(p)) == 1 for p in pairs)


def _labels(pair: Pair) -> Mapping[str, str]:
    return (pair.before or pair.after)["labels"]


def _in_words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {label}" for name, label in labels.items())


def _paths(pairs: Sequence[Pair]) -> list[str]:
    return [row["audio"] for pair in pairs for row in (pair.before, pair.after) if row and row.get("audio")]


def _contours(path: Path) -> Contours | None:
    """None for a file that is not there, which the player says."""
    return contours(*load_audio(path, max_seconds=float("inf"), silent=True)) if path.is_file() else None


def _card(folder: Path, title: str, pair: Pair, drawn: Mapping[str, Contours], scales: Scales) -> str:
    sides = "".join(
        _side(folder, title, name, row, drawn, scales)
        for name, row in (("before", pair.before), ("after", pair.after))
        if row is not None
    )
    return f'<article class="card"><h4>{escape(title)}</h4><div class="sides">{sides}</div></article>'


def _side(
    folder: Path, title: str, name: str, row: dict[str, Any], drawn: Mapping[str, Contours], scales: Scales
) -> str:
    found, what = drawn.get(row["audio"]), f"{_in_words(row['labels'])}, {name}"
    svg = drawing(found, scales, _COLOURS[name], what) if found else ""
    heard = f'<p class="muted" dir="auto">heard: {escape(row["heard"])}</p>' if row.get("heard") else ""
    return (
        f'<section><h5 class="{_COLOURS[name]}">{name}</h5>{svg}{player(folder, row["audio"], what)}'
        f'{heard}<ul class="marks">{marks_list(row)}</ul></section>'
    )
