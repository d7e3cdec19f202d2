"""What `elocute pairs` is told: from where, which pairs, how many."""

import math
import os
from pathlib import Path
from typing import Literal

import msgspec

from elocute.errors import InputError

RUBRIC_WEIGHTS = {"sum": (1.0, 1.0), "semantic": (1.0, 0.0), "paralinguistic": (0.0, 1.0)}
HALF_A_POINT = 0.5
"""The gap WavAlign asks of u = 0.5·semantic + 0.5·acoustic: half a point of each judge, so 1.0 on their sum."""

FIRST_ROUND = (3.0, 1.0, 0.1)
"""Align-SLM's first round: least score to be chosen, largest score to be rejected, largest auto-BLEU-2 to be chosen."""


class PairOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The options of `elocute pairs`, by WavAlign's names; None where a default depends on another option.

    A candidate's score: `sum` (the default: what a file of WavAlign's judges holds), `semantic`, `paralinguistic` or
    `weighted` of its two judge scores, or `reward`: the combined score that `elocute score` wrote.
    """

    input: str
    output: str
    prompt_audio_root: str | None = None
    generated_audio_root: str | None = None
    target_audio_root: str | None = None
    chosen_source: Literal["best_output", "sft_target"] = "best_output"
    rejected_source: Literal["worst_output"] = "worst_output"
    score_mode: Literal["sum", "semantic", "paralinguistic", "weighted", "reward"] = "sum"
    semantic_weight: float | None = None
    paralinguistic_weight: float | None = None
    min_score_gap: float | None = None
    rule: Literal["best_worst", "threshold", "rank"] = "best_worst"
    chosen_min_score: float | None = None
    rejected_max_score: float | None = None
    max_auto_bleu: float | None = None
    differ_in: Literal["text", "any"] = "text"
    pairs_per_prompt: int = 1
    validate_audio: bool = False
    top_k: int | None = None
    max_samples: int | None = None
    seed: int = 0

    @property
    def rubric_weights(self) -> tuple[float, float] | None:
        """Weights of the semantic and the paralinguistic judge in a candidate's score; None in mode `reward`."""
        if self.score_mode == "weighted":
            given = (self.semantic_weight, self.paralinguistic_weight)
            return tuple(0.5 if weight is None else weight for weight in given)
        return RUBRIC_WEIGHTS.get(self.score_mode)

    @property
    def least_gap(self) -> float:
        """The gap that a pair needs. A reward's scale is its own, ranks have none, thresholds are the filter."""
        if self.min_score_gap is not None:
            return self.min_score_gap
        if self.rule == "threshold":
            return -math.inf
        return HALF_A_POINT * sum(self.rubric_weights) if self.rule == "best_worst" and self.rubric_weights else 0.0

    @property
    def thresholds(self) -> tuple[float, float, float]:
        """(s_c, s_r, δ): chosen from score s_c on, rejected up to s_r, and whatever has an auto-BLEU above δ."""
        given = (self.chosen_min_score, self.rejected_max_score, self.max_auto_bleu)
        return tuple(default if value is None else value for value, default in zip(given, FIRST_ROUND, strict=True))

    def root(self, kind: Literal["prompt", "generated", "target"]) -> str:
        """The folder that relative audio paths of this kind start from: the input's own unless another is named."""
        return getattr(self, f"{kind}_audio_root") or os.path.dirname(self.input) or "."


def check_options(options: PairOptions) -> None:
    """InputError, naming the option, for values that do not go together and for files that are not there."""
    try:
        msgspec.convert(msgspec.to_builtins(options), PairOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"pairs: {error}") from None
    _check_numbers(options)
    _check_rule(options)
    if not os.path.isfile(options.input):
        raise InputError(f"--input: no such file: {options.input}")
    if os.path.realpath(options.input) == os.path.realpath(options.output):
        raise InputError(f"--output: expected another file than the input, got {options.output}")
    if Path(options.output).is_dir():
        raise InputError(f"--output: expected a file, {options.output} is a folder")
    for kind in ("prompt", "generated", "target"):
        if not os.path.isdir(options.root(kind)):
            raise InputError(f"--{kind}-audio-root: no such folder: {options.root(kind)}")


def _check_numbers(options: PairOptions) -> None:
    names = ("semantic_weight", "paralinguistic_weight", "min_score_gap", "max_auto_bleu")
    for name in (*names, "chosen_min_score", "rejected_max_score"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and (value >= 0 or name.endswith("_score"))):
            raise InputError(f"{_flag(name)}: expected a finite number, at least 0, got {value:g}")
    for name in ("pairs_per_prompt", "top_k", "max_samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{_flag(name)}: expected at least 1, got {value}")
    if options.seed < 0:
        raise InputError(f"--seed: expected at least 0, got {options.seed}")


def _check_rule(options: PairOptions) -> None:
    if options.score_mode != "weighted":
        _only_with(options, ("semantic_weight", "paralinguistic_weight"), "--score-mode weighted")
    elif not sum(options.rubric_weights):
        raise InputError("--semantic-weight, --paralinguistic-weight: expected one above 0")
    if options.rule != "threshold":
        _only_with(options, ("chosen_min_score", "rejected_max_score"), "--rule threshold")
    elif options.thresholds[0] <= options.thresholds[1]:
        chosen, rejected, _ = options.thresholds
        raise InputError(
            f"--chosen-min-score: expected more than --rejected-max-score {rejected:g}, got {chosen:g}: "
            "no answer may be both"
        )
    if options.chosen_source == "sft_target":
        _check_target(options)


def _check_target(options: PairOptions) -> None:
    if options.max_auto_bleu is not None:
        raise InputError("--max-auto-bleu: expected --chosen-source best_output: it says which outputs may be chosen")
    if options.rule != "best_worst":
        raise InputError(f"--rule {options.rule}: expected --chosen-source best_output: it chooses between outputs")


def _only_with(options: PairOptions, names: tuple[str, ...], other: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(f"{_flag(name)}: only used with {other}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
