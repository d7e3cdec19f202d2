"""How probable a classifier that listens finds the emotion that was asked for."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from elocute.data.rows import check_rows
from elocute.data.types import Answer, Example
from elocute.errors import InputError
from elocute.rewards.audio_model import AudioModel
from elocute.rewards.outcome import Outcome, Scored, Unavailable
from elocute.rewards.proper import score_proper


class EmotionReward:
    """P(the row's label | the answer's audio) in [0, 1], by a model of class AutoModelForAudioClassification.

    dimension: of the row's `labels`. label_map: a row's label → the model's label, or several, whose probabilities are
    added; a label that is not in it is looked for by its own name, whatever the case. `detail` holds the label heard
    (labels.LabelListener): the model's likeliest, by the row's name for it if it has one. Raises InputError for a label
    that the model does not have.
    """

    low, high = 0.0, 1.0

    def __init__(
        self,
        name: str,
        path: str | Path,
        dimension: str = "emotion",
        label_map: Mapping[str, Sequence[str]] | None = None,
        device: str | None = None,
    ):
        from transformers import AutoModelForAudioClassification

        self.name, self.path, self.dimension, self.dimensions = name, path, dimension, (dimension,)
        self.audio = AudioModel(path, AutoModelForAudioClassification, device)
        config = self.audio.model.config
        if config.num_labels < 2:
            raise InputError(f"{path}: a classifier with one output gives no probability; at least two labels expected")
        self.multi_label = config.problem_type == "multi_label_classification"
        self.names = [config.id2label[i] for i in range(config.num_labels)]
        places = {theirs.casefold(): [i] for i, theirs in enumerate(self.names)}
        unknown = [t for theirs in (label_map or {}).values() for t in theirs if t.casefold() not in places]
        if unknown:
            raise InputError(
                f"{path}: label_map: {unknown[0]!r} is not one of the model's labels: {', '.join(self.names)}"
            )
        mapped = {own: [places[t.casefold()][0] for t in theirs] for own, theirs in (label_map or {}).items()}
        for own, found in mapped.items():
            if own.casefold() in places and places[own.casefold()][0] not in found:
                raise InputError(f"{path}: label_map: {own}: expected the model's label of this name in its list")
        self.places = places | {own.casefold(): found for own, found in mapped.items()}
        self.known = list({name.casefold(): name for name in (*self.names, *mapped)}.values())
        self.own_names = {place: own for own, found in reversed(mapped.items()) for place in found}

    def check(self, examples: Iterable[Example]) -> None:
        """InputError naming every row without a label that the model has."""
        check_rows(examples, self._wanted)

    def __call__(self, answers: Sequence[Answer]) -> list[Outcome]:
        return score_proper(answers, self._score, needs_audio=True)

    def _score(self, answers: list[Answer]) -> list[Outcome]:
        logits = self.audio([(a.utterance.waveform, a.utterance.sample_rate) for a in answers], "logits")
        return [self._outcome(a.example, row) for a, row in zip(answers, logits, strict=True)]

    def _outcome(self, example: Example, logits: np.ndarray) -> Outcome:
        if not np.isfinite(logits).all():
            return Unavailable("the model's logits are not finite")
        p = 1 / (1 + np.exp(-logits)) if self.multi_label else np.exp(logits - logits.max())
        p = p if self.multi_label else p / p.sum()
        wanted, best = self._wanted(example), int(p.argmax())
        asked = example.columns["labels"][self.dimension]
        heard = asked if best in wanted else self.own_names.get(best, self.names[best])
        return Scored(float(min(p[wanted].sum(), 1.0)), {"heard": {self.dimension: heard}})

    def _wanted(self, example: Example) -> list[int]:
        label = (example.columns.get("labels") or {}).get(self.dimension)
        if not isinstance(label, str) or label.casefold() not in self.places:
            raise InputError(
                f"{example.where}: labels.{self.dimension}: expected one of {', '.join(self.known)}, got {label!r}"
            )
        return self.places[label.casefold()]
