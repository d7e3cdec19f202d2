"""The dataset card beside the pairs: counts, drops by reason, the gaps, examples to listen to. JSON and Markdown."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

Card = dict[str, Any]
BAR = 40
SHOWN = ("id", "question_text", "audios", "sft_target_text", "sft_target_audio", "rejected_text", "rejected_audio")
LONGEST = 300  # characters of a text that a card shows
SCORES = ("chosen_score", "rejected_score", "score_gap", "weight", "chosen_key", "rejected_key")


def card_path(output: str | Path, suffix: str) -> Path:
    """Where the card of `pairs.jsonl` lies: `pairs.card.json`, `.md` or `.html`."""
    output = Path(output)
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.card.{suffix}")


def to_json(value: Card) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def example(why: str, path: Path, start: int) -> dict[str, Any]:
    """What a card shows of the pair whose line begins there."""
    with open(path, "rb") as file:
        file.seek(start)
        row = json.loads(file.readline())
    shown = {name: row[name] for name in (*SHOWN, *SCORES) if name in row}
    if "question_text" not in shown:
        shown["question_text"] = row["messages"][-1]["content"]
    return {"why": why, **shown}


def reasons(counts: Mapping[str, int]) -> str:
    """`gap below 1: 150; all candidates score the same: 38`, the most frequent first."""
    return "; ".join(f"{why}: {count:,}" for why, count in _by_count(counts))


def summary_lines(card: Card) -> list[str]:
    """The card in a few lines, for a terminal."""
    rows, candidates, pairs = card["rows"], card["candidates"], card["pairs"]
    lines = [f"{rows['read']:,} rows → {pairs['written']:,} pairs: {card['output']['path']}"]
    if rows["dropped"]:
        dropped = {why: found["rows"] for why, found in rows["dropped"].items()}
        lines.append(f"rows without a pair: {rows['read'] - rows['with_pairs']:,} ({reasons(dropped)})")
    if candidates["unusable"]:
        lines.append(f"candidates left out, of {candidates['read']:,}: {reasons(candidates['unusable'])}")
    if pairs["dropped"]:
        lines.append(f"pairs left out, of {pairs['found']:,}: {reasons(pairs['dropped'])}")
    if card["score_gap"]:
        gap = card["score_gap"]
        lines.append(f"gap {gap['mean']:.3g} ± {gap['std']:.3g} ({gap['min']:.3g} … {gap['max']:.3g})")
    return lines


def markdown(card: Card) -> str:
    """The card as a page."""
    rows, candidates, pairs = card["rows"], card["candidates"], card["pairs"]
    parts = [
        f"# Preference pairs: {_plain(Path(card['output']['path']).name)}",
        f"Made by `elocute pairs` from {_plain(Path(card['origin']['options']['input']).name)}, with {_told(card)}.",
        "## Counts",
        _table(
            ("what", "count"),
            [
                ("rows read", rows["read"]),
                ("rows with a pair", rows["with_pairs"]),
                ("candidates read", candidates["read"]),
                ("**pairs written**", pairs["written"]),
            ],
        ),
    ]
    counts = {why: found["rows"] for why, found in rows["dropped"].items()}
    dropped = [
        (f"rows: {why}", count, "first: rows " + ", ".join(map(str, rows["dropped"][why]["first"])))
        for why, count in _by_count(counts)
    ]
    dropped += [(f"candidates: {why}", count, "") for why, count in _by_count(candidates["unusable"])]
    dropped += [(f"pairs: {why}", count, "") for why, count in _by_count(pairs["dropped"])]
    parts += ["## Left out", _table(("what and why", "count", "where"), dropped) if dropped else "Nothing."]
    parts += ["## Scores", _score_table(card)]
    if card["histogram"]:
        parts += ["## Gap between chosen and rejected", f"```\n{bars(card['histogram'])}\n```"]
    parts += ["## Examples", *(_example(one) for one in card["examples"])]
    return "\n\n".join(parts) + "\n"


def bars(histogram: Sequence[Mapping[str, float]]) -> str:
    """A line a bin: its range, a bar, its count."""
    most = max(one["pairs"] for one in histogram)
    labels = [f"{one['from']:g} … {one['below']:g}" for one in histogram]
    wide = max(map(len, labels))
    return "\n".join(
        f"{label:>{wide}}  {'█' * -(-BAR * one['pairs'] // most):<{BAR}} {one['pairs']:,}"
        for label, one in zip(labels, histogram, strict=True)
    )


def _told(card: Card) -> str:
    options = {"rule": "best_worst", "score_mode": "sum", **card["origin"]["options"]}
    return ", ".join(f"`{name} {value}`" for name, value in options.items() if name not in ("input", "output"))


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _score_table(card: Card) -> str:
    names = {"chosen_score": "chosen", "rejected_score": "rejected", "score_gap": "gap", "weight": "weight"}
    rows = [
        (label, *(f"{card[name][key]:.4g}" for key in ("mean", "std", "min", "max")))
        for name, label in names.items()
        if card[name]
    ]
    return _table(("score", "mean", "std", "min", "max"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *cells])


def _example(one: Mapping[str, Any]) -> str:
    scores = [f"{one[name]:g}" if one.get(name) is not None else "–" for name in ("chosen_score", "rejected_score")]
    lines = [f"### {one['why']}: {_plain(one.get('id', 'a row without id'))}"]
    prompt = " ".join(filter(None, (_plain(one.get("question_text")), *map(_link, one.get("audios") or ()))))
    lines.append(f"- **prompt** {prompt}")
    for name, key, field, score in (
        ("chosen", "chosen_key", "sft_target", scores[0]),
        ("rejected", "rejected_key", "rejected", scores[1]),
    ):
        said = " ".join(filter(None, (_plain(one.get(f"{field}_text")), _link(one.get(f"{field}_audio")))))
        lines.append(f"- **{name}** (candidate {_plain(one[key])}, score {score}) {said}")
    return "\n".join(lines)


def _link(path: str | None) -> str:
    """A link to a sound file; a sequence in a store cannot be played."""
    if not path:
        return ""
    return f"`{path}`" if ".safetensors#" in path else f"[▶ {_plain(Path(path).name)}]({quote(path)})"


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = " ".join(str(text or "").split())
    line = line if len(line) <= LONGEST else line[:LONGEST] + "…"
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", line)
