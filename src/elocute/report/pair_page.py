"""The card of preference pairs as one HTML page: the counts, the gaps, and examples to listen to.

Unlike a run's report it leads to the sound files where they lie: a page for the folder that the pairs are in.
"""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from elocute.data.files import write_atomically
from elocute.report.charts import show_number
from elocute.report.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src 'self' file:; base-uri 'none'; form-action 'none'"
Card = Mapping[str, Any]
SCORES = {"chosen_score": "chosen", "rejected_score": "rejected", "score_gap": "gap", "weight": "weight"}


def write_pair_page(card: Card, path: str | Path) -> Path:
    """Write the page of a card (pipelines/pairs/card.py) beside its pairs; returns `path`."""
    title = escape(f"Preference pairs: {os.path.basename(card['output']['path'])}")
    body = [
        f"<h1>{title}</h1>",
        f'<p class="muted">Made by elocute pairs from {escape(card["origin"]["options"]["input"])}</p>',
        "<h2>Counts</h2>",
        _table(("what", "count"), _counts(card)),
        "<h2>Left out</h2>",
        _table(("what and why", "count"), left) if (left := _left_out(card)) else "<p>Nothing.</p>",
        "<h2>Scores</h2>",
        _table(("score", "mean", "std", "min", "max"), _scores(card)),
    ]
    if card["histogram"]:
        body += ["<h2>Gap between chosen and rejected</h2>", _bars(card["histogram"])]
    body += ["<h2>Examples</h2>", f'<div class="pairs">{"".join(map(_example, card["examples"]))}</div>']
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head><body>{''.join(body)}</body></html>\n"
    )
    write_atomically(path, page.encode())
    return Path(path)


def _counts(card: Card) -> list[tuple[str, ...]]:
    rows, candidates, pairs = card["rows"], card["candidates"], card["pairs"]
    counts = {
        "rows read": rows["read"],
        "rows with a pair": rows["with_pairs"],
        "candidates read": candidates["read"],
        "pairs written": pairs["written"],
    }
    return [(name, f"{count:,}") for name, count in counts.items()]


def _left_out(card: Card) -> list[tuple[str, ...]]:
    left = [(f"rows: {why}", found["rows"]) for why, found in card["rows"]["dropped"].items()]
    left += [(f"candidates: {why}", count) for why, count in card["candidates"]["unusable"].items()]
    left += [(f"pairs: {why}", count) for why, count in card["pairs"]["dropped"].items()]
    return [(what, f"{count:,}") for what, count in sorted(left, key=lambda one: -one[1])]


def _scores(card: Card) -> list[tuple[str, ...]]:
    return [
        (label, *(show_number(card[name][key]) for key in ("mean", "std", "min", "max")))
        for name, label in SCORES.items()
        if card[name]
    ]


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bars(histogram: list[Mapping[str, float]]) -> str:
    """A bar a bin, with its range and its count."""
    most = max(one["pairs"] for one in histogram)
    parts = []
    for place, one in enumerate(histogram):
        top, wide = 22 * place, round(270 * one["pairs"] / most, 1)
        bin_ = f"{show_number(one['from'])} … {show_number(one['below'])}"
        parts.append(
            f'<text x="110" y="{top + 15}" text-anchor="end">{bin_}</text>'
            f'<rect class="bar" x="120" y="{top + 3}" width="{wide}" height="16"/>'
            f'<text x="{126 + wide}" y="{top + 15}">{one["pairs"]:,}</text>'
        )
    label = "Pairs by the gap between the scores of the chosen and the rejected answer"
    drawing = f'<svg viewBox="0 0 480 {22 * len(histogram)}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure class="c0">{drawing}</figure>'


def _example(one: Mapping[str, Any]) -> str:
    asked = "".join(_player(path, "question") for path in one.get("audios") or ())
    head = f"<h4>{escape(one['why'])}</h4><h3>{escape(str(one.get('question_text') or one.get('id', '')))}</h3>{asked}"
    answers = _answer(one, "chosen", "sft_target") + _answer(one, "rejected", "rejected")
    return f'<article class="card"><header>{head}</header>{answers}</article>'


def _answer(one: Mapping[str, Any], side: str, field: str) -> str:
    what = f"candidate {escape(one[f'{side}_key'])}, score {show_number(one.get(f'{side}_score'))}"
    text = escape(one.get(f"{field}_text") or "")
    player = _player(one.get(f"{field}_audio"), side)
    return f'<section><h4>{side} <small>{what}</small></h4><p class="said">{text}</p>{player}</section>'


def _player(path: str | None, label: str) -> str:
    if not path:
        return '<p class="muted">no audio</p>'
    if ".safetensors#" in path:
        return f'<p class="muted">encoded audio: {escape(path)}</p>'
    return f'<audio controls preload="none" aria-label="{escape(label)}" src="{escape(quote(path))}"></audio>'
