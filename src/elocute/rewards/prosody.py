"""Does the voice do what the labels ask for? Measured in the waveform: speed, pitch, energy (prosody/measure.py)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from elocute.data.audio import load_audio
from elocute.data.rows import check_rows, read_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.prosody.measure import Prosody, measure
from elocute.prosody.schema import Measure, Schema
from elocute.prosody.targets import NotMeasured, Target, target_of_bounds, target_of_recordings
from elocute.recipe.rewards import Reference
from elocute.rewards.asr import asked
from elocute.rewards.labels import certain, credit, labels_of
from elocute.rewards.outcome import Invalid, Outcome, Scored
from elocute.rewards.proper import score_proper


class ProsodyReward:
    """Mean over the row's labels of how well the voice meets them, in [0, 1]; dimensions without a target do not count.

    credit: "closeness" to the label's mean (Target.closeness), or what the label heard is worth (labels.credit).
    reference: the text whose phones and syllables are counted, see `asked`. `detail` holds each dimension's credit and
    the label heard (labels.LabelListener). Invalid where there is nothing to measure.
    """

    low, high = 0.0, 1.0

    def __init__(
        self,
        name: str,
        schema: Schema,
        targets: Mapping[str, Target],
        credit: Literal["closeness", "match", "ordinal", "probability"] = "closeness",
        reference: Reference = "prompt",
    ):
        self.name, self.schema, self.targets = name, schema, targets
        self.credit, self.reference = credit, reference
        self.dimensions = tuple(targets)
        self.measures = tuple(f"credit_{dimension}" for dimension in targets)

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a label that can be measured."""
        check_rows(examples, lambda example: labels_of(example, self.schema, self.targets))

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(
            answers, lambda proper: [self._score(a) for a in proper], needs_audio=True,
            needs_text=self.reference == "written",
        )  # fmt: skip

    def _score(self, answer: Answer) -> Outcome:
        wanted = labels_of(answer.example, self.schema, self.targets)
        utterance = answer.utterance
        prosody = measure(utterance.waveform, utterance.sample_rate, asked(answer, self.reference))
        try:
            heard = {name: self.targets[name].label(prosody) for name in wanted}
            credits = {name: self._credit(name, label, heard[name], prosody) for name, label in wanted.items()}
        except NotMeasured as error:
            return Invalid(str(error))
        detail = {"heard": heard} | {f"credit_{name}": value for name, value in credits.items()}
        return Scored(math.fsum(credits.values()) / len(credits), detail)

    def _credit(self, name: str, wanted: str, heard: str, prosody: Prosody) -> float:
        target = self.targets[name]
        if self.credit == "closeness":
            return target.closeness(wanted, prosody)
        probable = self.credit == "probability"
        seen = target.probabilities(prosody) if probable else certain(target.dimension, heard)
        return credit(target.dimension, wanted, seen, self.credit)


def find_targets(
    schema: Schema,
    measures: Mapping[str, Sequence[str]],
    recordings: str | Path | None,
    dimensions: Sequence[str] | None = None,
) -> dict[str, Target]:
    """Targets of all dimensions that can be measured: those in `measures`, and those with a `measure` in the schema.

    dimensions: of these only.

    recordings: rows with `labels` and `sft_target_audio` to calibrate by, or None: the schema's bounds. InputError for
    an unknown dimension or measure, and where there is nothing to take a target from.
    """
    for name, wanted in measures.items():
        unknown = [one for one in wanted if one not in get_args(Measure)]
        if name not in schema.dimensions or unknown or not wanted:
            raise InputError(
                f"measures: {name}: expected a dimension of the schema ({', '.join(schema.dimensions)}) and of "
                f"{', '.join(get_args(Measure))} at least one, found {', '.join(wanted)}"
            )
    chosen = measures_of(schema, measures, dimensions)
    if unmeasured := [name for name in dimensions or () if name not in chosen]:
        raise InputError(f"measures: {unmeasured[0]}: expected, for the schema has no `measure` for it")
    if not chosen:
        raise InputError("measures: expected at least one dimension, for the schema has none with a `measure`")
    if recordings is None:
        if measures:
            raise InputError("recordings: expected with measures, to take the labels' targets from")
        return {name: target_of_bounds(schema.dimensions[name]) for name in chosen}
    found = [_measured(example, schema) for example in read_rows(recordings)]
    try:
        return {name: target_of_recordings(schema.dimensions[name], ms, found) for name, ms in chosen.items()}
    except InputError as error:
        raise InputError(f"{recordings}: {error}") from None


def measures_of(
    schema: Schema, measures: Mapping[str, Sequence[str]], dimensions: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """What decides the label of each dimension that is measured: `measures`, else the schema's `measure`."""
    own = {name: [one.measure] for name, one in schema.dimensions.items() if one.measure}
    every = own | {name: list(wanted) for name, wanted in measures.items()}
    return {name: wanted for name, wanted in every.items() if dimensions is None or name in dimensions}


def _measured(example: Example, schema: Schema) -> tuple[Mapping[str, str], Prosody]:
    labels = labels_of(example, schema, schema.dimensions)
    if example.target_audio is None or example.target_audio.key is not None:
        raise InputError(f"{example.where}: sft_target_audio: expected a sound file to measure")
    waveform, rate = load_audio(example.target_audio.path, max_seconds=np.inf)
    return labels, measure(waveform, rate, example.target_text or example.messages[-1].content)
