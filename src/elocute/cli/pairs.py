"""`elocute pairs`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from elocute.cli.options import AsJson

SETTINGS = {"token_normalize_func": lambda name: name.replace("_", "-")}
"""For the command: `--min_score_gap` is `--min-score-gap`."""


def pairs(
    input: Annotated[Path, typer.Option("--input", "--input-path", help="Scored candidates: JSONL or a JSON array.")],
    output: Annotated[Path, typer.Option("--output", "--output-path", help="Where the pairs go (JSONL).")],
    prompt_audio_root: Annotated[
        Path | None, typer.Option(help="Where relative paths of prompts start. Default: the input's folder, as below.")
    ] = None,
    generated_audio_root: Annotated[Path | None, typer.Option(help="The same for candidates.")] = None,
    target_audio_root: Annotated[Path | None, typer.Option(help="The same for supervised targets.")] = None,
    chosen_source: Annotated[
        Literal["best_output", "sft_target"], typer.Option(metavar="best_output|sft_target")
    ] = "best_output",
    rejected_source: Annotated[Literal["worst_output"], typer.Option(metavar="worst_output")] = "worst_output",
    score_mode: Annotated[
        Literal["sum", "semantic", "paralinguistic", "weighted", "reward"],
        typer.Option(help="Of the two judges' scores; reward: the `score` that elocute score wrote."),
    ] = "sum",
    semantic_weight: Annotated[float | None, typer.Option(help="For weighted; default 0.5.")] = None,
    paralinguistic_weight: Annotated[float | None, typer.Option(help="For weighted; default 0.5.")] = None,
    min_score_gap: Annotated[
        float | None,
        typer.Option(help="Least gap of the two answers' scores. Default: half a point a judge, 1.0 for sum; else 0."),
    ] = None,
    rule: Annotated[
        Literal["best_worst", "threshold", "rank"],
        typer.Option(metavar="best_worst|threshold|rank", help="WavAlign's, Align-SLM's, or ranks in a prompt."),
    ] = "best_worst",
    chosen_min_score: Annotated[float | None, typer.Option(help="For threshold: s_c; default 3.")] = None,
    rejected_max_score: Annotated[float | None, typer.Option(help="For threshold: s_r; default 1.")] = None,
    max_auto_bleu: Annotated[
        float | None, typer.Option(help="Above it never chosen, by threshold rejected; default: 0.1 there, else any.")
    ] = None,
    differ_in: Annotated[
        Literal["text", "any"], typer.Option(help="Chosen and rejected differ in their words; or in anything.")
    ] = "text",
    pairs_per_prompt: Annotated[int, typer.Option(help="At most so many pairs a prompt, the widest.")] = 1,
    validate_audio: Annotated[
        bool, typer.Option(help="Read the sound of prompts and of both answers; leave out what cannot be used.")
    ] = False,
    top_k: Annotated[int | None, typer.Option(help="Only so many pairs, by gap.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Only so many pairs, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check options and the first rows; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Scored candidates → preference pairs for DPO, with a card that counts what was left out and why.

    Example: `elocute pairs --input candidates.jsonl --output pairs.jsonl --min-score-gap 1.0`

    Killed at any moment, the same command goes on and ends with the same bytes. See docs/preference-data.md
    """
    from elocute.pipelines.pairs.options import PairOptions

    told = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    options = PairOptions(**{name: told[name] for name in PairOptions.__struct_fields__})
    if dry_run:
        return _look(options, as_json)
    from elocute.pipelines.pairs.build import build_pairs
    from elocute.pipelines.pairs.card import card_path, summary_lines
    from elocute.progress import RunProgress
    from elocute.report.pair_page import write_pair_page

    with RunProgress(quiet=as_json) as progress:
        card = build_pairs(options, progress=progress)
    page = write_pair_page(card, card_path(output, "html"))
    if as_json:
        print(json.dumps(card))
    else:
        print("\n".join([*summary_lines(card), f"card: {card_path(output, 'md')}, to listen: {page}"]))


def _look(options, as_json: bool) -> None:
    import msgspec

    from elocute.pipelines.pairs.build import look_at_pairs
    from elocute.pipelines.pairs.card import reasons

    made = look_at_pairs(options)
    first = {"rows": made.rows, "with_pairs": made.with_pairs, "pairs": made.pairs}
    first["dropped"] = {why: count for why, (count, _) in made.dropped.items()}
    if as_json:
        print(json.dumps({"options": msgspec.to_builtins(options), "first_part": first}))
    else:
        lost = f" ({reasons(first['dropped'])})" if first["dropped"] else ""
        print(f"# checked: the first {made.rows:,} rows give {made.pairs:,} pairs{lost}")
