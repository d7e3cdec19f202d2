"""The table a suite for unit LMs ends with in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

CONTINUATION = {
    "gen_ppl": "GenPPL, a token, without the prompt",
    "gen_ppl_slamkit": "GenPPL as SlamKit has it",
    "auto_bleu_slamkit": "auto-BLEU-2, SlamKit",
    "auto_bleu_gslm": "auto-BLEU-2, GSLM, arithmetic",
    "auto_bleu_gslm_geometric": "auto-BLEU-2, GSLM, geometric",
    "unit_seq_rep_4": "repeated 4-grams of units",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "empty_transcripts": "empty transcripts",
    "broken_audio": "broken audio",
    "words": "words",
    "units": "units",
    "seconds": "seconds",
}
_NUMBERS = {"gen_ppl", "gen_ppl_slamkit", "words", "units", "seconds"}


def suite_table(values: Mapping[str, Any]) -> Table:
    """`values` is the content of a suite's eval.json. Accuracies and shares are in percent; a judge's score is not."""
    generative = values["suite"] == "continuation"
    title = values["suite"] if generative else f"{values['suite']}: {values['normalisation']} log-prob"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("value", "95 %", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, entry in values["result"].items():
        percent = not generative or (name in CONTINUATION and name not in _NUMBERS) or name.endswith("_unscored")
        table.add_row(CONTINUATION.get(name, name) if generative else name, *_cells(entry, percent))
    for title, entries in values.get("tables", {}).items():
        if not entries:
            continue
        table.add_section()
        table.add_row(f"[dim]{title}[/dim]")
        for name, entry in entries.items():
            table.add_row(f"  {name}", *_cells(entry, percent=True))
    return table


def _cells(entry: Mapping[str, Any], percent: bool) -> tuple[str, str, str]:
    value, ci95 = entry["value"], entry["ci95"]
    if value is None:
        return "–", "", str(entry["n"])
    scale, unit, form = (100, " %", ".1f") if percent else (1, "", ".2f")
    return (
        f"{scale * value:{form}}{unit}",
        " – ".join(f"{scale * bound:{form}}" for bound in ci95),
        str(entry["n"]),
    )
